"""
Episodes on their way into a dataset: from any process to files of their own, and from these into the Minari cache.

Whatever is killed when, the cache holds the dataset as it was published last, and no finished episode is lost.
"""

import json
import os
import pickle
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import minari
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path

from sb3_qam.datasets.hdf5 import MAIN_FILE, UNCOMPRESSED, has_images
from sb3_qam.datasets.sources import METADATA_FILE

try:
    import fcntl
except ImportError:  # Windows, where two collectors do not notice each other
    fcntl = None  # type: ignore[assignment]

# Hidden, which Minari passes over when it lists datasets
STAGING_FOLDER = ".sb3_qam_collect"
DESCRIPTION_KEY = "sb3_qam_collect"
DESCRIPTION_FILE = "description.json"

Description = dict[str, str | int | bool]


def write_episode(folder: Path, number: int, episode: EpisodeBuffer) -> None:
    """
    :param folder: Where episodes are staged
    :param number: Number of the episode
    :param episode: The episode; its file appears when it is complete
    """
    unfinished = folder / f"{number}-unfinished-{os.getpid()}"
    unfinished.write_bytes(pickle.dumps(episode))
    os.replace(unfinished, folder / f"{number}.pickle")


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
        self._new_folder = self.folder.with_name(f"{self.folder.name}-new")
        self._old_folder = self.folder.with_name(f"{self.folder.name}-old")
        self.episodes_folder = self.folder
        self.finished: set[int] = set()
        self._n_ready = 0
        self._description: Description = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        :raises RuntimeError: if another process writes this dataset; a lock ends with its process
        """
        path = self.folder.with_name(f"{self.folder.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(path, "a+") as file:
                if fcntl is not None:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        file.seek(0)
                        raise RuntimeError(
                            f"Dataset '{self.dataset_id}' is being written by process {file.read() or '(unknown)'}: "
                            "wait for it, stop it, or choose another dataset_id."
                        ) from None
                if not _is_file_at(file.fileno(), path):
                    # Removed by the process that had it, between opening and locking
                    continue
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return

    def begin(self, description: Description) -> None:
        """
        Begin a collection, or go on with one.

        :param description: What the episodes depend on
        :raises ValueError: if the dataset was not collected by ``collect``, or with another description
        """
        for leftover in (self._new_folder, self._old_folder):
            shutil.rmtree(leftover, ignore_errors=True)
        self._description = description
        if self.dataset_folder.exists():
            self._check(description, self._published_metadata().get(DESCRIPTION_KEY))
        if self.folder.exists() and not (list(self.folder.glob("*/*.pickle")) or (self.folder / "prepared").exists()):
            # Of a collection that failed at once, and may have been wrong
            self.remove()
        if self.folder.exists():
            staged = json.loads((self.folder / DESCRIPTION_FILE).read_text())
            self._check(description, staged["description"])
        else:
            # An own name, so that a worker that outlived a killed collection does not write into the next one
            staged = {"episodes": uuid.uuid4().hex, "description": description}
            (self._new_folder / staged["episodes"]).mkdir(parents=True)
            (self._new_folder / DESCRIPTION_FILE).write_text(json.dumps(staged))
            self._new_folder.rename(self.folder)
        self.episodes_folder = self.folder / staged["episodes"]
        self._finish_publishing()
        self.finished = {int(path.stem) for path in self.episodes_folder.glob("*.pickle")}
        self.finished.update(range(self.n_published))

    def _check(self, description: Description, stored: Description | None) -> None:
        if stored is None:
            raise ValueError(
                f"Dataset '{self.dataset_id}' in the Minari cache was not made by collect(), which only goes on with "
                f"its own: choose another dataset_id, or remove it with `minari delete {self.dataset_id}`."
            )
        different = [
            f"{key} {stored.get(key)!r} there, {description.get(key)!r} here"
            for key in dict.fromkeys([*description, *stored])
            if stored.get(key) != description.get(key)
        ]
        if different:
            raise ValueError(
                f"Dataset '{self.dataset_id}' is collected with other arguments: {'; '.join(different)}. Go on with "
                f"those, choose another dataset_id, or remove it with `minari delete {self.dataset_id}` and the folder "
                f"{self.folder}."
            )

    def _published_metadata(self) -> dict[str, Any]:
        """
        :return: What Minari knows of the published dataset, nothing if it cannot read it
        """
        try:
            return MinariStorage.read_raw_metadata(self.dataset_folder / "data")
        except ValueError:
            return {}

    @property
    def n_published(self) -> int:
        """
        Number of episodes in the Minari cache.
        """
        return self._published_metadata().get("total_episodes", 0) if self.dataset_folder.exists() else 0

    def n_ready(self, n_episodes: int) -> int:
        """
        :param n_episodes: Number of episodes that are wanted
        :return: How many of them are finished without a gap, from the first one on
        """
        while self._n_ready in self.finished:
            self._n_ready += 1
        return min(self._n_ready, n_episodes)

    def publish(self, n_episodes: int, metadata: dict[str, Any], **new_storage: Any) -> None:
        """
        Bring finished episodes into the Minari cache. Minari's files are written elsewhere, and appear complete.

        :param n_episodes: How many there shall be, all of them finished
        :param metadata: Of a new dataset
        :param new_storage: Spaces and environment of a new dataset
        """
        self._finish_publishing()
        first = self.n_published
        if n_episodes <= first:
            return
        self._publish((self._read_episode(number) for number in range(first, n_episodes)), metadata, **new_storage)
        for number in range(first, n_episodes):
            self._episode_path(number).unlink()

    def publish_whole(self, episodes: Iterable[EpisodeBuffer], metadata: dict[str, Any], **new_storage: Any) -> None:
        """
        Bring all the episodes of a dataset into the Minari cache at once, without staging each.

        :param episodes: The episodes
        :param metadata: Of the dataset
        :param new_storage: Its spaces and environment
        """
        if self.n_published == 0:
            self._publish(episodes, metadata, **new_storage)

    def _publish(self, episodes: Iterable[EpisodeBuffer], metadata: dict[str, Any], **new_storage: Any) -> None:
        unprepared = self.folder / "unprepared"
        shutil.rmtree(unprepared, ignore_errors=True)
        data = unprepared / "data"
        data.mkdir(parents=True)
        if self.n_published > 0:
            for name in (MAIN_FILE, METADATA_FILE):
                shutil.copyfile(self.dataset_folder / "data" / name, data / name)
            storage = MinariStorage.read(data)
        else:
            if not UNCOMPRESSED and has_images(new_storage["observation_space"]):
                warnings.warn(
                    f"Minari {minari.__version__} stores images as JPEG only, and what is read is not quite what was "
                    "recorded. Images as they are need Minari 0.5.4, and with it Python 3.11."
                )
            storage = MinariStorage.new(data, data_format="hdf5", **UNCOMPRESSED, **new_storage)
            storage.update_metadata(
                {
                    "dataset_id": self.dataset_id,
                    "minari_version": minari.__version__,
                    DESCRIPTION_KEY: self._description,
                    **metadata,
                }
            )
        storage.update_episodes(episodes)
        for name in (MAIN_FILE, METADATA_FILE):
            _sync(data / name)
        unprepared.rename(self.folder / "prepared")
        self._finish_publishing()

    def _finish_publishing(self) -> None:
        """
        Go on where publishing was interrupted after everything had been written.
        """
        prepared = self.folder / "prepared"
        if not prepared.exists():
            return
        if self.dataset_folder.exists():
            # In this order the metadata never promises episodes that the data does not hold
            for name in (MAIN_FILE, METADATA_FILE):
                if (prepared / "data" / name).exists():
                    os.replace(prepared / "data" / name, self.dataset_folder / "data" / name)
        elif (prepared / "data" / MAIN_FILE).exists():
            namespace = parse_dataset_id(self.dataset_id)[0]
            if namespace is not None and namespace not in list_local_namespaces():
                create_namespace(namespace)
            self.dataset_folder.parent.mkdir(parents=True, exist_ok=True)
            prepared.rename(self.dataset_folder)
        shutil.rmtree(prepared, ignore_errors=True)

    def _episode_path(self, number: int) -> Path:
        return self.episodes_folder / f"{number}.pickle"

    def _read_episode(self, number: int) -> EpisodeBuffer:
        return pickle.loads(self._episode_path(number).read_bytes())

    def remove(self) -> None:
        """
        Remove what is staged, by its name first: it is never there in part.
        """
        self.folder.rename(self._old_folder)
        shutil.rmtree(self._old_folder, ignore_errors=True)


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    """
    To the disk, so that a power failure does not leave an empty file under the final name.
    """
    with open(path, "rb") as file:
        os.fsync(file.fileno())
