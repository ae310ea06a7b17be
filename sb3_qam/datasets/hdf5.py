"""Minari's hdf5 files, read without what training does not need.

Minari itself reads everything: also infos, which can be larger than the observations. It is half as fast.
"""

from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from minari import MinariDataset
from minari.dataset.episode_data import EpisodeData
from minari.dataset.minari_storage import MinariStorage, is_image_space

from sb3_qam.datasets.rewards import SUCCESS_KEYS

MAIN_FILE = "main_data.hdf5"
# For a new dataset: images as they are. Minari 0.5.3, the last one for Python 3.10, always compresses them.
UNCOMPRESSED = {"jpeg_encoding": False} if "jpeg_encoding" in signature(MinariStorage.new).parameters else {}


def hdf5_file(dataset: MinariDataset) -> Path | None:
    """
    :param dataset: A dataset
    :return: Its file, if there is one and its episodes are plain arrays: images can be compressed
    """
    file = Path(dataset.storage.data_path) / MAIN_FILE
    compressed = getattr(dataset.storage, "jpeg_encoding", True) and has_images(dataset.observation_space)
    return None if compressed or not file.is_file() else file


def has_images(space: spaces.Space) -> bool:
    """
    :param space: An observation space, maybe a Dict
    :return: Whether there are images in it, which Minari compresses unless it is told not to
    """
    return any(map(is_image_space, _leaves(space)))


def _leaves(space: spaces.Space) -> Iterator[spaces.Space]:
    if isinstance(space, spaces.Dict):
        for part in space.values():
            yield from _leaves(part)
    else:
        yield space


def read_hdf5_episode(dataset: MinariDataset, file: h5py.File, number: int) -> EpisodeData:
    """
    :param dataset: A dataset
    :param file: Its file, opened
    :param number: Number of an episode
    :return: The episode, with ``success`` as the only info, where it is recorded, and without truncations
    :raises OSError: if the file is damaged, or an array missing, which is named
    """
    name = f"episode_{number}"
    infos = {key: f"{name}/infos/{key}" for key in SUCCESS_KEYS}
    return EpisodeData(
        id=number,
        observations=_read(file, f"{name}/observations", dataset.observation_space),
        actions=_read(file, f"{name}/actions"),
        rewards=_read(file, f"{name}/rewards"),
        terminations=_read(file, f"{name}/terminations"),
        truncations=np.empty(0, dtype=bool),
        infos={key: _read(file, path) for key, path in infos.items() if path in file},
    )


def _read(file: h5py.File, path: str, space: spaces.Space | None = None) -> Any:
    """
    :param file: An open file
    :param path: Path of an array or a group
    :param space: Space of the values: a Dict is a group
    :return: The array, or a dict of arrays
    """
    if isinstance(space, spaces.Dict):
        return {key: _read(file, f"{path}/{key}", part) for key, part in space.items()}
    # The low-level interface: of an episode of 1,000 steps, the other one's bookkeeping costs more than the data
    try:
        dataset = h5py.h5d.open(file.id, path.encode())
        values = np.empty(dataset.shape, dataset.dtype)
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    except (KeyError, OSError) as error:
        raise OSError(f"{path}: {error.args[0]}") from error
    return values
