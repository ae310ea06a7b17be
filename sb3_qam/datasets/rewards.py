"""Rewards and terminations as training is to see them, offline and online alike."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sb3_qam.utils.checks import check_in_range

# Under which of these infos say so, in Gymnasium's environments and in OGBench's
SUCCESS_KEYS = ("success", "is_success")


@dataclass(frozen=True)
class RewardTransform:
    """
    What is made of a reward r, in this order. It is the same for offline data, when it is read, and for online
    experience, when it is stored, and is saved with the model.

    :param from_success: r becomes 1 at steps whose info says ``success`` (or ``is_success``), else 0
    :param sparse: r becomes 0 where it is at least ``solved_at``, else -1
    :param solved_at: The reward of a solved task, 1 for rewards that are taken from success
    :param scale: r is multiplied by it
    :param shift: and this is added
    :param terminate_on_success: Steps with success cut the bootstrap
    :raises ValueError: if a number is not finite, or a switch is not a bool
    """

    from_success: bool = False
    sparse: bool = False
    solved_at: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    terminate_on_success: bool = False

    def __post_init__(self) -> None:
        for name in ("solved_at", "scale", "shift"):
            check_in_range(name, getattr(self, name), -np.inf)
        for name in ("from_success", "sparse", "terminate_on_success"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")

    @classmethod
    def make(cls, value: "RewardTransform | Mapping[str, Any] | None") -> "RewardTransform | None":
        """
        :param value: A transform, its arguments by name (as a configuration file has them), or none
        :return: The transform
        :raises ValueError: if it is something else, or an argument is unknown
        """
        if value is None or isinstance(value, cls):
            return value
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or not set(value) <= set(names):
            raise ValueError(
                f"reward_transform must be a RewardTransform, or a dict of {', '.join(names)}, got {value!r}."
            )
        return cls(**value)

    @property
    def needs_success(self) -> bool:
        """Whether infos have to say which steps succeed."""
        return self.from_success or self.terminate_on_success

    def __call__(self, rewards: np.ndarray, successes: np.ndarray | None) -> np.ndarray:
        """
        :param rewards: shape (n,)
        :param successes: shape (n,), needed where :attr:`needs_success`
        :return: The rewards of training, shape (n,)
        """
        if self.from_success:
            assert successes is not None  # for mypy
            rewards = successes.astype(np.float32)
        if self.sparse:
            solved_at = 1.0 if self.from_success else self.solved_at
            # Some environments have float64, and buffers float32: 0.7 + 0.1 is 0.8 in one of them alone
            rewards = np.where(np.asarray(rewards, np.float32) >= np.float32(solved_at), 0.0, -1.0)
        return np.asarray(self.scale * rewards + self.shift, dtype=np.float32)

    def terminations(self, terminations: np.ndarray, successes: np.ndarray | None) -> np.ndarray:
        """
        :param terminations: shape (n,)
        :param successes: shape (n,), needed where :attr:`needs_success`
        :return: Where the bootstrap is cut, shape (n,)
        """
        return terminations if successes is None or not self.terminate_on_success else terminations | successes


def successes_of_episode(infos: Any, n_steps: int, where: str) -> np.ndarray | None:
    """
    :param infos: Infos of a Minari episode; with those of the reset there is one more than there are steps
    :param where: Dataset and episode, for the error
    :return: Whether each step succeeded, shape (n_steps,); ``None`` if they do not report success
    :raises ValueError: if they do not say it of each step
    """
    key = next((key for key in SUCCESS_KEYS if isinstance(infos, dict) and key in infos), None)
    if key is None:
        return None
    values = np.atleast_1d(infos[key])
    one_for_each = values.size in (n_steps, n_steps + 1) and len(values) == values.size
    if not one_for_each or (values.dtype.kind == "f" and np.isnan(values).any()):
        raise ValueError(
            f"{where}: infos do not say for each of {n_steps} steps whether it was a success ({key!r} has the shape "
            f"{values.shape}, or is not a number): record it so, or use a reward_transform without success."
        )
    return values[len(values) - n_steps :].astype(bool).reshape(n_steps)


def says_success(infos: list[dict[str, Any]]) -> bool:
    """
    :param infos: What a ``VecEnv`` said of one step
    :return: Whether any of them says if the step was a success
    """
    return any(key in info for info in infos for key in SUCCESS_KEYS)


def successes_of_step(infos: list[dict[str, Any]]) -> np.ndarray:
    """
    :param infos: What a ``VecEnv`` said of one step
    :return: Whether it succeeded in each environment, shape (n_envs,), by the first of the keys, as offline; steps that
        do not say it did not, as in environments that say it at the end of an episode alone
    """
    return np.array([next((info[key] for key in SUCCESS_KEYS if key in info), False) for info in infos], dtype=bool)
