"""What all importers share: spaces from data, checks, and one complete Minari dataset or none."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import minari
import numpy as np
from gymnasium import spaces
from minari import MinariDataset
from minari.data_collector import EpisodeBuffer

from sb3_qam.datasets.checks import REAL, Place, checked
from sb3_qam.datasets.episodes import map_space
from sb3_qam.datasets.sources import check_dataset_id
from sb3_qam.recording.rollout import check_storable
from sb3_qam.recording.staging import Staging
from sb3_qam.utils.checks import check_action_space
from sb3_qam.utils.nested import n_rows

WAY_OUT = "Repair the data, or leave the episode out."
# By which actions in [-1, 1] may miss it
ROUNDING = 1e-6
# A space; low and high, which may be numbers; or "data", for the range of the data
ActionSpace = spaces.Space | tuple[Any, Any] | Literal["data"] | None


@dataclass(frozen=True)
class Recording:
    """
    An episode of n steps as a source has it, unchecked.

    :param observations: n + 1 rows, or n where the observation after the last step is not recorded; or a dict of these
    :param actions: n rows
    :param rewards: n rows
    :param terminations: n rows
    :param successes: n rows, where the source says which steps succeeded
    """

    observations: Any
    actions: Any
    rewards: Any
    terminations: Any
    successes: Any = None


class Source(Protocol):
    """
    Episodes in some format.

    :param file: Where they come from, for errors
    :param lengths: The number of steps of each episode, by its number in the source
    """

    file: Path
    lengths: dict[int, int]

    def episode(self, number: int) -> Recording:
        """Read one. Whatever it raises is reported with the episode and the file."""

    def actions(self, number: int) -> Any:
        """Read the actions of one."""


def import_episodes(
    source: Source,
    dataset_id: str,
    observation_space: spaces.Space | None,
    action_space: ActionSpace,
    description: str,
    flatten_obs: bool = False,
) -> MinariDataset:
    """
    Write episodes, one at a time, into the local Minari cache, where the dataset appears when it is complete.

    :param source: The episodes
    :param dataset_id: Id of the Minari dataset
    :param observation_space: By default unbounded, of the shape and type of the first observation
    :param action_space: By default [-1, 1], if all actions lie in it
    :param description: Of the dataset
    :param flatten_obs: Whether to join the vectors of a dict to one
    :return: The dataset
    :raises ValueError: if the id is not one or taken, or something in the data is wrong
    :raises RuntimeError: if another process writes the dataset
    """
    check_dataset_id(dataset_id)
    staging = Staging(dataset_id)
    with staging.locked():
        if staging.dataset_folder.exists():
            raise ValueError(
                f"There is a dataset '{dataset_id}' in the Minari cache already: choose another id, or remove it with "
                f"`minari delete {dataset_id}`."
            )
        if staging.has_collected():
            raise ValueError(
                f"The collection of '{dataset_id}' was interrupted and has finished episodes: choose another id, "
                f"resume collect(), or remove {staging.folder}."
            )
        if not source.lengths:
            raise ValueError(f"There are no episodes in {source.file}.")
        episodes = _Episodes(source, dataset_id, flatten_obs)
        actions = episodes.space_of_actions(action_space)
        observations = observation_space or episodes.space_of_observations()
        check_storable("observation", observations)
        check_storable("action", actions)
        n_bytes = sum(source.lengths.values()) * (_bytes(observations) + _bytes(actions) + 16)
        try:
            staging.begin(
                {"source": source.file.name},
                {"description": description},
                observation_space=observations,
                action_space=actions,
                env_spec=None,
            )
            staging.write(episodes.buffers(observations, actions), len(source.lengths), n_bytes)
        finally:
            staging.remove()
    if episodes.n_cut:
        warnings.warn(
            f"{episodes.n_cut} of {len(source.lengths)} episodes end without a termination, and the observation after "
            f"their last step is not in {source.file}: that step is left out."
        )
    if episodes.n_beyond:
        warnings.warn(
            f"{episodes.n_beyond} actions in {source.file} lie beyond the bounds that were given, {actions}, and are "
            "clipped in training."
        )
    if episodes.n_left_out:
        warnings.warn(
            f"{episodes.n_left_out} of {len(source.lengths)} episodes are left out: a single step without a "
            "termination, and the observation after it is not there."
        )
    return minari.load_dataset(dataset_id)


class _Episodes:
    """The episodes of a source as Minari's storage takes them."""

    def __init__(self, source: Source, dataset_id: str, flatten_obs: bool) -> None:
        self.source, self.dataset_id, self.flatten_obs = source, dataset_id, flatten_obs
        # Episodes that have lost their last step, and that are not there
        self.n_cut = self.n_left_out = 0
        # Actions outside of their space
        self.n_beyond = 0

    def _place(self, number: int, key: str = "") -> Place:
        return Place(self.dataset_id, number, self.source.file, self.source.lengths[number], key, WAY_OUT)

    def _read(self, read: Callable[[int], Any], number: int) -> Any:
        if self.source.lengths[number] < 1:
            raise self._place(number, "actions").error("holds no step")
        try:
            return read(number)
        except Exception as error:
            # The libraries below raise anything where a file is damaged; they name a missing key
            raise self._place(number).error(f"cannot be read: {error}") from error

    def space_of_observations(self) -> spaces.Space:
        number = next(iter(self.source.lengths))
        observations = self._observations(self._read(self.source.episode, number), number)
        place = self._place(number, "observations")
        if isinstance(observations, dict):
            # Of a dict, Gymnasium would sort the keys
            return spaces.Dict(
                [(key, _box(part, place._replace(key=f"{place.key}[{key!r}]"))) for key, part in observations.items()]
            )
        return _box(observations, place)

    def space_of_actions(self, given: ActionSpace) -> spaces.Space:
        if isinstance(given, spaces.Space):
            if isinstance(given, spaces.Box):
                check_action_space(given)
            return given
        first = next(iter(self.source.lengths))
        actions, place = self._read(self.source.actions, first), self._place(first, "actions")
        if np.asarray(actions).dtype.kind != "f":
            raise place.error(
                "holds no floating-point numbers, and continuous actions do",
                "Convert them, actions.astype(numpy.float32), or store them as they are: give their action_space.",
            )
        box = _box(actions, place)
        if given is not None and given != "data":
            try:
                low, high = (np.broadcast_to(np.asarray(each, box.dtype), box.shape) for each in given)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"Expected action_space to be a space, (low, high) with numbers or {box.shape[0]} values each, or "
                    f"'data', got {given!r}."
                ) from error
            if not ((low < high) & np.isfinite(low) & np.isfinite(high)).all():
                raise ValueError(
                    f'action_space needs finite bounds, low < high in every dimension, got {given!r}: "data" takes '
                    "the range of the data."
                )
            given = spaces.Box(low, high, dtype=box.dtype)
            check_action_space(given)
            return given
        low, high = np.full(box.shape, np.inf), np.full(box.shape, -np.inf)
        for number in self.source.lengths:
            place = self._place(number, "actions")
            values = self._read(self.source.actions, number)
            values = checked(values, (place.n_steps, *box.shape), box.dtype, place)
            low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        if given == "data":
            # No policy can be scaled to bounds that are one
            still = low == high
            return spaces.Box((low - still).astype(box.dtype), (high + still).astype(box.dtype), dtype=box.dtype)
        if max(-low.min(), high.max()) <= 1 + ROUNDING:
            return spaces.Box(-1.0, 1.0, box.shape, box.dtype)
        raise ValueError(
            f"The actions in {self.source.file} lie between {_shown(low)} and {_shown(high)}, not in [-1, 1], and "
            "their bounds have to be known: give action_space=(low, high), numbers or one for each dimension, or "
            'action_space="data" for this range (--action-bounds on the command line).'
        )

    def buffers(self, observation_space: spaces.Space, action_space: spaces.Space) -> Iterator[EpisodeBuffer]:
        for number in self.source.lengths:
            buffer = self._buffer(number, observation_space, action_space)
            if buffer is None:
                self.n_left_out += 1
            else:
                yield buffer
        if self.n_left_out == len(self.source.lengths):
            raise ValueError(
                f"No episode in {self.source.file} has two steps, a termination, or the observation after its step: "
                "there is nothing to learn from. Are terminals, timeouts or episode_ends those of the last steps of "
                "episodes?"
            )

    def _buffer(self, number: int, observation_space: spaces.Space, action_space: spaces.Space) -> EpisodeBuffer | None:
        recording, place = self._read(self.source.episode, number), self._place(number)
        n = place.n_steps
        observations = self._observations(recording, number)
        has_last = n_rows(observations) == n + 1

        def part(space: spaces.Space, values: Any, name: str) -> np.ndarray:
            assert space.shape is not None  # for mypy
            assert space.dtype is not None
            n_values = n + 1 if has_last and name.startswith("observations") else n
            return checked(values, (n_values, *space.shape), space.dtype, place._replace(key=name))

        def parts(space: spaces.Space, values: Any, name: str) -> Any:
            keys = set(space) if isinstance(space, spaces.Dict) else set()
            if missing := keys - set(values if isinstance(values, dict) else ()):
                raise place._replace(key=name).error(f"does not hold {', '.join(map(repr, sorted(missing)))}")
            return map_space(part, space, values, name=name)

        observations = parts(observation_space, observations, "observations")
        actions = parts(action_space, recording.actions, "actions")
        if isinstance(action_space, spaces.Box):
            is_beyond = (actions < action_space.low - ROUNDING) | (actions > action_space.high + ROUNDING)
            self.n_beyond += int(is_beyond.reshape(n, -1).any(axis=1).sum())
        dtype = np.float32 if getattr(recording.rewards, "dtype", None) == np.float32 else np.float64
        rewards = checked(recording.rewards, (n,), dtype, place._replace(key="rewards"))
        terminations = self._flags(recording.terminations, place._replace(key="terminations"))
        n_steps = n
        if not has_last and terminations[-1]:
            # What follows a termination is not used
            observations = map_space(
                lambda _, rows, __: np.concatenate([rows, rows[-1:]]), observation_space, observations
            )
        elif not has_last:
            n_steps -= 1
        if n_steps < 1:
            return None
        self.n_cut += n_steps < n
        truncations = np.zeros(n_steps, bool)
        truncations[-1] = not terminations[n_steps - 1]
        infos = None
        if recording.successes is not None:
            successes = self._flags(recording.successes, place._replace(key="success"))
            # Nothing succeeds at the reset
            infos = {"success": np.append(False, successes[:n_steps])}
        return EpisodeBuffer(
            observations=observations,
            actions=map_space(lambda _, rows, __: rows[:n_steps], action_space, actions),
            rewards=rewards[:n_steps],
            terminations=terminations[:n_steps],
            truncations=truncations,
            infos=infos,
        )

    def _flags(self, values: Any, place: Place) -> np.ndarray:
        flags = checked(values, (place.n_steps,), np.float32, place)
        is_set = flags == 1
        if (others := ~is_set & (flags != 0)).any():
            raise place.error(f"holds {flags[others][0]:g}, and not only 0 and 1")
        return is_set

    def _observations(self, recording: Recording, number: int) -> Any:
        if not self.flatten_obs or not isinstance(recording.observations, dict):
            return recording.observations
        parts = {key: np.asarray(values) for key, values in recording.observations.items()}
        for key, values in parts.items():
            place = self._place(number, f"observations[{key!r}]")
            if values.ndim > 2:
                raise place.error(f"of shape {values.shape[1:]} is not a vector, and cannot be joined with others")
            if len(values) != n_rows(parts):
                raise place.error(f"holds {len(values)} values, other observations {n_rows(parts)}")
        return np.concatenate([values.reshape(len(values), -1) for values in parts.values()], 1)


def _box(values: Any, place: Place) -> spaces.Box:
    """:return: The space of rows like these: bytes stay, other integers become float32, as SB3 makes of them"""
    array = np.asarray(values)
    if array.dtype.kind not in REAL:
        raise place.error(f"holds {array.dtype} values, which are not numbers")
    if array.dtype == np.uint8:
        return spaces.Box(0, 255, array.shape[1:] or (1,), np.uint8)
    dtype = np.float64 if array.dtype == np.float64 else np.float32
    return spaces.Box(-np.inf, np.inf, array.shape[1:] or (1,), dtype)


def _bytes(space: spaces.Space) -> int:
    """:return: Of one value"""
    if isinstance(space, spaces.Dict):
        return sum(map(_bytes, space.values()))
    return int(np.prod(space.shape or 1)) * (space.dtype or np.dtype(np.float64)).itemsize


def _shown(values: np.ndarray) -> str:
    return np.array2string(values, precision=3, separator=", ")
