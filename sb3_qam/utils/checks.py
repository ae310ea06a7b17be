"""Checks of what users pass in, each raising one clear error."""

import math
import numbers
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces

# Networks compute in float32, where anything larger is infinite
FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_positive_int(name: str, value: Any, minimum: int = 1) -> None:
    """
    :param name: Name of the argument
    :param value: Its value
    :param minimum: The smallest value allowed
    :raises ValueError: if the value is not an integer or too small
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")


def check_in_range(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    low_excluded: bool = False,
    high_excluded: bool = False,
) -> None:
    """
    :param name: Name of the argument
    :param value: Its value
    :param low: Lower bound
    :param high: Upper bound
    :param low_excluded: Whether the value must be greater than ``low``
    :param high_excluded: Whether it must be less than ``high``
    :raises ValueError: if the value is not a number in the range, or not finite in float32
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if (
        not is_number
        or not max(low, -FLOAT32_MAX) <= value <= min(high, FLOAT32_MAX)
        or (low_excluded and value == low)
        or (high_excluded and value == high)
    ):
        above = f"greater than {low}" if low_excluded else f"at least {low}"
        below = "" if math.isinf(high) else f" and {'less than' if high_excluded else 'at most'} {high}"
        raise ValueError(f"{name} must be a finite number (in float32) {above}{below}, got {reprlib.repr(value)}.")


def check_one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """
    :param name: Name of the argument
    :param value: Its value
    :param allowed: The values it may have
    :raises ValueError: if it has none of them
    """
    # A list, as what has no hash is in none either
    if value not in list(allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_action_space(action_space: spaces.Space) -> None:
    """
    SB3 scales actions to [-1, 1], and this needs bounds.

    :param action_space: The action space of an environment or a dataset
    :raises ValueError: if it is not a Box of floating-point numbers with finite bounds, low < high
    """
    if not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"sb3-qam needs a continuous action space (gymnasium.spaces.Box), got {action_space}. "
            "For discrete actions use an algorithm such as DQN or PPO."
        )
    if action_space.dtype.kind != "f":
        # Replay buffers would round the scaled actions to -1, 0 and 1
        raise ValueError(
            f"sb3-qam needs actions of a floating-point type, got {action_space}. Wrap the environment in one that "
            "rounds them: gymnasium.wrappers.TransformAction(env, np.rint, Box(low, high, dtype=np.float32))."
        )
    if np.prod(action_space.shape) == 0:
        raise ValueError(f"sb3-qam needs at least one action dimension, got {action_space}.")
    with np.errstate(over="ignore", invalid="ignore"):
        width = action_space.high.astype(np.float32) - action_space.low.astype(np.float32)
    # Bounds near the largest float32 are none, and actions scaled by them overflow
    if not np.isfinite(width).all():
        raise ValueError(
            f"sb3-qam needs finite action bounds, got {action_space}. "
            "Wrap the environment in gymnasium.wrappers.RescaleAction or ClipAction, or give the Box finite bounds."
        )
    if not (action_space.low < action_space.high).all():
        raise ValueError(
            f"sb3-qam needs low < high in every action dimension, got {action_space}. "
            "Remove the dimensions that cannot move from the action space."
        )


def check_observation_space(space: spaces.Space) -> None:
    """
    :param space: The observation space of an environment or a dataset
    :raises ValueError: if it is one of those that SB3 takes and cannot encode
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    if strange := [key for key in parts if not isinstance(key, str)]:
        raise ValueError(f"Keys of observations must be strings, got {strange}: rename them in a wrapper.")
    for part in parts.values():
        if isinstance(part, spaces.MultiDiscrete) and len(part.shape) != 1:
            raise ValueError(
                f"SB3 encodes no observations of {part}, which has {len(part.shape)} axes: flatten it in a wrapper."
            )


def check_same_space(
    what: str, own: spaces.Space, of_environment: spaces.Space, dataset_name: str | None = None
) -> None:
    """
    :param what: "observation" or "action"
    :param own: The space that the data was recorded in, or that the model has
    :param of_environment: The space of the environment (or of the model that is to learn from the data)
    :param dataset_name: Named in the error, ``None`` for a model
    :raises ValueError: if kind, keys, shape or finite bounds differ; two floating-point types may
    """
    difference = space_difference(own, of_environment, hint_at_frames=dataset_name is not None)
    if difference is None:
        return
    if dataset_name is None:
        owner, kind, way_out = "the model", "Model", "the model was trained in"
    else:
        owner, kind = f"dataset '{dataset_name}'", "Dataset"
        way_out = "the data was recorded in (dataset.recover_environment())"
    raise ValueError(
        f"The {what} space of {owner} does not fit the environment: {difference}. {kind}: {own}. "
        f"Environment: {of_environment}. Use the environment {way_out}, or wrap it to match."
    )


def space_difference(first: spaces.Space, second: spaces.Space, hint_at_frames: bool = False) -> str | None:
    """
    The one notion of the same space, for data, models and environments.

    :param first: A space, of a dataset for instance
    :param second: The other one, of an environment for instance
    :param hint_at_frames: Whether to say what to do if the second is one of stacked frames
    :return: What differs, ``None`` if nothing does but the floating-point type and its rounding, or bounds of which one
        is infinite
    """
    if isinstance(first, spaces.Dict) and isinstance(second, spaces.Dict):
        if set(first.spaces) != set(second.spaces):
            return f"keys {sorted(first.spaces)} against {sorted(second.spaces)}"
        differences = ((key, space_difference(part, second[key], hint_at_frames)) for key, part in first.items())
        return next((f"key '{key}', {found}" for key, found in differences if found is not None), None)
    if isinstance(first, spaces.Box) and isinstance(second, spaces.Box):
        if first.shape != second.shape:
            hint = _hint_at_frames(first.shape, second.shape) if hint_at_frames else ""
            return f"shape {first.shape} against {second.shape}{hint}"
        are_floats = all(np.issubdtype(space.dtype, np.floating) for space in (first, second))
        if not are_floats and first.dtype != second.dtype:
            return f"dtype {first.dtype} against {second.dtype}"
        for own, other in ((first.low, second.low), (first.high, second.high)):
            # Infinite ones, such as of arrays that were imported, say nothing
            is_bounded = np.isfinite(own) & np.isfinite(other)
            # float32 bounds written as float64 differ in the last digits
            if not np.allclose(own[is_bounded], other[is_bounded]):
                return f"bounds [{first.low}, {first.high}] against [{second.low}, {second.high}]"
        return None
    return None if first == second else f"{first} against {second}"


def _hint_at_frames(of_dataset: tuple[int, ...], of_environment: tuple[int, ...]) -> str:
    """:return: What to do if one axis of the environment's is as long as that of several frames; nothing if none is"""
    if len(of_dataset) != len(of_environment):
        return ""
    others = [(one, other) for one, other in zip(of_dataset, of_environment, strict=True) if one != other]
    if len(others) != 1 or others[0][0] == 0 or others[0][1] % others[0][0] != 0:
        return ""
    n_stack = others[0][1] // others[0][0]
    return f" (if these are {n_stack} stacked frames: wrap_dataset(dataset, partial(StackFrames, n_stack={n_stack})))"
