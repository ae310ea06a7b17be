"""Implicit Flow Q-Learning."""

from sb3_qam.ifql.ifql import IFQL
from sb3_qam.ifql.policies import CnnPolicy, FlowPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["IFQL", "CnnPolicy", "FlowPolicy", "MlpPolicy", "MultiInputPolicy"]
