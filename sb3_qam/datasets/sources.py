"""What a user may give as a dataset: ids, folders, dataset objects (wrapped or not), replay buffers, and
lists of these.
"""

import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import minari
import numpy as np
from minari import MinariDataset
from minari.dataset.episode_data import EpisodeData
from minari.dataset.minari_dataset import DATASET_ID_RE
from minari.dataset.minari_storage import MinariStorage
from minari.storage.datasets_root_dir import get_dataset_path
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_qam.datasets.checks import Place, readable_episodes
from sb3_qam.datasets.replay_buffer import ReplayBufferDataset
from sb3_qam.datasets.wrapped import EnvWrapper, WrappedDataset

OpenDataset: TypeAlias = MinariDataset | WrappedDataset | ReplayBufferDataset
DatasetSource: TypeAlias = str | os.PathLike[str] | OpenDataset | ReplayBuffer
OfflineDataset: TypeAlias = DatasetSource | Sequence[DatasetSource]

METADATA_FILE = "metadata.json"
# Of the metadata, without which a dataset is damaged
REQUIRED = {"dataset_id": str, "observation_space": str, "action_space": str, "total_episodes": int}
# Of the ids of what import_ogbench() writes
OGBENCH_NAMESPACE = "ogbench/"
# Files that are imported, and those of others
IMPORTED = (".npz", ".hdf5", ".h5")
READ_BY_OTHERS = (".csv", ".npy", ".parquet", ".pkl", ".json", ".pt")
# In seconds
CONNECTION_TIMEOUT = 5.0


def open_datasets(source: OfflineDataset) -> list[OpenDataset]:
    """
    :param source: The id of a Minari dataset, which is downloaded if it is not in the local cache, the folder of one
        anywhere, a dataset object (filtered, combined or wrapped, for instance), a replay buffer of SB3, or a list of
        these
    :return: The dataset objects
    :raises FileNotFoundError: if there is no dataset of that id to be had, or a folder holds no dataset
    :raises ValueError: if an id is malformed or given twice, a file is damaged, or there are no transitions
    :raises TypeError: if it is something else
    """
    sources = _as_list(source)
    if not sources:
        raise ValueError("The list of datasets is empty: give at least one.")
    _check_different([os.fspath(each) for each in sources if isinstance(each, (str, os.PathLike))])
    opened = [open_dataset(each) for each in sources]
    # An id, a folder and an object may all mean the same
    _check_different([_name_of_whole(each) for each in opened])
    return opened


def _check_different(names: list[str | None]) -> None:
    """:raises ValueError: if a name is there twice"""
    if twice := [name for number, name in enumerate(names) if name is not None and name in names[:number]]:
        raise ValueError(f"Dataset '{twice[0]}' is given twice, and would count double: leave one out.")


def storable(source: OfflineDataset | None) -> OfflineDataset | None:
    """
    :return: What can be saved with a model in place of a source: ids and folders, also of the objects of whole
        datasets; ``None`` if it has any other object
    """
    if source is None:
        return None
    names = [each if isinstance(each, (str, os.PathLike)) else _name_of_whole(each) for each in _as_list(source)]
    if None in names:
        return None
    return names if isinstance(source, (list, tuple)) else names[0]


def _name_of_whole(source: Any) -> str | None:
    """:return: The id of a dataset object, or its folder outside of the cache; ``None`` if it lacks any episode"""
    if type(source) is not MinariDataset:
        return None
    folder, cached = Path(source.storage.data_path), get_dataset_path(source.id) / "data"
    if not (folder / METADATA_FILE).is_file():
        # Deleted since it was opened
        return None
    if not np.array_equal(source.episode_indices, np.arange(source.storage.total_episodes)):
        return None
    return source.id if cached.is_dir() and cached.samefile(folder) else os.path.realpath(folder)


def with_absolute_folders(source: OfflineDataset | None) -> OfflineDataset | None:
    """:return: The same source, with folders that are found from wherever a process is"""

    def absolute(each: DatasetSource) -> DatasetSource:
        if isinstance(each, os.PathLike) or (isinstance(each, str) and _names_a_folder(each)):
            # Path.expanduser() fails where the home folder is unknown
            return os.path.realpath(os.path.expanduser(each))
        return each

    if source is None:
        return None
    return [absolute(each) for each in source] if isinstance(source, (list, tuple)) else absolute(source)


def _as_list(source: OfflineDataset) -> list[DatasetSource]:
    return list(source) if isinstance(source, (list, tuple)) else [source]


def wrap_dataset(
    source: str | os.PathLike[str] | OpenDataset, *wrappers: EnvWrapper, key: str | None = None
) -> WrappedDataset:
    """
    :param source: Id or folder of a dataset, or a dataset object
    :param wrappers: Wrapper classes, or functions of an environment, applied in this order
    :param key: A name for what all of the wrappers do, by which mapped files are found again: choose another one when
        they do something else. Needed for ``offline_storage="memmap"`` and wrappers that have no name under which they
        could be imported, such as lambdas
    :return: The dataset as the wrapped environment would have given it; it stands wherever a dataset may stand
    :raises ValueError: if a wrapper cannot be used
    :raises TypeError: if it is a list, or a replay buffer
    """
    if isinstance(source, (list, tuple)):
        raise TypeError(f"wrap_dataset() takes one dataset, got {source!r}: wrap each of them.")
    dataset = open_dataset(source)
    if isinstance(dataset, ReplayBufferDataset):
        raise TypeError(
            f"wrap_dataset() takes no replay buffer, whose data comes from the wrapped environment: {source!r}."
        )
    if isinstance(dataset, WrappedDataset):
        dataset, wrappers = dataset.dataset, (*dataset.wrappers, *wrappers)
    return WrappedDataset(dataset, *wrappers, key=key)


def episodes_of(dataset: OpenDataset) -> Iterator[tuple[Place, EpisodeData]]:
    """
    :return: The episodes, and where each lies. Of the infos only ``success`` is certain to be there
    :raises ValueError: if one cannot be read
    """
    return readable_episodes(dataset) if isinstance(dataset, MinariDataset) else dataset.episodes()


def open_dataset(source: DatasetSource) -> OpenDataset:
    """Open a single one, as :func:`open_datasets` does."""
    dataset: OpenDataset
    if isinstance(source, OpenDataset):
        dataset = source
    elif isinstance(source, ReplayBuffer):
        dataset = ReplayBufferDataset(source)
    elif isinstance(source, os.PathLike) or (isinstance(source, str) and _names_a_folder(source)):
        dataset = _open_folder(Path(os.path.expanduser(source)))
    elif isinstance(source, str):
        dataset = _open_id(source)
    elif isinstance(source, (Mapping, np.ndarray)):
        keys = f" with {', '.join(map(str, source))}" if isinstance(source, Mapping) else ""
        raise TypeError(
            f"Arrays, here a {type(source).__name__}{keys}, become a dataset by sb3_qam.recording.import_arrays('mine/"
            "data-v0', observations, actions, rewards, terminals, timeouts), whose id then stands for them."
        )
    else:
        raise TypeError(
            "Expected the id or the folder of a Minari dataset, a minari.MinariDataset (wrapped or not), a replay "
            f"buffer of SB3, or a list of these, got {type(source).__name__}: {reprlib.repr(source)}."
        )
    try:
        n_steps = dataset.total_steps
    except Exception as error:
        # Of a filtered dataset Minari counts them in the file
        raise ValueError(
            f"The episodes of dataset '{dataset.id}' cannot be counted: {error}. Its file is damaged."
        ) from error
    if dataset.total_episodes == 0 or n_steps <= 0:
        raise ValueError(
            f"Dataset '{dataset.id}' is empty ({dataset.total_episodes} episodes, {n_steps} steps): "
            "collect episodes first, or filter less."
        )
    return dataset


def _check_is_no_file(path: str | os.PathLike[str]) -> None:
    """:raises ValueError: if it names a file, which are imported first"""
    suffix = Path(path).suffix
    if suffix in IMPORTED:
        way_out = f"write it into the Minari cache first, `sb3-qam data import {path} mine/data-v0`, and give that id."
    elif suffix in READ_BY_OTHERS or os.path.isfile(path):
        way_out = (
            "read it into arrays, write these into the Minari cache by sb3_qam.recording.import_arrays('mine/data-v0', "
            "observations, actions, rewards, terminals, timeouts), and give that id."
        )
    else:
        return
    raise ValueError(f"'{path}' is a file, and datasets are in Minari's format: {way_out}")


def check_dataset_id(dataset_id: str) -> None:
    """:raises ValueError: if Minari does not take it for one"""
    match = DATASET_ID_RE.fullmatch(dataset_id)
    # The pattern takes ids without a version, and what Minari does with them fails
    if match is None or match.group("version") is None:
        raise ValueError(
            f"'{dataset_id}' is not a Minari dataset id, nor a folder: expected (namespace/)name-v(version), "
            "such as 'D4RL/pointmaze/umaze-v2'."
        )


def _names_a_folder(source: str) -> bool:
    """An id in the cache comes first, should there be a folder of the same name here."""
    is_id = DATASET_ID_RE.fullmatch(source) is not None
    return os.path.isdir(os.path.expanduser(source)) and not (is_id and source in minari.list_local_datasets())


def _open_folder(folder: Path) -> MinariDataset:
    _check_is_no_file(folder)
    # Minari keeps the files of a dataset in a folder 'data' below the one that has its name
    data_path = next((path for path in (folder, folder / "data") if (path / METADATA_FILE).is_file()), None)
    if data_path is None:
        raise FileNotFoundError(
            f"{folder} holds no Minari dataset: there is no {METADATA_FILE} in it, nor in {folder / 'data'}."
        )
    return _open(data_path, "Copy it here again.")


def _open_id(dataset_id: str) -> MinariDataset:
    _check_is_no_file(dataset_id)
    check_dataset_id(dataset_id)
    data_path = get_dataset_path(dataset_id) / "data"
    if not data_path.exists():
        _download(dataset_id)
    return _open(data_path, f"Download it again by `minari download --force {dataset_id}`, or collect it again.")


def _open(data_path: Path, way_out: str) -> MinariDataset:
    try:
        read_metadata(data_path)
        return MinariDataset(data_path)
    except Exception as error:
        # What an interrupted download or copy has left, of which Minari raises anything
        raise ValueError(f"The dataset in {data_path} cannot be opened: {error!r}. {way_out}") from error


def read_metadata(data_path: Path) -> dict[str, Any]:
    """
    :param data_path: The folder of a dataset's files
    :return: Its metadata. They know the spaces: where they do not, Minari would make the environment to ask it, which
        runs whatever code the metadata name
    :raises ValueError: if they cannot be read, or lack what every dataset has
    """
    try:
        metadata = MinariStorage.read_raw_metadata(data_path)
        missing = [key for key, kind in REQUIRED.items() if type(metadata.get(key)) is not kind]
    except Exception as error:
        raise ValueError(f"{METADATA_FILE} is damaged ({type(error).__name__}: {error})") from error
    if missing:
        raise ValueError(f"{METADATA_FILE} does not say {', '.join(missing)}")
    return metadata


def _download(dataset_id: str) -> None:
    """:raises FileNotFoundError: if the dataset is not to be had"""
    known = ", ".join(f"'{name}'" for name in minari.list_local_datasets()) or "none"
    missing = f"No Minari dataset '{dataset_id}' in the local cache (there: {known})"
    if dataset_id.startswith(OGBENCH_NAMESPACE):
        task_id = dataset_id.removeprefix(OGBENCH_NAMESPACE)
        raise FileNotFoundError(f"{missing}. OGBench's data comes from elsewhere: run `sb3-qam data import {task_id}`.")
    try:
        _check_connection()
        minari.download_dataset(dataset_id)
    except Exception as error:
        # Whatever the client of the remote raises, where it is not reached or does not know the dataset
        raise FileNotFoundError(
            f"{missing}, and it cannot be downloaded: {' '.join(str(error).split()).rstrip('.')}. To record one: "
            f"`sb3-qam data collect ENV {dataset_id}`."
        ) from None


def _check_connection() -> None:
    """
    Minari's client tries again for half a minute.

    :raises Exception: any, if the remote does not answer a short request
    """
    if os.environ.get("MINARI_REMOTE", "hf://").startswith("hf://"):
        from huggingface_hub.constants import ENDPOINT
        from huggingface_hub.utils import get_session

        get_session().head(ENDPOINT, timeout=CONNECTION_TIMEOUT)
