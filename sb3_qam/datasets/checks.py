"""Episodes of a dataset, and what is checked of them before they become training data."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from minari import MinariDataset
from minari.dataset.episode_data import EpisodeData

from sb3_qam.datasets.hdf5 import MAIN_FILE, has_images, open_hdf5, read_hdf5_episode

# Kinds of NumPy types that may stand for each other without a loss that matters: float64 data of a float32 space, or
# terminations that were written as 0 and 1. A float where integers belong (an image in [0, 1]) would be cut to 0
REAL, INTEGER = "fiub", "iub"
# An episode of n steps has n + 1 observations
EXTRA_ROWS = {"observations": 1, "actions": 0, "rewards": 0, "terminations": 0}


class Place(NamedTuple):
    """
    Where a value comes from, for errors.

    :param dataset: Id of the dataset
    :param episode: Number of the episode
    :param file: The file or folder it lies in
    :param n_steps: Number of steps of the episode
    :param key: What of the episode, ``observations['goal']`` for instance
    :param way_out: What to do about most errors
    """

    dataset: str
    episode: int
    file: Path
    n_steps: int = 0
    key: str = ""
    way_out: str = "Repair the data, or leave the episode out with dataset.filter_episodes(...)."

    def error(self, complaint: str, way_out: str = "") -> ValueError:
        """Say what is wrong, and what to do about it."""
        what = f"episode {self.episode}" + (f": {self.key}" if self.key else "")
        return ValueError(f"Dataset '{self.dataset}', {what} {complaint} (file {self.file}). {way_out or self.way_out}")


def readable_episodes(dataset: MinariDataset, with_infos: bool = False) -> Iterator[tuple[Place, EpisodeData]]:
    """
    :param dataset: A dataset
    :param with_infos: Whether all infos are needed: otherwise only ``success`` is certain to be read
    :return: Its episodes, and where each lies
    :raises ValueError: if one cannot be read, has keys of another length than the others, or holds nothing to learn
        from
    """
    folder = Path(dataset.storage.data_path)
    is_hdf5 = (folder / MAIN_FILE).is_file()
    # Minari knows how to decompress images
    by_minari = with_infos or (
        getattr(dataset.storage, "jpeg_encoding", True) and has_images(dataset.observation_space)
    )
    file: h5py.File | None = None
    with ExitStack() as stack:
        for number in dataset.episode_indices.tolist():
            place = Place(dataset.id, number, folder / MAIN_FILE if is_hdf5 else folder)
            try:
                if is_hdf5 and file is None:
                    file = stack.enter_context(open_hdf5(place.file, look_at_all=by_minari))
                if file is None or by_minari:
                    # On its own: of several Arrow episodes, Minari opens all before it gives one
                    (episode,) = dataset.iterate_episodes([number])
                    (metadata,) = dataset.storage.get_episode_metadata([number])
                    n_steps = metadata["total_steps"]
                else:
                    episode, n_steps = read_hdf5_episode(dataset, file, number)
            except Exception as error:
                # The libraries below raise anything where a file is damaged; they name a missing key
                way_out = "Repair the file, or download or collect it again."
                raise place.error(f"cannot be read: {error}", way_out) from error
            place = place._replace(n_steps=n_steps)
            for key, extra in EXTRA_ROWS.items():
                _check_length(getattr(episode, key), n_steps + extra, place._replace(key=key))
            if n_steps < 1:
                raise place._replace(key="actions").error("holds no step")
            yield place, episode


def _check_length(values: Any, n_rows: int, place: Place) -> None:
    if isinstance(values, (dict, tuple)):
        for key, part in values.items() if isinstance(values, dict) else enumerate(values):
            _check_length(part, n_rows, place._replace(key=f"{place.key}[{key!r}]"))
    elif np.ndim(values) == 0:
        raise place.error(f"holds the single value {values!r}, and not one for each step")
    elif len(values) != n_rows:
        raise place.error(f"holds {len(values)} values, expected {n_rows} in an episode of {place.n_steps} steps")


def _long_axes(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]


def checked(values: Any, shape: tuple[int, ...], dtype: np.typing.DTypeLike, place: Place) -> np.ndarray:
    """
    :param values: Values of one key of an episode
    :param shape: The shape they are to have, but for axes of length one
    :param dtype: The type they are to have
    :param place: Where they come from
    :return: The values of this shape and type
    :raises ValueError: if they are of a kind or a shape that does not fit, or not finite
    """
    values, target = np.asarray(values), np.dtype(dtype)
    if values.dtype.kind not in (REAL if target.kind == "f" else INTEGER):
        raise place.error(f"holds {values.dtype} values, which are not {target}")
    if target.kind in "iu" and values.size > 0 and not np.can_cast(values.dtype, target):
        limits = np.iinfo(target)
        if values.min() < limits.min or values.max() > limits.max:
            raise place.error(f"holds values from {values.min()} to {values.max()}, which do not fit into {target}")
    if len(values) != shape[0] or _long_axes(values.shape[1:]) != _long_axes(shape[1:]):
        raise place.error(f"holds values of shape {values.shape}, expected {shape}")
    # A sum is finite only if all are, and takes a fraction of the time of looking at each
    with np.errstate(over="ignore", invalid="ignore"):
        values = values.astype(target, copy=False).reshape(shape)
        is_finite = target.kind != "f" or np.isfinite(values.sum())
    if not is_finite:
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if bad.any():
            raise place.error(
                f"is not finite (NaN, infinite, or too large for {target}) at {bad.sum()} of {len(values)} steps, "
                f"first at step {bad.argmax()}"
            )
    return values
