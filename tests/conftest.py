import importlib.util
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import settings
from minari.data_collector import EpisodeBuffer

from sb3_qam.datasets.hdf5 import UNCOMPRESSED

# The networks of the tests are tiny: a second thread only gets in the way of tests that run side by side.
th.set_num_threads(1)

# Examples take longer where other work runs
settings.register_profile("no deadline", settings(), deadline=None)
settings.load_profile("no deadline")

# Ids that are not in the cache are looked for on the Hub: tests have a server of their own where they need one
os.environ["HF_HUB_OFFLINE"] = "1"

HAS_GPU, VISIBLE_GPUS = th.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")

# Of Minari 0.5.3, the last one for Python 3.10: it cannot store images as they are, nor read those in Dicts
needs_uncompressed_images = pytest.mark.skipif(not UNCOMPRESSED, reason="this Minari compresses images")

# dm_control's labmaze, which it needs, is built for no Python after 3.12
needs_ogbench = pytest.mark.skipif(importlib.util.find_spec("ogbench") is None, reason="OGBench is not installed")

# Two of the 200 trajectories of real data, both of which pass the goal of task 1
OGBENCH_DATA = Path(__file__).parent / "data" / "ogbench" / "pointmaze-medium-navigate-v0.npz"
OGBENCH_TASK = "pointmaze-medium-navigate-singletask-task1-v0"

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU need one."""
    for item in items:
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session", autouse=True)
def hidden_gpu() -> Iterator[None]:
    """Numbers are those of a CPU, also in processes that tests start and where ``device`` is "auto"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(th.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(autouse=True)
def visible_gpu(request: pytest.FixtureRequest, hidden_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of a GPU see it."""
    if not request.node.get_closest_marker("gpu"):
        return
    monkeypatch.setattr(th.cuda, "is_available", lambda: HAS_GPU)
    if VISIBLE_GPUS is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE_GPUS)


@pytest.fixture(autouse=True)
def minari_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own empty Minari cache."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))


def episode_buffer(episode: dict[str, Any]) -> EpisodeBuffer:
    """An episode has observations, actions, rewards and, if it likes, terminations, truncations and infos."""
    n = len(episode["rewards"])
    return EpisodeBuffer(
        observations=episode["observations"],
        actions=list(episode["actions"]),
        rewards=list(episode["rewards"]),
        terminations=list(episode.get("terminations", [False] * n)),
        truncations=list(episode.get("truncations", [False] * (n - 1) + [True])),
        infos=episode.get("infos"),
    )


def write_dataset(
    episodes: Iterable[dict[str, Any]],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    dataset_id: str | None = None,
    **kwargs: Any,
) -> minari.MinariDataset:
    """Write a real Minari dataset of episodes, as episode_buffer() takes them."""
    return minari.create_dataset_from_buffers(
        dataset_id or f"test/number{next(_numbers)}-v0",
        [episode_buffer(episode) for episode in episodes],
        observation_space=observation_space,
        action_space=action_space,
        algorithm_name="test",
        author="test",
        author_email="test",
        code_permalink="test",
        **kwargs,
    )


def record(
    env: gym.Env, n_episodes: int, policy: Callable[[Any], np.ndarray] | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Episodes of an environment, with random actions unless a policy is given."""
    env.action_space.seed(seed)
    episodes = []
    for number in range(n_episodes):
        observation, _ = env.reset(seed=seed + number)
        observations, steps, done = [observation], [], False
        while not done:
            action = env.action_space.sample() if policy is None else policy(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            steps.append((action, reward, terminated, truncated))
            done = terminated or truncated
        actions, rewards, terminations, truncations = zip(*steps, strict=True)
        stacked: Any = observations
        if isinstance(observation, dict):
            stacked = {key: [each[key] for each in observations] for key in observation}
        episodes.append(
            {
                "observations": stacked,
                "actions": actions,
                "rewards": rewards,
                "terminations": terminations,
                "truncations": truncations,
            }
        )
    return episodes


@pytest.fixture
def pendulum_dataset() -> minari.MinariDataset:
    """Five short episodes of Pendulum with random actions, whose bounds are [-2, 2]."""
    env = gym.make("Pendulum-v1", max_episode_steps=40)
    return write_dataset(record(env, 5), env.observation_space, env.action_space)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only an administrator can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def be_killed_before(n_events: int) -> None:
    """Kill this process before the given one of all the operations on files in Minari's cache that are to come."""
    events = itertools.count()
    root = os.environ["MINARI_DATASETS_PATH"]
    on_files = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.copyfile"}

    def kill(event: str, arguments: tuple) -> None:
        if event in on_files and root in str(arguments[0]) and next(events) == n_events:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
