"""OGBench's data arrives as OGBench itself gives it."""

import itertools
import multiprocessing
import shutil
import signal
from pathlib import Path

import minari
import numpy as np
import pytest
from gymnasium import spaces

from sb3_qam import QAM
from sb3_qam.datasets.minari import read_episodes
from sb3_qam.recording.ogbench import import_ogbench, split_task_id
from tests.conftest import OGBENCH_DATA as DATA
from tests.conftest import OGBENCH_TASK as TASK
from tests.conftest import be_killed_before, needs_uncompressed_images

ogbench = pytest.importorskip("ogbench")


@pytest.mark.parametrize("task", [1, 3])
def test_every_transition_equals_ogbenchs(task: int, tmp_path: Path):
    task_id = f"pointmaze-medium-navigate-singletask-task{task}-v0"
    for name in ("data.npz", "data-val.npz"):
        shutil.copy(DATA, tmp_path / name)
    _, expected, _ = ogbench.make_env_and_datasets(task_id, dataset_path=str(tmp_path / "data.npz"))

    episodes = read_episodes(import_ogbench(task_id, DATA))
    assert episodes.lengths.tolist() == [1000, 1000]
    is_last = np.zeros(2002, dtype=bool)
    is_last[[1000, 2001]] = True
    np.testing.assert_array_equal(episodes.observations[~is_last], expected["observations"])
    np.testing.assert_array_equal(episodes.observations[~np.roll(is_last, 1)], expected["next_observations"])
    np.testing.assert_array_equal(episodes.actions, expected["actions"])
    np.testing.assert_array_equal(episodes.rewards, expected["rewards"])
    np.testing.assert_array_equal(episodes.terminations, expected["masks"] == 0)
    if task == 1:
        assert episodes.terminations.any()


def test_the_environment_of_the_task_comes_with_the_data():
    dataset = import_ogbench(TASK, DATA)
    env = dataset.recover_environment()
    assert env.spec.id == "pointmaze-medium-singletask-task1-v0"
    assert env.spec.max_episode_steps == 1000
    assert env.unwrapped._reward_task_id == 1
    model = QAM("FlowPolicy", env, offline_dataset=dataset, chunk_size=5, batch_size=16, flow_steps=2)
    model.pretrain(gradient_steps=2)
    model.learn(10, reset_num_timesteps=False)
    assert model.replay_buffer.pos == 10


def test_what_is_in_the_cache_is_opened():
    first = import_ogbench(TASK, DATA)
    assert first.id == f"ogbench/{TASK}"
    assert import_ogbench(TASK).id == first.id
    assert import_ogbench(TASK, DATA, dataset_id="mine/maze-v3").id == "mine/maze-v3"


def test_a_cached_dataset_of_another_task_or_of_other_data_is_refused(tmp_path: Path):
    import_ogbench(TASK, DATA, dataset_id="mine/maze-v0")
    for other in (TASK.replace("task1", "task3"), TASK.replace("navigate", "stitch"), TASK.replace("-task1", "")):
        with pytest.raises(
            ValueError, match=rf"'mine/maze-v0' in the Minari cache is not of '{other}', its .*navigate.*task1-v0\."
        ):
            import_ogbench(other, DATA, dataset_id="mine/maze-v0")
    with np.load(DATA) as file:
        np.savez(tmp_path / "other.npz", **{**file, "actions": -file["actions"]})
    with pytest.raises(
        ValueError, match=r"'mine/maze-v0' in the Minari cache was made of other data than .*other\.npz"
    ):
        import_ogbench(TASK, tmp_path / "other.npz", dataset_id="mine/maze-v0")
    with pytest.raises(FileNotFoundError):
        import_ogbench(TASK, tmp_path / "nothing.npz", dataset_id="mine/maze-v0")
    assert import_ogbench(TASK, DATA, dataset_id="mine/maze-v0").id == "mine/maze-v0"


@needs_uncompressed_images
def test_images_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # What the environment shows does not matter here, and needs OpenGL
    monkeypatch.setattr(
        "ogbench.manipspace.envs.manipspace_env.ManipSpaceEnv.get_pixel_observation",
        lambda self: np.zeros((64, 64, 3), np.uint8),
    )
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    terminals = np.array([0, 0, 1, 0, 0, 1], np.float32)
    np.savez(
        tmp_path / "images.npz",
        observations=images,
        actions=np.zeros((6, 5), np.float32),
        terminals=terminals,
        qpos=np.zeros((6, 21)),
        qvel=np.zeros((6, 20)),
    )
    dataset = import_ogbench("visual-cube-single-play-singletask-task1-v0", tmp_path / "images.npz")
    assert dataset.observation_space == spaces.Box(0, 255, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(np.concatenate([episode.observations for episode in dataset]), images)


def import_until_killed(n_events: int) -> None:
    """Import, and be killed before the given one of all the operations on files in Minari's cache."""
    be_killed_before(n_events)
    import_ogbench(TASK, DATA)


@pytest.mark.kill
def test_killed_anywhere_the_same_call_imports_the_whole():
    whole = read_episodes(import_ogbench(TASK, DATA, dataset_id="mine/whole-v0"))
    for n_events in itertools.count(step=4):
        child = multiprocessing.get_context("fork").Process(target=import_until_killed, args=(n_events,))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        np.testing.assert_array_equal(read_episodes(import_ogbench(TASK, DATA)).rewards, whole.rewards)
        minari.delete_dataset(f"ogbench/{TASK}")
    assert n_events > 10


def test_what_is_not_the_file_of_the_task_is_refused_and_nothing_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has observations of shape \(2,\), and the environment of the task \(28,\)"):
        import_ogbench("cube-single-play-singletask-task2-v0", DATA)
    np.savez(tmp_path / "other.npz", observations=np.zeros((4, 2)))
    with pytest.raises(
        ValueError, match=r"other.npz cannot be read as one of OGBench's npz files, .*actions.*: remove it"
    ):
        import_ogbench(TASK, tmp_path / "other.npz")
    content = DATA.read_bytes()
    broken = {"cut": content[:1000], "text": b"hello", "empty": b"", "flipped": content[:3000] + b"?" + content[3001:]}
    for name, damaged in broken.items():
        (tmp_path / f"{name}.npz").write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"{name}.npz cannot be read as one of OGBench's npz files.*download it a"
        ):
            import_ogbench(TASK, tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match="OGBench has no environment 'pointmaze-medium-singletask-task9-v0'"):
        import_ogbench(TASK.replace("task1", "task9"), DATA)
    with pytest.raises(ValueError, match="'bad id' is not a Minari dataset id, nor"):
        import_ogbench(TASK, DATA, dataset_id="bad id")
    assert minari.list_local_datasets() == {}


def test_ids():
    assert split_task_id("cube-single-play-singletask-task2-v0") == (
        "cube-single-singletask-task2-v0",
        "cube-single-play-v0",
    )
    assert split_task_id(TASK) == ("pointmaze-medium-singletask-task1-v0", "pointmaze-medium-navigate-v0")
    for not_a_task in ("pointmaze-medium-navigate-v0", "Pendulum-v1", "singletask-v0"):
        with pytest.raises(ValueError, match=f"'{not_a_task}' is not the id of an OGBench single task"):
            import_ogbench(not_a_task)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nothing\.npz: leave path out to download"):
        import_ogbench(TASK, tmp_path / "nothing.npz")
