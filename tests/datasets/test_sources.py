"""Every way to name a dataset leads to the same data."""

import shutil
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import spaces

from sb3_qam import QAM
from sb3_qam.datasets.hdf5 import UNCOMPRESSED
from sb3_qam.datasets.minari import read_episodes
from sb3_qam.datasets.rewards import RewardTransform
from sb3_qam.datasets.sources import open_datasets, wrap_dataset
from tests.conftest import record, write_dataset

SMALL = {"batch_size": 8, "flow_steps": 2, "policy_kwargs": {"net_arch": [8]}}


def pendulum(dataset_id: str, n_episodes: int = 2, seed: int = 0, **kwargs) -> minari.MinariDataset:
    env = gym.make("Pendulum-v1", max_episode_steps=10)
    episodes = record(env, n_episodes, seed=seed)
    return write_dataset(episodes, env.observation_space, env.action_space, dataset_id, **kwargs)


def test_an_id_a_folder_and_an_object_are_the_same_data(tmp_path: Path):
    dataset = pendulum("test/here-v0")
    root = Path(dataset.spec.data_path).parent
    moved = shutil.copytree(root, tmp_path / "anywhere")
    expected = read_episodes(dataset)
    for source in ("test/here-v0", moved, str(moved), moved / "data", dataset):
        (opened,) = open_datasets(source)
        np.testing.assert_array_equal(read_episodes(opened).observations, expected.observations)


def test_a_list_is_read_one_after_the_other(tmp_path: Path):
    first, second = pendulum("test/first-v0"), pendulum("test/second-v0", n_episodes=3, seed=7)
    filtered = second.filter_episodes(lambda episode: episode.id != 1)
    episodes = read_episodes(*open_datasets(["test/first-v0", filtered]))
    assert episodes.name == "test/first-v0', 'test/second-v0"
    assert episodes.lengths.tolist() == [10] * 4
    parts = [read_episodes(first), read_episodes(filtered)]
    for key in ("observations", "actions", "rewards", "terminations"):
        np.testing.assert_array_equal(getattr(episodes, key), np.concatenate([getattr(part, key) for part in parts]))


def test_a_combined_dataset_is_its_parts():
    parts = [pendulum("test/one-v0"), pendulum("test/two-v0", seed=5)]
    combined = minari.combine_datasets(parts, new_dataset_id="test/both-v0")
    np.testing.assert_array_equal(read_episodes(combined).actions, read_episodes(*parts).actions)


def test_ids_and_folders_are_stored_with_the_model_also_those_of_whole_objects(tmp_path: Path):
    dataset = pendulum("test/stored-v0")
    folder = Path(dataset.spec.data_path)
    moved = minari.MinariDataset(shutil.copytree(folder, tmp_path / "moved"))
    copy = shutil.copytree(folder, tmp_path / "copy")
    whole = dataset.filter_episodes(lambda episode: True)
    for source, stored in (
        (["test/stored-v0", copy], ["test/stored-v0", str(copy.resolve())]),
        (["test/stored-v0", pendulum("test/other-v0", seed=5)], ["test/stored-v0", "test/other-v0"]),
        ([whole], ["test/stored-v0"]),
        (dataset, "test/stored-v0"),
        (moved, str((tmp_path / "moved").resolve())),
    ):
        model = QAM("FlowPolicy", offline_dataset=source, **SMALL).pretrain(gradient_steps=2)
        model.save(tmp_path / "model")
        # The object itself is not touched
        assert model.offline_dataset is source or isinstance(source, list)
        loaded = QAM.load(tmp_path / "model")
        assert loaded.offline_dataset == stored
        assert loaded.pretrain(gradient_steps=1).offline_buffer.size() == model.offline_buffer.size()


def test_a_dataset_and_its_id_are_the_same_dataset_twice():
    dataset = pendulum("test/twice-v0")
    for other in (dataset, dataset.spec.data_path, Path(dataset.spec.data_path).parent):
        with pytest.raises(ValueError, match="Dataset 'test/twice-v0' is given twice"):
            QAM("FlowPolicy", offline_dataset=["test/twice-v0", other], **SMALL)


def test_objects_that_are_no_whole_dataset_are_asked_for_again(tmp_path: Path):
    dataset = pendulum("test/part-v0")
    part = dataset.filter_episodes(lambda episode: episode.id > 0)
    other_order = minari.MinariDataset(dataset.storage, episode_indices=np.array([1, 0]))
    for source in (part, ["test/part-v0", part], wrap_dataset(dataset), other_order):
        QAM("FlowPolicy", offline_dataset=source, **SMALL).pretrain(gradient_steps=2).save(tmp_path / "model")
        with pytest.raises(ValueError, match=r"trained with dataset 'test/part-v0'.*which is not stored"):
            QAM.load(tmp_path / "model").pretrain(gradient_steps=1)


def test_a_dataset_that_was_deleted_before_saving_is_asked_for_again(tmp_path: Path):
    model = QAM("FlowPolicy", offline_dataset=pendulum("test/gone-v0"), **SMALL).pretrain(gradient_steps=2)
    minari.delete_dataset("test/gone-v0")
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="trained with dataset 'test/gone-v0'"):
        QAM.load(tmp_path / "model").pretrain(gradient_steps=1)


def test_the_environment_is_recovered_from_the_dataset():
    spec = gym.make("Pendulum-v1", max_episode_steps=10, g=5.0).spec
    pendulum("test/recover-v0", env=spec)
    (dataset,) = open_datasets("test/recover-v0")
    env = dataset.recover_environment()
    model = QAM("FlowPolicy", env, offline_dataset="test/recover-v0", learning_starts=5, **SMALL)
    assert model.env.get_attr("g") == [5.0]
    model.learn(20)
    assert model.ep_info_buffer[0]["l"] == 10


def test_what_cannot_be_opened_is_named(tmp_path: Path):
    pendulum("test/alone-v0")
    with pytest.raises(ValueError, match="list of datasets is empty"):
        QAM("FlowPolicy", offline_dataset=[])
    with pytest.raises(FileNotFoundError, match=r"holds no Minari dataset: there is no metadata.json"):
        QAM("FlowPolicy", offline_dataset=tmp_path)
    with pytest.raises(ValueError, match=r"missing' is not a Minari dataset id, nor a folder"):
        QAM("FlowPolicy", offline_dataset=str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"'~nouser/x' is not a Minari dataset id, nor a folder"):
        QAM("FlowPolicy", offline_dataset="~nouser/x")
    with pytest.raises(TypeError, match="got int: 3"):
        QAM("FlowPolicy", offline_dataset=["test/alone-v0", 3])


def test_datasets_of_a_list_must_have_the_same_spaces():
    pendulum("test/first-v0")
    env = gym.make("MountainCarContinuous-v0", max_episode_steps=5)
    write_dataset(record(env, 1), env.observation_space, env.action_space, "test/other-v0")
    with pytest.raises(ValueError, match=r"observation space of dataset 'test/other-v0' does not fit"):
        QAM("FlowPolicy", offline_dataset=["test/first-v0", "test/other-v0"])
    assert isinstance(env.observation_space, spaces.Box)


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_every_format_of_minari_gives_the_same(data_format: str):
    rng = np.random.default_rng(0)
    observation_space = spaces.Dict(
        {"state": spaces.Box(-np.inf, np.inf, (3,), np.float64), "camera": spaces.Box(0, 255, (36, 36, 3), np.uint8)}
    )
    episodes = [
        {
            "observations": {
                "state": rng.normal(size=(length + 1, 3)),
                "camera": rng.integers(0, 256, (length + 1, 36, 36, 3), np.uint8),
            },
            "actions": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            "rewards": rng.normal(size=length),
            # A list: Minari writes arrays of numbers to Arrow in a form that it cannot read
            "infos": {"success": [False] * length + [True]},
        }
        for length in (4, 2, 9)
    ]
    action_space = spaces.Box(-1.0, 1.0, (2,))
    datasets = [
        write_dataset(episodes, observation_space, action_space, data_format=each, **UNCOMPRESSED)
        for each in ("hdf5", data_format)
    ]
    assert data_format == datasets[1].storage.FORMAT
    transform = RewardTransform(from_success=True)
    for kwargs in ({}, {"transform": transform}):
        expected, got = (read_episodes(dataset, **kwargs) for dataset in datasets)
        np.testing.assert_equal(
            (got.observations, got.actions, got.rewards, got.terminations, got.lengths),
            (expected.observations, expected.actions, expected.rewards, expected.terminations, expected.lengths),
        )
    filtered = datasets[1].filter_episodes(lambda episode: len(episode) > 3)
    np.testing.assert_array_equal(read_episodes(filtered).lengths, [4, 9])
    QAM("MultiInputPolicy", offline_dataset=datasets[1], batch_size=8).pretrain(gradient_steps=1)


def test_a_long_episode_in_arrow_format_is_not_cut():
    length = 140_000
    space = spaces.Box(-1.0, 1.0, (1,))
    episode = {"observations": np.zeros((length + 1, 1), np.float32), "actions": np.zeros((length, 1), np.float32)}
    dataset = write_dataset([{**episode, "rewards": np.zeros(length)}], space, space, data_format="arrow")
    with pytest.raises(ValueError, match=r"episode 0: observations holds \d+ values, expected 140001"):
        read_episodes(dataset)


def test_a_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch):
    dataset = pendulum("test/moved-v0")
    shutil.copytree(Path(dataset.spec.data_path), tmp_path / "data here")
    monkeypatch.chdir(tmp_path)
    model = QAM("FlowPolicy", offline_dataset="data here", **SMALL)
    monkeypatch.chdir("/")
    model.pretrain(gradient_steps=1)
    model.save(tmp_path / "model")
    QAM.load(tmp_path / "model").pretrain(gradient_steps=1)
