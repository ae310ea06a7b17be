"""Data of OGBench's oracles is recorded in OGBench's own format, always the same from a seed."""

import multiprocessing
import time
from pathlib import Path

import minari
import numpy as np
import pytest

from sb3_qam.recording import collect, import_ogbench, ogbench_oracle, record_ogbench
from sb3_qam.recording.play import is_healthy, success_shares
from tests.conftest import needs_ogbench

pytestmark = [needs_ogbench, pytest.mark.filterwarnings("ignore:.*precision lowered")]
ROWS = 11


def record(path: Path, **kwargs: int) -> bytes:
    return record_ogbench("scene-v0", path, 3, **{"max_episode_steps": ROWS, **kwargs}).read_bytes()


def test_the_file_is_ogbenchs_and_can_be_given_the_rewards_of_any_task(tmp_path: Path):
    record(tmp_path / "scene.npz")
    with np.load(tmp_path / "scene.npz") as file:
        rows = {key: file[key] for key in file.files}
    assert {key: (str(rows[key].dtype), rows[key].shape) for key in rows if key != "recorded"} == {
        "observations": ("float32", (3 * ROWS, 40)),
        "actions": ("float32", (3 * ROWS, 5)),
        "terminals": ("bool", (3 * ROWS,)),
        "qpos": ("float32", (3 * ROWS, 25)),
        "qvel": ("float32", (3 * ROWS, 24)),
        "button_states": ("int64", (3 * ROWS, 2)),
    }
    assert np.flatnonzero(rows["terminals"]).tolist() == [ROWS - 1, 2 * ROWS - 1, 3 * ROWS - 1]
    # The state of a row is that of its observation, where joint angles come first
    np.testing.assert_array_equal(rows["observations"][:, :6], rows["qpos"][:, :6])

    dataset = import_ogbench("scene-play-singletask-task2-v0", tmp_path / "scene.npz")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 3 * (ROWS - 1))
    assert dataset.recover_environment().spec.id == "scene-singletask-task2-v0"
    shares = success_shares("scene-v0", tmp_path / "scene.npz")
    assert list(shares) == [f"scene-singletask-task{number}-v0" for number in range(1, 6)]
    solved = np.concatenate([episode.terminations for episode in dataset])
    assert shares["scene-singletask-task2-v0"] == pytest.approx(solved.mean())


def test_episodes_are_those_of_collect(tmp_path: Path):
    path = record_ogbench("cube-double-v0", tmp_path / "cubes.npz", 2, max_episode_steps=ROWS)
    dataset = collect(ogbench_oracle("cube-double-v0"), "cube-double-v0", "test/cubes-v0", 2, max_episode_steps=ROWS)
    with np.load(path) as file:
        assert "button_states" not in file
        for key, of_episode in {"observations": lambda e: e.observations, "qpos": lambda e: e.infos["qpos"]}.items():
            expected = np.concatenate([of_episode(episode)[:-1] for episode in dataset]).astype(np.float32)
            np.testing.assert_array_equal(file[key], expected)
        np.testing.assert_array_equal(file["actions"], np.concatenate([episode.actions for episode in dataset]))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file_whatever_happens(tmp_path: Path):
    whole = record(tmp_path / "whole.npz")
    assert record(tmp_path / "processes.npz", n_processes=2) == whole
    assert record(tmp_path / "seed.npz", seed=1) != whole

    folder = tmp_path / "killed.npz.episodes"
    child = multiprocessing.get_context("spawn").Process(target=record, args=(tmp_path / "killed.npz",))
    child.start()
    while not list(folder.glob("*/0.npz")):
        time.sleep(0.01)
    child.kill()
    child.join()
    assert not (tmp_path / "killed.npz").exists()
    assert record(tmp_path / "killed.npz") == whole
    assert not folder.exists()


def test_a_file_is_never_replaced(tmp_path: Path):
    whole = record(tmp_path / "scene.npz")
    assert record(tmp_path / "scene.npz") == whole
    with pytest.raises(ValueError, match=r"scene\.npz is there already, and is not what this call would write: remove"):
        record(tmp_path / "scene.npz", seed=1)
    (tmp_path / "other.npz").write_text("something else")
    with pytest.raises(ValueError, match=r"other\.npz is there already"):
        record(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"path must end with \.npz, as OGBench's files do, got scene"):
        record(Path("scene"))
    with pytest.raises(ValueError, match="play data is of manipulation, got 'pointmaze-medium-v0'"):
        record_ogbench("pointmaze-medium-v0", tmp_path / "maze.npz")
    assert minari.list_local_datasets() == {}


def test_a_scene_whose_block_is_out_of_reach_is_recorded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record(tmp_path / "whole.npz")
    verdicts = iter([True, False, True, True])
    monkeypatch.setattr("sb3_qam.recording.play.is_healthy", lambda qpos: next(verdicts))
    record(tmp_path / "anew.npz")
    with np.load(tmp_path / "whole.npz") as first, np.load(tmp_path / "anew.npz") as second:
        same = (first["qpos"] == second["qpos"]).reshape(3, -1).all(axis=1)
    assert same.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("y", "z", "healthy"),
    [(0.0, 0.02, True), (0.28, 0.02, True), (0.29, 0.02, False), (-0.35, 0.066, True), (-0.35, 0.02, False)],
)
def test_a_block_is_in_reach_on_the_table_and_in_the_drawer(y: float, z: float, healthy: bool):
    qpos = np.zeros((5, 25))
    qpos[3, 15:17] = y, z
    assert is_healthy(qpos) is healthy
