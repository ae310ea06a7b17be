"""Where the arrays of a dataset lie: in memory, or in files that are mapped into it."""

import hashlib
import json
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sb3_qam.datasets.episodes import Episodes
from sb3_qam.datasets.minari import allocate_observations, read_episodes, training_spaces
from sb3_qam.datasets.replay_buffer import ReplayBufferDataset
from sb3_qam.datasets.rewards import RewardTransform
from sb3_qam.datasets.sources import OpenDataset
from sb3_qam.datasets.wrapped import WrappedDataset

STORAGES = ("memory", "memmap", "cuda")
# Part of every folder name: files of an earlier version are not opened
FORMAT_VERSION = 2
# For each row that is read, Linux may map as much as a huge page, 2 MB
ROWS_PER_RELEASE = 32
CACHE_VARIABLE = "SB3_QAM_CACHE"


def map_episodes(*datasets: OpenDataset, transform: RewardTransform | None = None) -> Episodes:
    """
    Map files that hold datasets.

    They are written once, in one pass through the datasets, to a folder below ``SB3_QAM_CACHE``
    (``~/.cache/sb3_qam`` by default), and are used again as long as the datasets' own files stay as they are.

    :param datasets: At least one, all of the same spaces
    :param transform: What to make of rewards and terminations
    :return: All episodes, end to end
    :raises ValueError: as :func:`sb3_qam.datasets.minari.read_episodes`; nothing is left behind then
    :raises OSError: if the files cannot be written, or those that are there not be read
    """
    folder = cache_folder(list(datasets), transform)
    # Complete files need no lock, which could not be had where nothing may be written
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Whoever comes second waits, and finds it done
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not folder.exists():
                    _write(list(datasets), folder, transform)
        except OSError as error:
            raise OSError(
                f"The mapped files of '{datasets[0].id}' cannot be written to {folder}: {error}. "
                f"Make room there, or choose another folder with the environment variable {CACHE_VARIABLE}."
            ) from error
    try:
        return _open_mapped(folder, list(datasets))
    except Exception as error:
        # NumPy raises anything, depending on where a file was cut
        raise OSError(
            f"The mapped files in {folder} cannot be read: {error}. Remove that folder: they are written again."
        ) from error


def cache_folder(datasets: list[OpenDataset], transform: RewardTransform | None = None) -> Path:
    """
    :return: Where their mapped files belong: another folder if a file of theirs, the choice of episodes, the wrappers
        or the transform are others
    :raises ValueError: if wrappers have no name, see :func:`~sb3_qam.datasets.wrap_dataset`, or one is a replay buffer
    :raises OSError: if there is no home folder
    """
    described: list[Any] = [FORMAT_VERSION, repr(transform)]
    for dataset in datasets:
        if isinstance(dataset, ReplayBufferDataset):
            raise ValueError(f"{dataset.id} is in memory already: use another offline_storage than 'memmap'.")
        files = sorted(path for path in Path(dataset.storage.data_path).rglob("*") if path.is_file())
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        wrappers = [dataset.key, str(dataset.observation_space)] if isinstance(dataset, WrappedDataset) else []
        described.append([dataset.id, stats, dataset.episode_indices.tolist(), wrappers])
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]
    root = os.path.expanduser(os.environ.get(CACHE_VARIABLE, "~/.cache/sb3_qam"))
    if root.startswith("~"):
        raise OSError(
            f"There is no home folder to keep mapped files in, {root}: choose a folder with the environment variable "
            f"{CACHE_VARIABLE}."
        )
    return Path(root) / "memmap" / digest


def gather(array: np.ndarray, rows: Any) -> np.ndarray:
    """
    :param array: An array, mapped from a file or not
    :param rows: Any NumPy index; of an array that is mapped, an array of row numbers
    :return: ``array[rows]``; of an array that is mapped, only few pages are in memory at a time
    """
    if not isinstance(array, np.memmap):
        return array[rows]
    gathered = np.empty((*rows.shape, *array.shape[1:]), array.dtype)
    for start in range(0, len(rows), ROWS_PER_RELEASE):
        block = slice(start, start + ROWS_PER_RELEASE)
        gathered[block] = array[rows[block]]
        release_pages(array)
    return gathered


def release_pages(array: np.ndarray) -> None:
    """Take the pages of an array, if it is mapped, out of this process; they are read again where they are needed."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _write(datasets: list[OpenDataset], folder: Path, transform: RewardTransform | None) -> None:
    """Write the files of datasets. They appear under their name only when they are complete."""
    unfinished = folder.with_suffix(".unfinished")
    arrays: list[np.memmap] = []

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        path = unfinished / f"{name}.npy"
        arrays.append(np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape))
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error here, and would end the process later
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return arrays[-1]

    def release() -> None:
        for array in arrays:
            array.flush()
            release_pages(array)

    # Of a process that was killed
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        episodes = read_episodes(*datasets, transform=transform, allocate=allocate, release=release)
        release()
        np.save(unfinished / "lengths.npy", episodes.lengths)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _open_mapped(folder: Path, datasets: list[OpenDataset]) -> Episodes:
    """:return: The episodes of datasets whose files are complete, their arrays read-only and mapped"""

    def open_array(name: str, *_: Any) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    return Episodes(
        name="', '".join(dataset.id for dataset in datasets),
        lengths=np.load(folder / "lengths.npy"),
        observations=allocate_observations(open_array, training_spaces(datasets[0])[0], 0),
        actions=open_array("actions"),
        rewards=open_array("rewards"),
        terminations=open_array("terminations"),
    )
