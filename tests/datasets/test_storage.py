"""Mapped files hold what memory would."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qam import QAM
from sb3_qam.datasets.minari import read_episodes
from sb3_qam.datasets.sources import open_datasets
from sb3_qam.datasets.storage import cache_folder, map_episodes
from tests.conftest import episode_buffer, needs_uncompressed_images, record, write_dataset

SMALL = {"batch_size": 16, "flow_steps": 2, "policy_kwargs": {"net_arch": [8]}, "seed": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SB3_QAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_same_episodes(first, second) -> None:
    for key in ("name", "lengths", "actions", "rewards", "terminations"):
        np.testing.assert_array_equal(getattr(first, key), getattr(second, key))
    if isinstance(first.observations, dict):
        assert first.observations.keys() == second.observations.keys()
        for key, part in first.observations.items():
            np.testing.assert_array_equal(part, second.observations[key])
            assert part.dtype == second.observations[key].dtype
    else:
        np.testing.assert_array_equal(first.observations, second.observations)


def test_mapped_episodes_are_those_in_memory(pendulum_dataset):
    expected = read_episodes(pendulum_dataset)
    for _ in range(2):
        mapped = map_episodes(pendulum_dataset)
        assert isinstance(mapped.observations, np.memmap)
        assert not mapped.actions.flags.writeable
        assert_same_episodes(expected, mapped)


@needs_uncompressed_images
def test_dicts_and_images_keep_keys_and_types():
    space = spaces.Dict({"a b": spaces.Box(-1, 1, (2,)), "image": spaces.Box(0, 255, (4, 4, 3), np.uint8)})
    rng = np.random.default_rng(0)
    observations = {
        "a b": rng.uniform(-1, 1, (6, 2)).astype(np.float32),
        "image": rng.integers(0, 256, (6, 4, 4, 3), np.uint8),
    }
    episode = {"observations": observations, "actions": rng.uniform(-1, 1, (5, 1)), "rewards": np.ones(5)}
    dataset = write_dataset([episode], space, spaces.Box(-1, 1, (1,)))
    mapped = map_episodes(dataset)
    assert_same_episodes(read_episodes(dataset), mapped)
    assert mapped.observations["image"].dtype == np.uint8


@pytest.mark.parametrize("variant", [{}, {"chunk_size": 3}], ids=str)
def test_training_on_mapped_data_is_training_on_data_in_memory(variant: dict, pendulum_dataset):
    def train(storage: str) -> th.Tensor:
        env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
        model = QAM("FlowPolicy", env, offline_dataset=pendulum_dataset, offline_storage=storage, **variant, **SMALL)
        model.pretrain(gradient_steps=60)
        return model.learn(10, reset_num_timesteps=False).policy.parameters_to_vector()

    np.testing.assert_array_equal(train("memory"), train("memmap"))


def test_files_are_written_once_and_again_when_the_dataset_changes(cache: Path, pendulum_dataset):
    folder = cache_folder([pendulum_dataset])
    map_episodes(pendulum_dataset)
    written = (folder / "actions.npy").stat().st_mtime_ns
    map_episodes(*open_datasets(pendulum_dataset.id))
    assert (folder / "actions.npy").stat().st_mtime_ns == written
    filtered = pendulum_dataset.filter_episodes(lambda episode: episode.id != 0)
    assert cache_folder([filtered]) != folder
    assert len(map_episodes(filtered).lengths) == 4
    env = gym.make("Pendulum-v1", max_episode_steps=40)
    (episode,) = record(env, 1, seed=9)
    pendulum_dataset.update_dataset_from_buffer([episode_buffer(episode)])
    assert cache_folder([pendulum_dataset]) != folder
    assert len(map_episodes(pendulum_dataset).lengths) == 6


def test_data_that_is_refused_leaves_no_files(cache: Path):
    space = spaces.Box(-1, 1, (1,))
    episode = {"observations": np.zeros((4, 1)), "actions": np.zeros((3, 1)), "rewards": np.array([0, np.nan, 0])}
    dataset = write_dataset([episode], space, space)
    with pytest.raises(ValueError, match="rewards is not finite"):
        map_episodes(dataset)
    assert not any(path.is_dir() for path in (cache / "memmap").iterdir())


@pytest.mark.kill
def test_a_killed_process_leaves_nothing_that_is_taken_for_finished(cache: Path):
    env = gym.make("Pendulum-v1", max_episode_steps=100)
    dataset = write_dataset(record(env, 20), env.observation_space, env.action_space, "test/killed-v0")
    script = (
        "import time\n"
        "from sb3_qam.datasets import storage, minari\n"
        "from sb3_qam.datasets.sources import open_datasets\n"
        "minari.RELEASE_INTERVAL = 100\n"
        "release = storage.release_pages\n"
        "storage.release_pages = lambda array: (release(array), print('half', flush=True), time.sleep(60))\n"
        "storage.map_episodes(*open_datasets('test/killed-v0'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    assert not cache_folder([dataset]).exists()
    assert_same_episodes(read_episodes(dataset), map_episodes(dataset))
    # and what it left is gone
    assert [path for path in (cache / "memmap").iterdir() if path.is_dir()] == [cache_folder([dataset])]


def test_several_threads_write_the_files_once(cache: Path, pendulum_dataset):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: map_episodes(pendulum_dataset), range(4)))
    for episodes in loaded:
        assert_same_episodes(read_episodes(pendulum_dataset), episodes)


def test_a_full_disk_is_an_error_that_says_where(cache: Path, pendulum_dataset, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(OSError, match=rf"cannot be written to {cache}.*No space left.*SB3_QAM_CACHE"):
        map_episodes(pendulum_dataset)
    assert not any(path.is_dir() for path in (cache / "memmap").iterdir())


def test_a_folder_that_cannot_be_written(cache: Path, pendulum_dataset):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file")
    with pytest.raises(OSError, match=r"cannot be written to .*SB3_QAM_CACHE"):
        map_episodes(pendulum_dataset)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:40]),
        lambda file: file.write_bytes(b""),
    ],
)
def test_files_that_are_damaged_say_what_to_remove(cache: Path, pendulum_dataset, damage):
    map_episodes(pendulum_dataset)
    folder = cache_folder([pendulum_dataset])
    damage(folder / "actions.npy")
    with pytest.raises(OSError, match=rf"{folder} cannot be read: .*Remove that folder"):
        map_episodes(pendulum_dataset)
    shutil.rmtree(folder)
    assert_same_episodes(read_episodes(pendulum_dataset), map_episodes(pendulum_dataset))


def test_unknown_storages_are_refused(pendulum_dataset):
    with pytest.raises(ValueError, match="offline_storage must be one of 'memory', 'memmap', 'cuda', got 'disk'"):
        QAM("FlowPolicy", offline_dataset=pendulum_dataset, offline_storage="disk")


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_complete_files_are_used_where_nothing_can_be_written(cache: Path, pendulum_dataset, monkeypatch):
    map_episodes(pendulum_dataset)

    def read_only(*args, **kwargs):
        # What an administrator, who may write anywhere, sees of a disk that is mounted read-only
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "mkdir", read_only)
    assert_same_episodes(read_episodes(pendulum_dataset), map_episodes(pendulum_dataset))


def test_without_a_home_folder_the_variable_is_named(pendulum_dataset, monkeypatch):
    monkeypatch.delenv("SB3_QAM_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(OSError, match=r"no home folder .*SB3_QAM_CACHE"):
        map_episodes(pendulum_dataset)
