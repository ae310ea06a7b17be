"""Arrays in memory, in npz files, and in flat HDF5 files as D4RL and d3rlpy write them, as Minari datasets."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
from gymnasium import spaces
from minari import MinariDataset

from sb3_qam.datasets.hdf5 import open_hdf5
from sb3_qam.recording.importing import ActionSpace, Recording, Source, import_episodes
from sb3_qam.utils.nested import map_observations

REQUIRED = ("observations", "actions", "rewards", "terminals")
KEYS = {key: key for key in (*REQUIRED, "timeouts", "episode_ends", "next_observations")}
# What the first version of d3rlpy calls them
KEYS["episode_terminals"] = "episode_ends"
# Relative and absolute, of observations that were stored twice
TOLERANCE = (1e-3, 1e-6)


def import_arrays(
    dataset_id: str,
    observations: Any,
    actions: Any,
    rewards: Any,
    terminals: Any,
    timeouts: Any = None,
    episode_ends: Any = None,
    *,
    next_observations: Any = None,
    observation_space: spaces.Space | None = None,
    action_space: ActionSpace = None,
) -> MinariDataset:
    """
    Write arrays of N steps, episodes end to end, into the local Minari cache. They are read episode by episode, so
    memory-mapped ones stay on disk.

    An episode that does not end with a terminal has no observation after its last step, unless there are
    ``next_observations``: that step is left out, with a warning that counts them.

    :param dataset_id: Id of the Minari dataset
    :param observations: Before each step, shape ``(N, *obs_shape)``, or a dict of such arrays
    :param actions: shape ``(N, *action_shape)``
    :param rewards: shape (N,)
    :param terminals: Where the environment terminated, 0 or 1, shape (N,)
    :param timeouts: Where an episode ended otherwise, 0 or 1, shape (N,)
    :param episode_ends: Instead of timeouts, where all episodes end: flags at their last steps, shape (N,), or the
        increasing numbers of steps until the end of each, of which the last is N. A terminal in the middle of an
        episode then cuts the bootstrap only
    :param next_observations: After each step, like ``observations``
    :param observation_space: By default unbounded, of the arrays' shape and type: float64, ``uint8``, or float32 for
        anything else
    :param action_space: A space, low and high of one, ``"data"`` for the range of the data, by default [-1, 1] if the
        data lies in it
    :return: The dataset
    :raises ValueError: if the id is not one or taken, arrays do not fit each other, their values are not finite, no
        episode ends, or the actions need bounds
    :raises RuntimeError: if another process writes the dataset
    """
    columns = dict(observations=observations, actions=actions, rewards=rewards, terminals=terminals)
    columns |= dict(timeouts=timeouts, episode_ends=episode_ends, next_observations=next_observations)
    source = _Flat(Path("<arrays>"), {key: values for key, values in columns.items() if values is not None})
    return import_episodes(source, dataset_id, observation_space, action_space, "Arrays.")


def import_array_file(
    path: str | Path,
    dataset_id: str,
    *,
    observation_space: spaces.Space | None = None,
    action_space: ActionSpace = None,
) -> MinariDataset:
    """
    Write the arrays of a file into the local Minari cache: an npz or HDF5 file with the arguments of
    :func:`import_arrays` as keys (D4RL's files, and those of d3rlpy 1), or what d3rlpy's ``ReplayBuffer.dump()``
    writes. Dict observations are groups of an HDF5 file, and ``observations/KEY`` in an npz file. HDF5 files are read
    episode by episode. Anything else in the file, such as D4RL's ``infos``, is left out.

    :param path: The file
    :param dataset_id: Id of the Minari dataset
    :param observation_space: As for :func:`import_arrays`
    :param action_space: As for :func:`import_arrays`
    :return: The dataset
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it cannot be read or lacks a key, and as for :func:`import_arrays`
    :raises RuntimeError: if another process writes the dataset
    """
    path = Path(path)
    with ExitStack() as stack:
        if path.suffix == ".npz":
            source: Source = _Flat(path, _read_npz(path))
        else:
            file = stack.enter_context(open_source(path))
            source = _D3rlpy(path, file) if "num_episodes" in file else _Flat(path, file)
        return import_episodes(source, dataset_id, observation_space, action_space, f"Arrays of {path.name}.")


def open_source(path: Path) -> h5py.File:
    """
    :param path: An HDF5 file of somebody else
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it cannot be read, or refers to other files
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return open_hdf5(path, look_at_all=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as an HDF5 file, it is cut off or something else ({error}): copy it here again."
        ) from error


def _read_npz(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content: dict[str, Any] = {}
    try:
        with np.load(path) as file:
            for name in file.files:
                key, *rest = name.split("/", 1)
                if key not in KEYS:
                    # For errors, in which the right name may be seen
                    content[key] = None
                elif rest:
                    content.setdefault(key, {})[rest[0]] = file[name]
                else:
                    content[key] = file[name]
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory: store it as HDF5, which is read by episode.") from error
    except Exception as error:
        if "Object arrays" in str(error):
            raise ValueError(f"{path} holds Python objects, which are not read: save arrays of numbers.") from error
        # NumPy raises anything, depending on where a file was cut or what it is instead
        raise ValueError(
            f"{path} cannot be read as an npz file of arrays ({type(error).__name__}), cut off or something else: "
            "copy it here again."
        ) from error
    return content


class _Flat:
    """
    Arrays with all episodes end to end, of which only what says where episodes end is read at once.

    :raises ValueError: if one is missing, or they are not of the same length
    """

    def __init__(self, file: Path, columns: Mapping[str, Any]) -> None:
        self.file = file
        others = [key for key in columns if key not in KEYS]
        self.others = f" (it has {', '.join(others)}, which are not read)" if others else ""
        self.columns = {
            KEYS[key]: dict(values) if isinstance(values, Mapping) else values
            for key, values in columns.items()
            if key in KEYS
        }
        if missing := [key for key in REQUIRED if key not in self.columns]:
            raise ValueError(
                f"There is no {', '.join(map(repr, missing))} in {file}: expected {', '.join(REQUIRED)}, and timeouts, "
                f"episode_ends or next_observations; it has {', '.join(columns) or 'nothing of these'}."
            )
        if {"timeouts", "episode_ends"} <= self.columns.keys():
            raise ValueError(
                f"There are both timeouts and episode_ends in {file}, and only one can say where episodes end: leave "
                "the other out."
            )
        n = None
        for key, values in sorted(self.columns.items(), key=lambda column: column[0] != "actions"):
            is_dict = isinstance(values, dict)
            parts = {f"{key}[{name!r}]": part for name, part in values.items()} if is_dict else {key: values}
            for name, part in parts.items():
                if np.shape(cast(Any, part)) == ():
                    raise ValueError(f"{name} in {file} is a single value, {part!r}, expected one for each step.")
                n = len(part) if n is None else n
                if key != "episode_ends" and len(part) != n:
                    raise ValueError(f"{name} in {file} holds {len(part)} values, expected {n}, as many as actions.")
        assert n is not None  # for mypy
        self.ends = self._find_ends(n)
        self.starts = [0, *self.ends[:-1]]
        self.lengths = {k: end - start for k, (start, end) in enumerate(zip(self.starts, self.ends, strict=True))}

    def _find_ends(self, n: int) -> list[int]:
        ends = self.columns.get("episode_ends")
        if ends is not None:
            ends = np.asarray(ends).reshape(-1)
            if len(ends) != n or not np.isin(ends, (0, 1)).all():
                if (
                    ends.dtype.kind not in "iu"
                    or len(ends) == 0
                    or (np.diff(ends, prepend=0) <= 0).any()
                    or ends[-1] != n
                ):
                    raise ValueError(
                        f"episode_ends in {self.file} are {ends}: expected {n} flags, or the increasing numbers "
                        f"of steps until the end of each episode, of which the last is {n}."
                    )
                return ends.tolist()
            flags = ends.astype(bool)
        else:
            flags = self._flags("terminals", n)
            if "timeouts" in self.columns:
                flags |= self._flags("timeouts", n)
        if not flags.any():
            raise ValueError(
                f"No episode ends in {self.file}{self.others}: give timeouts or episode_ends, [{n}] if it is one "
                "episode."
            )
        # What the arrays have cut off is an episode as well
        return [*(np.flatnonzero(flags[:-1]) + 1).tolist(), n]

    def _flags(self, key: str, n: int) -> np.ndarray:
        values = np.asarray(self.columns[key]).reshape(-1)
        if len(values) != n or not (is_flag := np.isin(values, (0, 1))).all():
            what = f"{values[~is_flag][0]} at step {np.argmin(is_flag)}" if len(values) == n else "more than one column"
            raise ValueError(f"{key} in {self.file} holds {what}: expected 0 and 1.")
        return values.astype(bool)

    def _rows(self, key: str, number: int) -> Any:
        return map_observations(lambda part: part[self.starts[number] : self.ends[number]], self.columns[key])

    def actions(self, number: int) -> Any:
        return self._rows("actions", number)

    def episode(self, number: int) -> Recording:
        observations, actions, rewards, terminals = (self._rows(key, number) for key in REQUIRED)
        if "next_observations" in self.columns:
            observations = map_observations(_with_last, observations, self._rows("next_observations", number))
        return Recording(observations, actions, rewards, terminals)


class _D3rlpy:
    """What d3rlpy's ``ReplayBuffer.dump()`` has written: an array for each episode and key."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.file, self.content = path, file
        try:
            self.lengths = {k: len(file[f"actions_{k}"]) for k in range(int(file["num_episodes"][()]))}
        except Exception as error:
            raise ValueError(f"{path} is not what d3rlpy writes: {error}.") from error

    def actions(self, number: int) -> np.ndarray:
        return self.content[f"actions_{number}"][()]

    def episode(self, number: int) -> Recording:
        parts = sorted(key for key in self.content if key.startswith(f"observations_{number}_"))
        # Of d3rlpy's tuples of observations; it numbers less than ten of them
        observations = {key.rpartition("_")[2]: self.content[key][()] for key in parts}
        terminations = np.zeros(self.lengths[number], bool)
        terminations[-1:] = bool(self.content[f"terminated_{number}"][()])
        return Recording(
            observations or self.content[f"observations_{number}"][()],
            self.actions(number),
            self.content[f"rewards_{number}"][()],
            terminations,
        )


def _with_last(observations: np.ndarray, following: np.ndarray) -> np.ndarray:
    """
    :return: The observations of an episode, and what follows its last step
    :raises ValueError: if a step within it leads elsewhere
    """
    differs = ~np.isclose(following[:-1], observations[1:], *TOLERANCE, equal_nan=True)
    if differs.any():
        step = int(differs.reshape(len(differs), -1).any(1).argmax())
        raise ValueError(
            f"next_observations of step {step} is another than observations of step {step + 1}: where an episode ends "
            "without a terminal, timeouts or episode_ends have to say so"
        )
    return np.concatenate([observations, following[-1:]])
