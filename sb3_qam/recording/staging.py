"""
Staged episodes: any process writes each to a file, and all are published together in the Minari cache.

If a process is killed at any time, the cache keeps the dataset as last published, and no finished episode is lost.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import minari
import numpy as np
from filelock import FileLock, Timeout
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path

from sb3_qam.datasets.hdf5 import MAIN_FILE, UNCOMPRESSED, has_images
from sb3_qam.datasets.sources import METADATA_FILE, read_metadata
from sb3_qam.utils.atomic import atomic_write, sync

# Hidden, which Minari passes over when it lists datasets
STAGING_FOLDER = ".sb3_qam_collect"
DESCRIPTION_KEY = "sb3_qam_collect"
# An hdf5 file is up to 7 times as large as arrays of a few numbers, and up to a quarter larger than long ones, whose
# last chunks are not full
SMALL_EPISODE = 32 * 1024

Description = dict[str, str | int | bool]


def write_episode(folder: Path, number: int, episode: EpisodeBuffer) -> None:
    """Stage an episode in a file of arrays, without objects that could be programs."""
    arrays: dict[str, np.ndarray] = {}

    def names(value: Any) -> Any:
        """The same structure, with the names of arrays in their places."""
        if isinstance(value, dict):
            return {key: names(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return [names(part) for part in value]
        name = f"array{len(arrays)}"
        arrays[name] = np.asarray(value)
        return name

    present = {key: value for key, value in vars(episode).items() if value is not None}
    structure = json.dumps(names(present))
    with atomic_write(folder / f"{number}.npz") as path:
        np.savez(path, structure=structure, **arrays)  # type: ignore[arg-type]


def read_episode(path: Path) -> EpisodeBuffer:
    """:raises ValueError: if the file is damaged, or holds anything but arrays"""

    def values(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: values(each) for key, each in part.items()}
        return tuple(map(values, part)) if isinstance(part, list) else file[part]

    try:
        with np.load(path) as file:
            return EpisodeBuffer(**values(json.loads(str(file["structure"]))))
    except Exception as error:
        raise ValueError(
            f"The staged episode {path} cannot be read ({error}): remove it, to record it again."
        ) from error


class Staging:
    """
    The staged episodes of one dataset, and the way they are published.

    :param dataset_id: Id of the dataset
    """

    def __init__(self, dataset_id: str) -> None:
        root = get_dataset_path()
        self.dataset_id = dataset_id
        self.dataset_folder = root / dataset_id
        self.folder = root / STAGING_FOLDER / quote(dataset_id, safe="")
        self.episodes_folder = self.folder
        self.finished: set[int] = set()
        #: Number of episodes in the Minari cache
        self.n_published = 0
        self._n_ready = 0

    def has_collected(self) -> bool:
        """:return: Whether an interrupted ``collect()`` has left episodes"""
        return any(self.folder.glob("*/[0-9]*.npz"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        :raises RuntimeError: if another process, which is named, writes this dataset; a lock ends with its process
        """
        folder = self.folder.parent / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{self.folder.name}.lock")
        # Who tries to get a lock empties its file
        holder = folder / f"{self.folder.name}.pid"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pid = holder.read_text() if holder.exists() else "(unknown)"
            raise RuntimeError(
                f"Dataset '{self.dataset_id}' is being written by process {pid}: wait for it, stop it, or choose "
                "another dataset_id."
            ) from None
        try:
            holder.write_text(str(os.getpid()))
            yield
        finally:
            lock.release()

    def begin(self, description: Description, metadata: dict[str, Any] | None = None, **new_storage: Any) -> None:
        """
        Begin a collection, or resume one.

        :param description: What the episodes depend on
        :param metadata: Of a new dataset
        :param new_storage: Spaces and environment of a new dataset, as Minari's storage takes them
        :raises ValueError: if the dataset was not collected by ``collect``, or with another description
        """
        self._metadata = {
            "dataset_id": self.dataset_id,
            "minari_version": minari.__version__,
            DESCRIPTION_KEY: description,
            **(metadata or {}),
        }
        self._new_storage = new_storage
        if self.dataset_folder.exists():
            try:
                published = read_metadata(self.dataset_folder / "data")
                stored = dict(published[DESCRIPTION_KEY])
                if not stored.keys() & description.keys():
                    raise KeyError
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"Dataset '{self.dataset_id}' in the Minari cache was not made by collect(), which resumes only "
                    f"its own: choose another dataset_id, or remove it with `minari delete {self.dataset_id}`."
                ) from None
            different = [
                f"{key} {stored.get(key)!r} there, {description.get(key)!r} here"
                for key in dict.fromkeys([*description, *stored])
                if stored.get(key) != description.get(key)
            ]
            if different:
                raise ValueError(
                    f"Dataset '{self.dataset_id}' is collected with other arguments: {'; '.join(different)}. Resume "
                    f"with those, choose another dataset_id, or remove it with `minari delete {self.dataset_id}`."
                )
            self.n_published = published["total_episodes"]
        # Episodes of other arguments, which may still arrive from the worker of a killed collection, lie elsewhere
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        self.episodes_folder = self.folder / digest[:12]
        self.episodes_folder.mkdir(parents=True, exist_ok=True)
        self.finished = {int(path.stem) for path in self.episodes_folder.glob("[0-9]*.npz")}
        self.finished.update(range(self.n_published))

    def add(self, number: int, n_episodes: int) -> None:
        """
        Publish episodes when there are twice as many as there were: each time, the dataset is copied.

        :param number: Number of an episode that is finished
        :param n_episodes: How many to have there
        """
        self.finished.add(number)
        while self._n_ready in self.finished and self._n_ready < n_episodes:
            self._n_ready += 1
        if self._n_ready >= 2 * max(self.n_published, 1):
            self.publish(self._n_ready)

    def publish(self, n_episodes: int) -> None:
        """
        Bring finished episodes into the Minari cache.

        :param n_episodes: How many to have there, as far as they are finished without a gap
        :raises OSError: if there is not enough room
        """
        n_episodes = next((number for number in range(n_episodes) if number not in self.finished), n_episodes)
        paths = [self.episodes_folder / f"{number}.npz" for number in range(self.n_published, n_episodes)]
        if paths:
            self.write(map(read_episode, paths), len(paths), sum(path.stat().st_size for path in paths))
            for path in paths:
                path.unlink()

    def write(self, episodes: Iterable[EpisodeBuffer], n_episodes: int, n_bytes: int) -> None:
        """
        Write episodes behind those in the Minari cache. Files are written elsewhere, and appear complete.

        :param episodes: The episodes
        :param n_episodes: Their number
        :param n_bytes: The size of their arrays
        :raises OSError: if there is not enough room
        """
        published, data = self.dataset_folder / "data", self.folder / "twin" / "data"
        shutil.rmtree(data.parent, ignore_errors=True)
        is_new = not self.dataset_folder.exists()
        needed = 1.25 * n_bytes + 6 * min(n_bytes, n_episodes * SMALL_EPISODE)
        needed += 0 if is_new else (published / MAIN_FILE).stat().st_size
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            # hdf5 may end the process where it finds no room for what it holds in memory
            raise OSError(
                f"Publishing dataset '{self.dataset_id}' needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are "
                f"free on the disk of {self.folder}. Make room and call it again: finished episodes are kept."
            )
        data.mkdir(parents=True)
        if is_new:
            if not UNCOMPRESSED and has_images(self._new_storage["observation_space"]):
                warnings.warn(
                    f"Minari {minari.__version__} stores images as JPEG only, and what is read is not quite what was "
                    "recorded. Images as they are need Minari 0.5.4, and with it Python 3.11."
                )
            storage = MinariStorage.new(data, data_format="hdf5", **UNCOMPRESSED, **self._new_storage)
            storage.update_metadata(self._metadata)
        else:
            for name in (MAIN_FILE, METADATA_FILE):
                shutil.copyfile(published / name, data / name)
            with h5py.File(data / MAIN_FILE, "a") as file:
                # Where it was killed before the metadata were in place
                for number in range(self.n_published, len(file)):
                    del file[f"episode_{number}"]
            storage = MinariStorage.read(data)
        storage.update_episodes(episodes)
        for name in (MAIN_FILE, METADATA_FILE):
            sync(data / name)
        if is_new:
            namespace = parse_dataset_id(self.dataset_id)[0]
            if namespace is not None and namespace not in list_local_namespaces():
                create_namespace(namespace)
            self.dataset_folder.parent.mkdir(parents=True, exist_ok=True)
            data.parent.rename(self.dataset_folder)
        else:
            # In this order the metadata never promises episodes that the data does not hold
            for name in (MAIN_FILE, METADATA_FILE):
                os.replace(data / name, published / name)
        self.n_published += n_episodes

    def remove(self) -> None:
        """Remove what is staged."""
        shutil.rmtree(self.folder, ignore_errors=True)
