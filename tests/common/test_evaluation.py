"""What an evaluation finds."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate


class EveryOther(gym.Env):
    """
    Episodes of three steps, of which every other one succeeds.

    :param says: How infos say it: ``"always"``, ``"when it happens"`` or ``"never"``
    """

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, says: str) -> None:
        self.says = says
        self.number = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.number += 1
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        success = self.number % 2 == 1 and self.steps == 3
        says = self.says == "always" or (self.says == "when it happens" and success)
        return np.zeros(2, np.float32), 1.0, self.steps == 3, False, {"is_success": success} if says else {}


@pytest.mark.parametrize(
    ("says", "successes"),
    [
        ("always", [True, False, True, False]),
        ("when it happens", [True, False, True, False]),
        ("never", None),
    ],
)
def test_success_is_what_infos_say_at_any_step(says: str, successes: list[bool] | None):
    env = DummyVecEnv([lambda: EveryOther(says)])
    model = QAM("FlowPolicy", env, flow_steps=2, buffer_size=100, policy_kwargs={"net_arch": [8]})
    found = evaluate(model, env, 4)
    assert found.successes == successes
    assert (found.returns, found.lengths) == ([3.0] * 4, [3] * 4)
    assert found.summary()["success"] == (None if successes is None else 0.5)
