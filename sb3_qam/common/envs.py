"""Environments."""

from typing import Any

import gymnasium as gym
from gymnasium import spaces


class SpacesOnlyEnv(gym.Env):
    """
    Stands in for the environment while a model without one pretrains, because SB3's callbacks ask for it.

    :param observation_space: Observation space
    :param action_space: Action space
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}
