"""Reading datasets: any source becomes episodes, behind wrappers or not, in memory or mapped."""

from sb3_qam.datasets.describe import DatasetDescription, describe
from sb3_qam.datasets.frame_stack import StackFrames
from sb3_qam.datasets.rewards import RewardTransform
from sb3_qam.datasets.sources import OfflineDataset, open_datasets, wrap_dataset
from sb3_qam.datasets.wrapped import WrappedDataset

__all__ = [
    "DatasetDescription",
    "OfflineDataset",
    "RewardTransform",
    "StackFrames",
    "WrappedDataset",
    "describe",
    "open_datasets",
    "wrap_dataset",
]
