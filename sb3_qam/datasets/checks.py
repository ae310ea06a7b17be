"""What is checked of each episode before it becomes training data. Errors name dataset, episode, key and file."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minari import MinariDataset
from minari.dataset.episode_data import EpisodeData

from sb3_qam.datasets.hdf5 import hdf5_file, read_hdf5_episodes

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
    episodes: Iterator[EpisodeData] | None = None
    for number in dataset.episode_indices.tolist():
        place = Place(dataset.id, number, file or Path(dataset.storage.data_path))
        try:
            if episodes is None:
                episodes = read_hdf5_episodes(dataset, file) if file else dataset.iterate_episodes()
            episode = next(episodes)
        except StopIteration:
            raise place.error("is missing") from None
        except (OSError, LookupError, ValueError, TypeError) as error:
            # The libraries below raise any of these where a file is damaged; they name a missing key
            raise place.error(
                f"cannot be read: {error}", "Repair the file, or download or collect it again."
            ) from error
        yield place, episode


def n_steps_of(episode: EpisodeData, place: Place) -> int:
    """
    :param episode: An episode
    :param place: Where it lies
    :return: Its number of steps
    :raises ValueError: if one of its keys has another length than the others, or there is nothing to learn from
    """
    parts = {"observations": -1, "actions": 0, "rewards": 0, "terminations": 0}
    # An episode of n steps has n + 1 observations
    lengths = {key: _length(getattr(episode, key)) + offset for key, offset in parts.items()}
    n_steps = statistics.mode(lengths.values())
    for key, offset in parts.items():
        if lengths[key] != n_steps:
            raise place._replace(key=key).error(
                f"holds {lengths[key] - offset} values, expected {n_steps - offset} in an episode of {n_steps} steps"
            )
    if n_steps < 1:
        raise place._replace(key="actions").error("holds no step")
    if n_steps == 1 and not np.any(episode.terminations):
        raise place._replace(key="terminations").error(
            "holds no termination in an episode of a single step, which teaches what no episode goes on from"
        )
    return n_steps


def _length(values: Any) -> int:
    while isinstance(values, dict):
        values = next(iter(values.values()))
    return len(values)


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
