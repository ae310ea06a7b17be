"""Phases of training, and what an offline one needs in place of an environment."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

# What a phase trains: everything, or the behavior alone
OBJECTIVES = ("full", "bc")


@dataclass(frozen=True)
class Phase:
    """
    A phase of training.

    :param objective: What its updates train, one of OBJECTIVES
    :param gradient_steps: Number of updates on offline data, 0 while learning in an environment
    """

    objective: str = "full"
    gradient_steps: int = 0

    @property
    def is_offline(self) -> bool:
        """Whether its timesteps are gradient steps."""
        return self.gradient_steps > 0


ONLINE = Phase()


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


def still_step(env: VecEnv, observations: Any) -> dict[str, Any]:
    """
    What an environment step leaves for callbacks, of environments that stand still while the model learns offline.

    :param env: The environments
    :param observations: Where they stand
    :return: By the names that it has in SB3's ``collect_rollouts()``, in its shapes: the same observations, rewards of
        0, no episode that ends, no infos, and NaN for the actions, of which there are none
    """
    assert env.action_space.shape is not None  # for mypy
    nothing = np.full((env.num_envs, *env.action_space.shape), np.nan, np.float32)
    return {
        "actions": nothing,
        "buffer_actions": nothing.copy(),
        "new_obs": observations,
        "rewards": np.zeros(env.num_envs, np.float32),
        "dones": np.zeros(env.num_envs, bool),
        "infos": [{} for _ in range(env.num_envs)],
    }


class OfflineProgressBarCallback(ProgressBarCallback):
    """
    SB3's progress bar for an offline phase, where each call is one gradient step, however many environments the model
    has.
    """

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True


def with_offline_progress_bar(callback: MaybeCallback) -> list[BaseCallback]:
    """
    :param callback: Whatever ``learn()`` takes
    :return: The same with a progress bar
    """
    if not isinstance(callback, list):
        callback = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
    return [*callback, OfflineProgressBarCallback()]
