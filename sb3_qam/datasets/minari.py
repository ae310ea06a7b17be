"""Minari datasets as training data: check, convert."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import (
    check_for_nested_spaces,
    get_action_dim,
    get_obs_shape,
    is_image_space,
    is_image_space_channels_first,
)
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_qam.datasets.checks import Place, checked
from sb3_qam.datasets.episodes import Episodes, Observations
from sb3_qam.datasets.rewards import SUCCESS_KEYS, RewardTransform, successes_of_episode
from sb3_qam.datasets.sources import OpenDataset, episodes_of
from sb3_qam.utils.checks import check_action_space, check_observation_space, check_same_space

# Rounding of float32 actions, not worth a warning
ACTION_BOUND_TOLERANCE = 1e-3
# Number of transitions between two of a store's releases
RELEASE_INTERVAL = 100_000


def training_spaces(dataset: OpenDataset) -> tuple[spaces.Space, spaces.Box]:
    """
    The spaces that a policy trained on the dataset has: those SB3 would make of the dataset's own environment,
    with images channel-first.

    :return: Observation space and action space
    :raises ValueError: if SB3 or QAM does not support one of them
    """
    observation_space, action_space = dataset.observation_space, dataset.action_space
    try:
        check_for_nested_spaces(observation_space)
    except NotImplementedError as error:
        raise ValueError(
            f"Dataset '{dataset.id}' has nested observations, which SB3 does not support: {error} Flatten them on both "
            "sides, FlattenObservation(env) and wrap_dataset(dataset, FlattenObservation)."
        ) from error
    check_observation_space(observation_space)
    check_action_space(action_space)
    assert isinstance(action_space, spaces.Box)  # for mypy

    def channels_first(space: spaces.Space) -> spaces.Space:
        return VecTransposeImage.transpose_space(space) if _is_channels_last(space) else space  # type: ignore[arg-type]

    if isinstance(observation_space, spaces.Dict):
        return spaces.Dict({key: channels_first(space) for key, space in observation_space.items()}), action_space
    return channels_first(observation_space), action_space


def _is_channels_last(space: spaces.Space) -> bool:
    return is_image_space(space) and not is_image_space_channels_first(space)  # type: ignore[arg-type]


def check_dataset_spaces(dataset: OpenDataset, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """:raises ValueError: if the spaces of the dataset are not those of an environment or a model"""
    own_observation_space, own_action_space = training_spaces(dataset)
    check_same_space("observation", own_observation_space, observation_space, dataset.id)
    check_same_space("action", own_action_space, action_space, dataset.id)


def _in_memory(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.empty(shape, dtype)


def read_episodes(
    *datasets: OpenDataset,
    transform: RewardTransform | None = None,
    allocate: Callable[[str, tuple[int, ...], np.dtype], np.ndarray] = _in_memory,
    release: Callable[[], None] | None = None,
) -> Episodes:
    """
    Read whole datasets, one after the other, and check them on the way.

    float64 becomes float32, uint8 stays. Actions are scaled to [-1, 1] as SB3 does; those outside the bounds of the
    action space, which no policy can take, are clipped with a warning.

    :param datasets: At least one, all of the same spaces
    :param transform: What to make of rewards and terminations
    :param allocate: Makes an array of a name, shape and type, in memory by default
    :param release: Called now and then, when what has been read so far is not needed soon
    :return: All episodes, end to end
    :raises ValueError: if QAM does not support the spaces, a file cannot be read, a key is missing, of another length
        or type than it should be, or not finite in float32; dataset, episode, key and file are named
    """
    observation_space, action_space = training_spaces(datasets[0])
    n_transitions = sum(dataset.total_steps for dataset in datasets)
    n_episodes = sum(dataset.total_episodes for dataset in datasets)
    name = "', '".join(dataset.id for dataset in datasets)
    try:
        observations = allocate_observations(allocate, observation_space, n_transitions + n_episodes)
        actions = allocate("actions", (n_transitions, get_action_dim(action_space)), np.dtype(np.float32))
        rewards = allocate("rewards", (n_transitions,), np.dtype(np.float32))
        terminations = allocate("terminations", (n_transitions,), np.dtype(bool))
    except (MemoryError, ValueError) as error:
        raise MemoryError(
            f"The {n_transitions} steps of dataset '{name}' do not fit into memory ({error}): use "
            "offline_storage='memmap'."
        ) from error
    lengths = np.zeros(n_episodes, dtype=np.int64)

    successes = np.zeros(n_transitions, dtype=bool) if transform is not None and transform.needs_success else None
    silent = {dataset.id for dataset in datasets}
    start = n_outside = 0
    found = ((dataset.observation_space, *each) for dataset in datasets for each in episodes_of(dataset))
    for number, (recorded_space, place, episode) in enumerate(found):
        lengths[number] = place.n_steps
        rows = slice(start, start + place.n_steps)
        if rows.stop > n_transitions:
            break
        observation_rows = slice(rows.start + number, rows.stop + number + 1)
        _fill(observations, observation_rows, episode.observations, recorded_space, place._replace(key="observations"))
        scaled = scale_actions(episode.actions, action_space, place).reshape(place.n_steps, -1)
        n_outside += int((np.abs(scaled) > 1 + ACTION_BOUND_TOLERANCE).any(axis=1).sum())
        actions[rows] = scaled.clip(-1, 1)
        rewards[rows] = checked(episode.rewards, (place.n_steps,), np.float32, place._replace(key="rewards"))
        terminations[rows] = checked(episode.terminations, (place.n_steps,), bool, place._replace(key="terminations"))
        if successes is not None:
            known = successes_of_episode(
                episode.infos, place.n_steps, f"Dataset '{place.dataset}', episode {place.episode}"
            )
            if known is not None:
                # Some environments report success only when it happens
                silent.discard(place.dataset)
                successes[rows] = known
        start = rows.stop
        if release is not None and start // RELEASE_INTERVAL > rows.start // RELEASE_INTERVAL:
            release()

    if lengths.sum() != n_transitions:
        raise ValueError(
            f"Dataset '{name}': the metadata promise {n_transitions} steps in all, which its episodes do not "
            "have. Download or collect it again."
        )
    if successes is not None and silent:
        raise ValueError(
            f"Dataset '{silent.pop()}': infos do not say of any episode whether it was a success (expected "
            f"{' or '.join(map(repr, SUCCESS_KEYS))} there): record it, or use a reward_transform without success."
        )
    if transform is not None:
        with np.errstate(over="ignore"):
            rewards[:] = transform(rewards, successes)
        if not np.isfinite(rewards).all():
            raise ValueError(f"Dataset '{name}': rewards are not finite in float32 after {transform}.")
        terminations[:] = transform.terminations(terminations, successes)
    if n_outside > 0:
        warnings.warn(
            f"Dataset '{name}': {n_outside} of {n_transitions} actions lie outside the bounds of the action space and "
            "are clipped to them.",
            stacklevel=2,
        )
    return Episodes(name, lengths, observations, actions, rewards, terminations)


def allocate_observations(allocate: Callable[..., np.ndarray], space: spaces.Space, n_rows: int) -> Observations:
    """:return: An array for observations of a policy, or a dict of arrays"""

    def array(name: str, part: spaces.Space) -> np.ndarray:
        dtype = np.dtype(np.float32) if part.dtype == np.float64 else np.dtype(part.dtype)
        return allocate(name, (n_rows, *get_obs_shape(part)), dtype)

    if isinstance(space, spaces.Dict):
        # Keys may be anything, names of files may not
        return {key: array(f"observations-{number}", space[key]) for number, key in enumerate(sorted(space))}
    return array("observations", space)


def _fill(target: Any, rows: slice, values: Any, space: spaces.Space, place: Place) -> None:
    """Copy the observations of an episode into their rows of an array, or of a dict of arrays."""
    if isinstance(space, spaces.Dict):
        for key, array in target.items():
            _fill(array, rows, values[key], space[key], place._replace(key=f"{place.key}[{key!r}]"))
    else:
        values = np.asarray(values)
        if _is_channels_last(space):
            values = VecTransposeImage.transpose_image(values)
        values = checked(values, (rows.stop - rows.start, *target.shape[1:]), target.dtype, place)
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            n_values = space.n if isinstance(space, spaces.Discrete) else space.nvec
            is_beyond = (values < space.start) | (values >= space.start + n_values)
            if is_beyond.any():
                raise place.error(f"holds {values[is_beyond][0]}, which is not in {space}")
        target[rows] = values


def scale_actions(actions: Any, action_space: spaces.Box, place: Place) -> np.ndarray:
    """
    :param actions: Actions of an episode, shape ``(steps, *action_shape)``
    :return: Actions in [-1, 1], as ``BasePolicy.scale_action`` makes them, which needs a policy
    :raises ValueError: if they are of another shape or kind, or not finite
    """
    shape = (place.n_steps, *action_space.shape)
    actions = checked(actions, shape, np.float64, place._replace(key="actions"))
    if (action_space.low == -1).all() and (action_space.high == 1).all():
        return actions
    low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
    return 2.0 * ((actions - low) / (high - low)) - 1.0
