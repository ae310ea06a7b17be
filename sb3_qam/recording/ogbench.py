"""OGBench's data for its single-task environments, as Minari datasets with the rewards of the task."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari import MinariDataset
from minari.data_collector import EpisodeBuffer

from sb3_qam.datasets.sources import OGBENCH_NAMESPACE, check_dataset_id, open_dataset
from sb3_qam.recording.staging import Staging

SINGLE_TASK = "singletask"
# Of the metadata: what the file held that a dataset was made of
CONTENT_KEY = "sb3_qam_content"


def split_task_id(task_id: str) -> tuple[str, str]:
    """
    :param task_id: Such as ``cube-single-play-singletask-task2-v0``
    :return: The ids of the environment and of the file, ``cube-single-singletask-task2-v0`` and
        ``cube-single-play-v0``
    :raises ValueError: if it is not the id of a single task
    """
    parts = task_id.split("-")
    if SINGLE_TASK not in parts[2:]:
        raise ValueError(
            f"'{task_id}' is not the id of an OGBench single task: expected one with the name of the data set before "
            f"and the task after '{SINGLE_TASK}', such as 'cube-single-play-singletask-task2-v0'."
        )
    position = parts.index(SINGLE_TASK)
    return "-".join(parts[: position - 1] + parts[position:]), "-".join([*parts[:position], parts[-1]])


def _content_of(path: str | Path) -> str:
    """
    :param path: An npz file
    :return: Its arrays' names and checksums, which the file has ready, as one
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = [(member.filename, member.CRC) for member in file.infolist()]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no npz file: {error}.") from error
    return hashlib.sha256(repr(members).encode()).hexdigest()


def import_ogbench(task_id: str, path: str | Path | None = None, dataset_id: str | None = None) -> MinariDataset:
    """
    Write OGBench's data into the local Minari cache, with the rewards and terminations of one task, and with the
    task's environment, which ``recover_environment()`` then gives. Images are stored without loss. What is there
    already is opened; it appears complete, so the same call repeats an import that was killed.

    OGBench rewards a state and not what leads there, so a termination can fall into the middle of a trajectory, which
    continues after it.

    :param task_id: Id of a single task, such as ``cube-single-play-singletask-task2-v0``
    :param path: OGBench's npz file; downloaded by ``ogbench`` to its own folder where it is ``None``
    :param dataset_id: Id of the Minari dataset, by default ``ogbench/`` and the id of the task
    :return: The dataset
    :raises ImportError: if the package ``ogbench`` is not installed
    :raises ValueError: if an id is not one, the cached dataset is of another task or of other data, or the file cannot
        be read or is not of the task's environment
    :raises FileNotFoundError: if there is no such file
    :raises RuntimeError: if another process writes the dataset
    """
    try:
        import ogbench
        from ogbench.utils import DEFAULT_DATASET_DIR, download_datasets
    except ImportError as error:
        raise ImportError("OGBench's data needs its package: pip install 'sb3-qam[ogbench]'.") from error
    env_id, file_id = split_task_id(task_id)
    dataset_id = dataset_id or OGBENCH_NAMESPACE + task_id
    # Minari finds out when the dataset lies in its cache already, and fails at every dataset from then on
    check_dataset_id(dataset_id)
    description = f"OGBench's {file_id} with the rewards of {task_id}."
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: leave path out to download the data of {task_id}.")
    if dataset_id in minari.list_local_datasets():
        dataset: Any = open_dataset(dataset_id)
        there = dataset.storage.metadata.get("description")
        if there != description:
            raise ValueError(
                f"Dataset '{dataset_id}' in the Minari cache is not of '{task_id}', its description is {there!r}: "
                f"choose another dataset_id, or remove it with `minari delete {dataset_id}`."
            )
        if path is not None and dataset.storage.metadata.get(CONTENT_KEY) != _content_of(path):
            raise ValueError(
                f"Dataset '{dataset_id}' in the Minari cache was made of other data than {path}: choose another "
                f"dataset_id, or remove it with `minari delete {dataset_id}`."
            )
        return dataset
    if path is None:
        download_datasets([file_id])
        path = Path(DEFAULT_DATASET_DIR).expanduser() / f"{file_id}.npz"

    try:
        env = ogbench.make_env_and_datasets(task_id, env_only=True)
    except gym.error.Error as error:
        raise ValueError(f"OGBench has no environment '{env_id}' for '{task_id}': {error}") from error
    try:
        rows = read_rows(path, env, env_id)
        ends = (np.flatnonzero(rows["terminals"]) + 1).tolist()
        staging = Staging(dataset_id)
        with staging.locked():
            # States are not bounded, whatever the environment says of them
            unbounded = gym.spaces.Box(-np.inf, np.inf, rows["observations"].shape[1:])
            staging.begin(
                {"description": description},
                {
                    "algorithm_name": "OGBench",
                    "author": {"OGBench"},
                    "author_email": {"none"},
                    "code_permalink": "https://github.com/seohongpark/ogbench",
                    "description": description,
                    CONTENT_KEY: _content_of(path),
                },
                observation_space=env.observation_space if env.observation_space.dtype == np.uint8 else unbounded,
                action_space=env.action_space,
                env_spec=env.spec,
            )
            if staging.n_published == 0:
                episodes = (_episode(rows, start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))
                n_bytes = sum(rows[key].nbytes for key in ("observations", "actions", "rewards", "masks"))
                staging.write(episodes, len(ends), n_bytes)
            staging.remove()
        return minari.load_dataset(dataset_id)
    finally:
        env.close()


def read_rows(path: str | Path, env: gym.Env, env_id: str) -> dict[str, np.ndarray]:
    """
    :param path: OGBench's npz file
    :param env: The environment of a single task
    :param env_id: Its id
    :return: The transitions in the file, with the rewards of the task, and masks that are 0 where it is solved
    :raises ValueError: if the file cannot be read, or is not of this environment
    """
    from ogbench.relabel_utils import relabel_dataset
    from ogbench.utils import load_dataset

    ob_dtype = np.uint8 if env.observation_space.dtype == np.uint8 else np.float32
    try:
        rows = load_dataset(path, ob_dtype=ob_dtype, add_info=True)
    except Exception as error:
        # NumPy raises anything, depending on where a file was cut or what it is instead
        raise ValueError(
            f"{path} cannot be read as one of OGBench's npz files, it is cut off or something else ({error!r}): remove "
            "it and download it again, which import_ogbench() does where path is left out."
        ) from error
    for name, space in {"observations": env.observation_space, "actions": env.action_space}.items():
        if rows[name].shape[1:] != space.shape:
            raise ValueError(
                f"{path} has {name} of shape {rows[name].shape[1:]}, and the environment of the task {space.shape}: "
                "it is the file of another environment."
            )
    try:
        relabel_dataset(env_id, env, rows)
    except KeyError as error:
        raise ValueError(f"{path} is not one of OGBench's files: there is no {error.args[0]!r} in it.") from error
    return rows


def _episode(rows: dict[str, np.ndarray], start: int, end: int) -> EpisodeBuffer:
    """:return: The trajectory from one transition to another, which is not of it"""
    truncations = np.zeros(end - start, dtype=bool)
    truncations[-1] = True
    return EpisodeBuffer(
        observations=np.concatenate([rows["observations"][start:end], rows["next_observations"][end - 1 : end]]),
        actions=rows["actions"][start:end],
        rewards=rows["rewards"][start:end],
        terminations=rows["masks"][start:end] == 0,
        truncations=truncations,
    )
