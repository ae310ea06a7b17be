"""Revisited Behavior-Regularized Actor-Critic."""

from sb3_qam.rebrac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, ReBRACPolicy
from sb3_qam.rebrac.rebrac import ReBRAC

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "ReBRAC", "ReBRACPolicy"]
