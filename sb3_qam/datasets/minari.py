"""Minari datasets as training data: check, convert."""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

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

from sb3_qam.datasets.checks import Place, check_finite, check_shape, check_type, n_steps_of
from sb3_qam.datasets.episodes import Episodes, Observations
from sb3_qam.datasets.rewards import SUCCESS_KEYS, RewardTransform, successes_of_episode
from sb3_qam.datasets.sources import OpenDataset, episodes_of
from sb3_qam.datasets.wrapped import WrappedDataset
from sb3_qam.utils.checks import check_action_space, check_same_space

# Rounding of float32 actions, not worth a warning
ACTION_BOUND_TOLERANCE = 1e-3
# Number of transitions between two of a store's releases
RELEASE_INTERVAL = 100_000


def training_spaces(dataset: OpenDataset) -> tuple[spaces.Space, spaces.Box]:
    """
    The spaces that a policy trained on the dataset has: those SB3 would make of the dataset's own environment,
    with images channel-first.

    :param dataset: The dataset
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
    check_action_space(action_space)
    assert isinstance(action_space, spaces.Box)  # for mypy
    if isinstance(observation_space, spaces.Dict):
        return spaces.Dict({key: _channels_first(space) for key, space in observation_space.items()}), action_space
    return _channels_first(observation_space), action_space


def _is_channels_last(space: spaces.Space) -> bool:
    return is_image_space(space) and not is_image_space_channels_first(space)  # type: ignore[arg-type]


def _channels_first(space: spaces.Space) -> spaces.Space:
    return VecTransposeImage.transpose_space(space) if _is_channels_last(space) else space  # type: ignore[arg-type]


def check_dataset_spaces(dataset: OpenDataset, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    :param dataset: The dataset
    :param observation_space: Observation space of the environment or model
    :param action_space: Action space of the environment or model
    :raises ValueError: if those of the dataset differ
    """
    own_observation_space, own_action_space = training_spaces(dataset)
    check_same_space("observation", own_observation_space, observation_space, dataset.id)
    check_same_space("action", own_action_space, action_space, dataset.id)


class ArrayStore(Protocol):
    """
    Makes the arrays that datasets are read into.
    """

    def allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """
        :param name: Name of the array
        :param shape: Its shape
        :param dtype: Its type
        :return: The array, to be filled
        """

    def release(self) -> None:
        """
        What has been filled so far is not needed soon.
        """


class Memory:
    """Arrays in memory."""

    def allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """
        :param name: What will be in it
        :param shape: Its shape
        :param dtype: Its type
        :return: An array in memory, not yet filled
        """
        return np.empty(shape, dtype)

    def release(self) -> None:
        """
        It stays where it is.
        """


def read_episodes(
    *datasets: OpenDataset, store: ArrayStore | None = None, transform: RewardTransform | None = None
) -> Episodes:
    """
    Read whole datasets, one after the other, and check them on the way.

    float64 becomes float32, uint8 stays. Actions are scaled to [-1, 1] as SB3 does; those outside the bounds of the
    action space, which no policy can take, are clipped with a warning.

    :param datasets: At least one, all of the same spaces
    :param store: Makes the arrays, in memory by default
    :param transform: What to make of rewards and terminations
    :return: All episodes, end to end
    :raises ValueError: if QAM does not support the spaces, a file cannot be read, a key is missing, of another length
        or type than it should be, or not finite in float32; dataset, episode, key and file are named
    """
    observation_space, action_space = training_spaces(datasets[0])
    n_transitions = sum(dataset.total_steps for dataset in datasets)
    n_episodes = sum(dataset.total_episodes for dataset in datasets)
    store = store or Memory()
    observations = _allocate(store, observation_space, n_transitions + n_episodes)
    actions = store.allocate("actions", (n_transitions, get_action_dim(action_space)), np.dtype(np.float32))
    rewards = store.allocate("rewards", (n_transitions,), np.dtype(np.float32))
    terminations = store.allocate("terminations", (n_transitions,), np.dtype(bool))
    lengths = np.empty(n_episodes, dtype=np.int64)

    speak_of_success = dict.fromkeys((dataset.id for dataset in datasets), False)
    start = n_outside = 0
    name = "', '".join(dataset.id for dataset in datasets)
    all_episodes = ((dataset, *found) for dataset in datasets for found in episodes_of(dataset))
    for number, (dataset, place, episode) in enumerate(all_episodes):
        n_steps = n_steps_of(episode, place)
        rows = slice(start, start + n_steps)
        if rows.stop > n_transitions:
            raise _other_steps(datasets, [*lengths[:number].tolist(), n_steps], n_transitions)
        observation_rows = slice(start + number, start + number + n_steps + 1)
        _fill(observations, observation_rows, episode.observations, dataset.observation_space, place, "observations")
        _fill(actions, rows, _scaled(episode.actions, action_space, n_steps, place), None, place, "actions")
        n_outside += _clip_actions(actions[rows])
        _fill(rewards, rows, episode.rewards, None, place, "rewards")
        _fill(terminations, rows, episode.terminations, None, place, "terminations")
        if transform is not None:
            successes = None
            if transform.needs_success:
                successes = successes_of_episode(episode.infos, n_steps, str(place))
                speak_of_success[dataset.id] |= successes is not None
                # Some environments speak of success only when it happens
                successes = np.zeros(n_steps, dtype=bool) if successes is None else successes
            rewards[rows] = transform(rewards[rows], successes)
            terminations[rows] = transform.terminations(terminations[rows], successes)
        lengths[number] = n_steps
        start += n_steps
        if start // RELEASE_INTERVAL > (start - n_steps) // RELEASE_INTERVAL:
            store.release()
    if start < n_transitions:
        raise _other_steps(datasets, lengths.tolist(), n_transitions)

    silent = [dataset_id for dataset_id, speaks in speak_of_success.items() if not speaks]
    if transform is not None and transform.needs_success and silent:
        raise ValueError(
            f"Dataset '{silent[0]}': infos do not say of any episode whether it was a success (expected "
            f"{' or '.join(map(repr, SUCCESS_KEYS))} there): record it, or use a reward_transform without success."
        )
    if n_outside > 0:
        warnings.warn(
            f"Dataset '{name}': {n_outside} of {n_transitions} actions lie outside the bounds of the action space and "
            "are clipped to them.",
            stacklevel=2,
        )
    return Episodes(name, lengths, observations, actions, rewards, terminations)


def _other_steps(datasets: Sequence[OpenDataset], lengths: list[int], n_transitions: int) -> ValueError:
    """
    :param datasets: Datasets whose metadata speak of more or fewer steps than there are
    :param lengths: The lengths of the episodes read so far
    :param n_transitions: The number of steps that the metadata speak of
    :return: The error, naming the first episode whose own metadata do not agree with it, if there is one
    """
    recorded = [dataset.dataset if isinstance(dataset, WrappedDataset) else dataset for dataset in datasets]
    numbers = [(dataset, number) for dataset in recorded for number in dataset.episode_indices.tolist()]
    which = f"Dataset '{recorded[0].id}'"
    for (dataset, number), length in zip(numbers, lengths, strict=False):
        (metadata,) = dataset.storage.get_episode_metadata([number])
        if metadata.get("total_steps") != length:
            which = f"Dataset '{dataset.id}', episode {number} of {length} steps"
            break
    return ValueError(
        f"{which}: the metadata speak of {n_transitions} steps in all, and there are others (files in "
        f"{recorded[0].storage.data_path}). Download or collect the dataset again."
    )


def _allocate(store: ArrayStore, space: spaces.Space, n_rows: int, name: str = "observations") -> Observations:
    if isinstance(space, spaces.Dict):
        # Keys may be anything, names of files may not
        return {
            key: _allocate(store, space[key], n_rows, f"{name}-{number}")  # type: ignore[misc]
            for number, key in enumerate(sorted(space))
        }
    dtype = np.dtype(np.float32) if space.dtype == np.float64 else np.dtype(space.dtype)
    return store.allocate(name, (n_rows, *get_obs_shape(space)), dtype)


def _fill(target: Any, rows: slice, values: Any, space: spaces.Space | None, episode: Place, key: str) -> None:
    """
    Copy one key of one episode into its rows.

    :param target: The array of all episodes, or a dict of such arrays
    :param rows: The rows of this episode
    :param values: Its values, in the same structure
    :param space: Observation space of the values; images with their channels last are transposed
    :param episode: Where the episode lies
    :param key: Key of the values
    :raises ValueError: if they are too few or too many, of another type, or not finite
    """
    place = episode._replace(key=key)
    if isinstance(target, dict):
        assert isinstance(space, spaces.Dict)  # for mypy
        for part_key, part in target.items():
            if part_key not in values:
                raise place.error(f"holds no '{part_key}'")
            _fill(part, rows, values[part_key], space[part_key], episode, f"{key}['{part_key}']")
        return
    values = np.asarray(values)
    n_rows = rows.stop - rows.start
    check_type(values, target.dtype, place)
    if space is not None and _is_channels_last(space):
        values = VecTransposeImage.transpose_image(values)
    shape = (n_rows, *target.shape[1:])
    check_shape(values, shape, place)
    with np.errstate(over="ignore"):
        target[rows] = values.reshape(shape)
    if target.dtype.kind == "f":
        check_finite(target[rows], place)


def _scaled(actions: Any, action_space: spaces.Box, n_steps: int, episode: Place) -> np.ndarray:
    """
    Checked first: NumPy scales actions of another shape as well.
    """
    place, actions = episode._replace(key="actions"), np.asarray(actions)
    check_type(actions, np.dtype(np.float32), place)
    check_shape(actions, (n_steps, *action_space.shape), place)
    return scale_actions(actions, action_space)


def scale_actions(actions: np.ndarray, action_space: spaces.Box) -> np.ndarray:
    """
    :param actions: Actions of an episode, shape ``(steps, *action_shape)``
    :param action_space: Their space
    :return: Actions in [-1, 1], as ``BasePolicy.scale_action`` makes them, which needs a policy
    """
    if (action_space.low == -1).all() and (action_space.high == 1).all():
        return actions
    # In float64, actions that are in [-1, 1] already stay what they are
    low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
    return 2.0 * ((actions - low) / (high - low)) - 1.0


def _clip_actions(actions: np.ndarray) -> int:
    """
    :param actions: Scaled actions, clipped in place
    :return: How many were further out than rounding explains
    """
    if actions.min() >= -1 and actions.max() <= 1:
        return 0
    n_outside = int((np.abs(actions) > 1 + ACTION_BOUND_TOLERANCE).any(axis=1).sum())
    np.clip(actions, -1, 1, out=actions)
    return n_outside
