"""Q-learning with Adjoint Matching for Stable-Baselines3."""

from sb3_qam.common.export import export_onnx
from sb3_qam.common.fitted_q_evaluation import PolicyValue, fitted_q_evaluation
from sb3_qam.ifql import IFQL
from sb3_qam.presets import preset
from sb3_qam.qam import QAM, CnnPolicy, FlowPolicy, MultiInputPolicy
from sb3_qam.rebrac import ReBRAC
from sb3_qam.version import __version__

__all__ = [
    "IFQL",
    "QAM",
    "CnnPolicy",
    "FlowPolicy",
    "MultiInputPolicy",
    "PolicyValue",
    "ReBRAC",
    "__version__",
    "export_onnx",
    "fitted_q_evaluation",
    "preset",
]
