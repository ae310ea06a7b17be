"""Arrays, and dicts of arrays, treated alike."""

from collections.abc import Callable
from typing import Any


def map_observations(function: Callable[..., Any], *observations: Any) -> Any:
    """
    :param function: Takes one array (or tensor) of each of the observations
    :param observations: Arrays, or dicts of arrays with the same keys
    :return: What the function makes of them, in the same structure
    """
    if isinstance(observations[0], dict):
        return {key: function(*(each[key] for each in observations)) for key in observations[0]}
    return function(*observations)


def n_rows(observations: Any) -> int:
    """
    :param observations: An array or a tensor, or a dict of such
    :return: The number of observations
    """
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
