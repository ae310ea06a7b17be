"""Q-learning with Adjoint Matching."""

from sb3_qam.qam.policies import CnnPolicy, FlowPolicy, MlpPolicy, MultiInputPolicy
from sb3_qam.qam.qam import QAM

__all__ = ["QAM", "CnnPolicy", "FlowPolicy", "MlpPolicy", "MultiInputPolicy"]
