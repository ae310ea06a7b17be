"""What the modules of the contract share."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_qam import IFQL, QAM, ReBRAC

Algorithm = QAM | IFQL | ReBRAC
# Small enough for a few updates in a few milliseconds
SMALL: dict[str, Any] = {
    "batch_size": 8,
    "buffer_size": 250,
    "learning_starts": 10,
    "flow_steps": 2,
    "policy_kwargs": {"net_arch": [16]},
}


def small(algorithm: type[Algorithm] = QAM, /, **kwargs: Any) -> dict[str, Any]:
    """SMALL as far as it concerns an algorithm, with other arguments beside its own; ``policy_kwargs`` are merged."""
    policy_kwargs = SMALL["policy_kwargs"] | kwargs.pop("policy_kwargs", {})
    own = {name: value for name, value in SMALL.items() if name != "flow_steps" or algorithm is not ReBRAC}
    return {**own, **kwargs, "policy_kwargs": policy_kwargs}


class RandomEnv(gym.Env):
    """Observations are drawn from their space, rewards are 1, and an episode is truncated after ten steps."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,))
        self.n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not an action of {self.action_space}")
        self.n_steps += 1
        return self.observation_space.sample(), 1.0, False, self.n_steps >= 10, {}


def images(channels_first: bool = False, size: int = 36, n_channels: int = 3) -> spaces.Box:
    shape = (n_channels, size, size) if channels_first else (size, size, n_channels)
    return spaces.Box(0, 255, shape, np.uint8)


def parameters_of(model: Algorithm) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same_parameters(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return first.keys() == second.keys() and all(th.equal(first[name], second[name]) for name in first)


@pytest.fixture(params=[QAM, IFQL, ReBRAC], ids=lambda algorithm: algorithm.__name__)
def algorithm(request: pytest.FixtureRequest) -> type[Algorithm]:
    return request.param


@pytest.fixture
def model(algorithm: type[Algorithm]) -> Algorithm:
    """A model of Pendulum that has made a few updates."""
    return algorithm("MlpPolicy", "Pendulum-v1", seed=0, **small(algorithm)).learn(20)
