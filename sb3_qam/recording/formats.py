"""What a path holds, and who imports it."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
from minari import MinariDataset

from sb3_qam.datasets.sources import IMPORTED, READ_BY_OTHERS
from sb3_qam.recording.arrays import import_array_file, open_source
from sb3_qam.recording.lerobot import import_lerobot
from sb3_qam.recording.ogbench import import_ogbench
from sb3_qam.recording.robomimic import import_robomimic


def find_importer(source: str) -> Callable[..., MinariDataset]:
    """
    :param source: A file, a folder, or the id of an OGBench task
    :return: The function that imports it
    :raises FileNotFoundError: if it is a path where nothing is
    :raises ValueError: if it is a file that cannot be read, or of another kind
    """
    path = Path(source)
    if path.is_dir():
        # Says what is missing
        return import_lerobot
    if not path.exists() and path.suffix in READ_BY_OTHERS:
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.exists() and path.suffix not in IMPORTED and path.parent == Path():
        return import_ogbench
    if path.suffix == ".npz":
        return import_array_file
    if path.is_file() and not h5py.is_hdf5(path) and path.suffix not in IMPORTED:
        raise ValueError(
            f"{path} is neither an npz nor an HDF5 file, nor the folder of a LeRobot dataset. Arrays in other files: "
            "load them and call sb3_qam.recording.import_arrays()."
        )
    with closing(open_source(path)) as file:
        is_robomimic: Any = "data" in file
    return import_robomimic if is_robomimic else import_array_file
