"""Minari's hdf5 files, read without what training does not need: Minari reads all infos too, and is half as fast."""

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


def has_images(space: spaces.Space) -> bool:
    """:return: Whether there are images in an observation space, which Minari compresses unless it is told not to"""
    return any(map(has_images, space.values())) if isinstance(space, spaces.Dict) else is_image_space(space)


def open_hdf5(path: Path, look_at_all: bool = False) -> h5py.File:
    """
    :param path: A file
    :param look_at_all: Whether to look at all arrays now, and not at each when :func:`read_hdf5_episode` reads it
    :raises OSError: if it is damaged, or parts of it lie in other files: HDF5 would read any file as if it were data
    """

    file = h5py.File(path)
    # What the functions return ends the visit
    found = file.id.links.visit(lambda name, link: name if link.type == h5py.h5l.TYPE_EXTERNAL else None, info=True)
    if found is None and look_at_all:

        def name_of_elsewhere(name: bytes, info: Any) -> bytes | None:
            is_array = info.type == h5py.h5o.TYPE_DATASET
            return name if is_array and _is_elsewhere(h5py.h5d.open(file.id, name)) else None

        found = h5py.h5o.visit(file.id, name_of_elsewhere, info=True)
    if found is not None:
        file.close()
        raise OSError(f"{found.decode()} lies in another file")
    return file


def read_hdf5_episode(dataset: MinariDataset, file: h5py.File, number: int) -> tuple[EpisodeData, int]:
    """
    :return: The episode, with ``success`` as the only info, where it is recorded, and without truncations; and its
        number of steps according to its metadata
    :raises OSError: if the file is damaged, or an array missing, which is named, or in another file
    """
    name = f"episode_{number}"
    n_steps = np.empty((), np.int64)
    h5py.h5a.open(file.id, b"total_steps", obj_name=name.encode()).read(n_steps)
    infos = {key: f"{name}/infos/{key}" for key in SUCCESS_KEYS}
    episode = EpisodeData(
        id=number,
        observations=_read(file, f"{name}/observations", dataset.observation_space),
        actions=_read(file, f"{name}/actions"),
        rewards=_read(file, f"{name}/rewards"),
        terminations=_read(file, f"{name}/terminations"),
        truncations=np.empty(0, dtype=bool),
        infos={key: _read(file, path) for key, path in infos.items() if path in file},
    )
    return episode, int(n_steps)


def _read(file: h5py.File, path: str, space: spaces.Space | None = None) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _read(file, f"{path}/{key}", part) for key, part in space.items()}
    try:
        # The low-level interface: of an episode of 1,000 steps, the other one's bookkeeping costs more than the data
        array = h5py.h5d.open(file.id, path.encode())
        if _is_elsewhere(array):
            raise OSError("it lies in another file")
        values = np.empty(array.shape, array.dtype)
        array.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    except (KeyError, OSError) as error:
        raise OSError(f"{path}: {error.args[0]}") from error
    return values


def _is_elsewhere(array: h5py.h5d.DatasetID) -> bool:
    properties = array.get_create_plist()
    return properties.get_external_count() > 0 or properties.get_layout() == h5py.h5d.VIRTUAL
