"""What a path holds, and who imports it."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from minari import MinariDataset

from sb3_qam.recording.arrays import import_array_file, open_source
from sb3_qam.recording.lerobot import import_lerobot
from sb3_qam.recording.ogbench import import_ogbench
from sb3_qam.recording.robomimic import import_robomimic

FILES = (".npz", ".hdf5", ".h5")


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
    if not path.exists() and path.suffix not in FILES and path.parent == Path():
        return import_ogbench
    if path.suffix == ".npz":
        return import_array_file
    with closing(open_source(path)) as file:
        is_robomimic: Any = "data" in file
    return import_robomimic if is_robomimic else import_array_file
