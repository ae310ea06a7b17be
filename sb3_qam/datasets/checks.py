"""What is checked of each episode before it becomes training data. Errors name dataset, episode, key and file."""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from minari import MinariDataset
from minari.dataset.episode_data import EpisodeData

from sb3_qam.datasets.hdf5 import hdf5_file, read_hdf5_episode

# Kinds of NumPy types that may stand for each other without a loss that matters: float64 data of a float32 space, or
# terminations that were written as 0 and 1. A float where integers belong (an image in [0, 1]) would be cut to 0
REAL, INTEGER = "fiub", "iub"
WAY_OUT = "Repair the data, or leave the episode out with dataset.filter_episodes(...)."


class Place(NamedTuple):
    """
    Where a value comes from; ``str()`` is the beginning of an error.

    :param dataset: Id of the dataset
    :param episode: Number of the episode
    :param file: The file it lies in
    :param key: What of the episode, ``observations['goal']`` for instance
    """

    dataset: str
    episode: int
    file: Path
    key: str = ""

    def __str__(self) -> str:
        return f"Dataset '{self.dataset}', episode {self.episode}" + (f": {self.key}" if self.key else "")

    def error(self, complaint: str, way_out: str = WAY_OUT) -> ValueError:
        """
        :param complaint: What is wrong
        :param way_out: What to do about it
        :return: The error
        """
        return ValueError(f"{self} {complaint} (file {self.file}). {way_out}")


def readable_episodes(dataset: MinariDataset, with_infos: bool = False) -> Iterator[tuple[Place, EpisodeData]]:
    """
    :param dataset: A dataset
    :param with_infos: Whether all infos are needed: otherwise only ``success`` is certain to be read
    :return: Its episodes, and where each lies
    :raises ValueError: if one cannot be read: its file is damaged, or a key is missing
    """
    file = None if with_infos else hdf5_file(dataset)
    with ExitStack() as stack:
        opened: h5py.File | None = None
        for number in dataset.episode_indices.tolist():
            place = Place(dataset.id, number, file or Path(dataset.storage.data_path))
            try:
                if file is None:
                    episode = _read_with_minari(dataset, number)
                else:
                    opened = opened or stack.enter_context(h5py.File(file))
                    episode = read_hdf5_episode(dataset, opened, number)
            except Exception as error:
                # The libraries below raise anything where a file is damaged; they name a missing key
                raise place.error(
                    f"cannot be read: {error}", "Repair the file, or download or collect it again."
                ) from error
            yield place, episode


def _read_with_minari(dataset: MinariDataset, number: int) -> EpisodeData:
    """
    :raises ValueError: if Minari has not read all of it
    """
    # On its own: of several Arrow episodes, Minari opens all before it gives one
    episode = next(iter(dataset.iterate_episodes([number])), None)
    (metadata,) = dataset.storage.get_episode_metadata([number])
    n_steps = metadata["total_steps"]
    if episode is None or (np.size(episode.rewards) < n_steps and dataset.storage.FORMAT != "hdf5"):
        n_read = 0 if episode is None else np.size(episode.rewards)
        raise ValueError(
            f"Minari reads {n_read} of its {n_steps} steps from the format {dataset.storage.FORMAT!r}; hdf5 holds "
            "episodes of any length"
        )
    return episode


def n_steps_of(episode: EpisodeData, place: Place) -> int:
    """
    :param episode: An episode
    :param place: Where it lies
    :return: Its number of steps
    :raises ValueError: if one of its keys has another length than the others, or there is nothing to learn from
    """
    offsets = {"observations": -1, "actions": 0, "rewards": 0, "terminations": 0}
    parts = {name: _first_array(getattr(episode, name), name) for name in offsets}
    for key, values in parts.values():
        if np.ndim(values) == 0:
            raise place._replace(key=key).error(f"holds the single value {values!r}, and not one for each step")
    # An episode of n steps has n + 1 observations
    lengths = {name: len(values) + offsets[name] for name, (_, values) in parts.items()}
    n_steps = statistics.mode(lengths.values())
    for name, (key, values) in parts.items():
        if lengths[name] != n_steps:
            raise place._replace(key=key).error(
                f"holds {len(values)} values, expected {n_steps - offsets[name]} in an episode of {n_steps} steps"
            )
    if n_steps < 1:
        raise place._replace(key="actions").error("holds no step")
    if n_steps == 1 and not np.any(episode.terminations):
        raise place._replace(key="terminations").error(
            "holds no termination in an episode of a single step, which teaches what no episode goes on from"
        )
    return n_steps


def _first_array(values: Any, key: str) -> tuple[str, Any]:
    """
    :param values: An array, or a (nested) dict or tuple of arrays
    :param key: What it is called
    :return: The first array, and what it is called
    """
    while isinstance(values, (dict, tuple)):
        name = next(iter(values)) if isinstance(values, dict) else 0
        key, values = f"{key}[{name!r}]", values[name]
    return key, values


def check_type(values: np.ndarray, target: np.dtype, place: Place) -> None:
    """
    :param values: Values of one key
    :param target: Type of what they are copied to
    :param place: Where they come from
    :raises ValueError: if they are of a kind that does not fit
    """
    allowed = REAL if target.kind == "f" else INTEGER
    if values.dtype.kind not in allowed:
        raise place.error(f"holds {values.dtype} values, which are not {target}")
    if target.kind in "iu" and values.size > 0 and not np.can_cast(values.dtype, target):
        limits = np.iinfo(target)
        if values.min() < limits.min or values.max() > limits.max:
            raise place.error(f"holds values from {values.min()} to {values.max()}, which do not fit into {target}")


def check_shape(values: np.ndarray, shape: tuple[int, ...], place: Place) -> None:
    """
    :param values: Values of one key
    :param shape: The shape they are to have, or to be brought to without losing or repeating any
    :param place: Where they come from
    :raises ValueError: if they have another
    """
    if len(values) != shape[0] or values.size != np.prod(shape):
        raise place.error(f"holds values of shape {values.shape}, expected {shape}")


def check_finite(values: np.ndarray, place: Place) -> None:
    """
    :param values: float32 values of one key, shape (steps, ...)
    :param place: Where they come from
    :raises ValueError: if some are not finite
    """
    # A sum is finite only if all are, and takes a fraction of the time of looking at each
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):
            return
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise place.error(
            f"is not finite (NaN, infinite, or too large for float32) at {bad.sum()} of {len(values)} steps, "
            f"first at step {bad.argmax()}"
        )
