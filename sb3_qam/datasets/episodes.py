"""The form in which every data set reaches the offline buffer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

Observations = np.ndarray | dict[str, np.ndarray]


@dataclass(frozen=True)
class Episodes:
    """
    E episodes with T transitions in all, end to end.

    An episode of n transitions has n actions, rewards and terminations, and n + 1 observations.

    :param name: Names the data in errors and logs
    :param lengths: Number of transitions of each episode, shape (E,)
    :param observations: shape ``(T + E, *obs_shape)``, or a dict of such arrays
    :param actions: Actions scaled to [-1, 1], float32, shape (T, action_dim)
    :param rewards: float32, shape (T,)
    :param terminations: bool, shape (T,)
    """

    name: str
    lengths: np.ndarray
    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray


def stack_values(space: spaces.Space, values: list[Any]) -> Any:
    """
    :param space: Space of observations or actions
    :param values: What successive steps gave or took
    :return: Arrays with one row for each step, in the structure of the space
    """
    if isinstance(space, spaces.Dict):
        return {key: stack_values(part, [each[key] for each in values]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stack_values(part, [each[i] for each in values]) for i, part in enumerate(space.spaces))
    return np.stack(values)
