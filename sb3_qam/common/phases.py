"""Phases of training, and what an offline one needs in place of an environment."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback

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

    @property
    def name(self) -> str:
        """In words, for progress bars and output."""
        offline = "offline" if self.objective == "full" else "offline, clone"
        return offline if self.is_offline else "online"


ONLINE = Phase()


def still_step(policy: BasePolicy, n_envs: int, last_obs: Any) -> dict[str, Any]:
    """
    :param policy: The policy, which does not act in an offline phase
    :param n_envs: Number of environments, which do not move in it
    :param last_obs: Their last observations
    :return: What SB3's rollouts leave for callbacks of a step, by name and in its shapes: rewards of 0, no ends, empty
        infos, and the actions in the middle of their space
    """
    scaled = np.zeros((n_envs, *policy.action_space.shape), dtype=np.float32)  # type: ignore[misc]
    return {
        "actions": policy.unscale_action(scaled),
        "buffer_actions": scaled,
        "new_obs": last_obs,
        "rewards": np.zeros(n_envs, dtype=np.float32),
        "dones": np.zeros(n_envs, dtype=bool),
        "infos": [{} for _ in range(n_envs)],
    }


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


class PhaseProgressBarCallback(ProgressBarCallback):
    """
    SB3's progress bar, which says the phase. In an offline one each call is one gradient step, however many
    environments the model has.
    """

    @property
    def _phase(self) -> Phase:
        return getattr(self.model, "_phase", ONLINE)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.pbar.set_description(self._phase.name, refresh=False)

    def _on_step(self) -> bool:
        if not self._phase.is_offline:
            return super()._on_step()
        self.pbar.update(1)
        return True


def with_progress_bar(callback: MaybeCallback) -> list[BaseCallback]:
    """
    :param callback: Whatever ``learn()`` takes
    :return: The same with a progress bar
    """
    if not isinstance(callback, list):
        callback = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
    return [*callback, PhaseProgressBarCallback()]
