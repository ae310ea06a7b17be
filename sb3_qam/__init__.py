"""Q-learning with Adjoint Matching for Stable-Baselines3."""

from sb3_qam.qam import QAM, CnnPolicy, FlowPolicy, MultiInputPolicy, export_onnx, preset
from sb3_qam.version import __version__

__all__ = ["QAM", "CnnPolicy", "FlowPolicy", "MultiInputPolicy", "__version__", "export_onnx", "preset"]
