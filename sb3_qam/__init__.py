"""Q-learning with Adjoint Matching for Stable-Baselines3."""

from sb3_qam.common.fitted_q_evaluation import PolicyValue, fitted_q_evaluation
from sb3_qam.qam import QAM, CnnPolicy, FlowPolicy, MultiInputPolicy, export_onnx, preset
from sb3_qam.version import __version__

__all__ = [
    "QAM",
    "CnnPolicy",
    "FlowPolicy",
    "MultiInputPolicy",
    "PolicyValue",
    "__version__",
    "export_onnx",
    "fitted_q_evaluation",
    "preset",
]
