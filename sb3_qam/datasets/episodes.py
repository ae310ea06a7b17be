"""The form in which every data set reaches the offline buffer."""

from collections.abc import Callable
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


def map_space(function: Callable[..., Any], space: spaces.Space, *values: Any, name: str = "") -> Any:
    """
    :param function: Takes a space that is neither Dict nor Tuple, its part of each value, and the part's name
    :param space: Space of observations or actions
    :param values: Values in it
    :param name: What the values are called
    :return: What the function makes of the parts, in the structure of the space
    """

    def part(key: Any) -> Any:
        return map_space(function, space[key], *(each[key] for each in values), name=f"{name}[{key!r}]")  # type: ignore[index]

    if isinstance(space, spaces.Dict):
        return {key: part(key) for key in space}
    if isinstance(space, spaces.Tuple):
        return tuple(part(index) for index in range(len(space)))
    return function(space, *values, name)


def stack_values(space: spaces.Space, values: list[Any]) -> Any:
    """:return: Arrays with one row for each value, in the structure of the space"""
    return map_space(lambda _, *parts: np.stack(parts[:-1]), space, *values)
