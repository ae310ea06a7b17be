"""What is wrong with a dataset is said with its file, its episode and its key, and nothing is half-loaded."""

from collections.abc import Callable
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces

from sb3_qam import QAM
from sb3_qam.datasets.hdf5 import UNCOMPRESSED
from sb3_qam.datasets.minari import read_episodes
from sb3_qam.datasets.rewards import RewardTransform
from tests.conftest import needs_uncompressed_images, write_dataset

# There are images in what is damaged
pytestmark = needs_uncompressed_images

SPACE = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "camera": spaces.Box(0, 255, (2, 3), np.uint8)})
ACTIONS = spaces.Box(-1.0, 1.0, (2,))
N_STEPS = 5


def healthy_dataset(dataset_id: str = "test/damaged-v0", **kwargs) -> minari.MinariDataset:
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observations": {
                "position": rng.uniform(-1, 1, (N_STEPS + 1, 2)).astype(np.float32),
                "camera": rng.integers(0, 256, (N_STEPS + 1, 2, 3), np.uint8),
            },
            "actions": rng.uniform(-1, 1, (N_STEPS, 2)).astype(np.float32),
            "rewards": rng.normal(size=N_STEPS),
        }
        for _ in range(3)
    ]
    return write_dataset(episodes, SPACE, ACTIONS, dataset_id, **kwargs)


def replace(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.Group], None]:
    def damage(episode: h5py.Group) -> None:
        values = change(episode[key][()])
        del episode[key]
        episode[key] = values

    return damage


def remove(key: str) -> Callable[[h5py.Group], None]:
    def damage(episode: h5py.Group) -> None:
        del episode[key]

    return damage


def cut_to(n_steps: int) -> Callable[[h5py.Group], None]:
    def damage(episode: h5py.Group) -> None:
        for key, extra in {
            "observations/position": 1,
            "observations/camera": 1,
            "actions": 0,
            "rewards": 0,
            "terminations": 0,
        }.items():
            replace(key, lambda values, n=n_steps + extra: values[:n])(episode)
        episode.attrs["total_steps"] = n_steps

    return damage


def with_nan(values: np.ndarray) -> np.ndarray:
    values[3] = np.nan
    return values


DAMAGES = {
    "no rewards": (remove("rewards"), "cannot be read: episode_1/rewards"),
    "no observations": (remove("observations"), "cannot be read: episode_1/observations"),
    "no part of the observations": (remove("observations/camera"), "cannot be read: episode_1/observations/camera"),
    "images as floats": (replace("observations/camera", lambda v: v / 255), r"\['camera'\] holds float64 .*uint8"),
    "observations as text": (replace("observations/position", lambda v: v.astype("S8")), r"\['position'\] holds \|S8"),
    "actions as integers, one short": (replace("actions", lambda v: v[:-1]), "actions holds 4 values, expected 5"),
    "one reward too many": (replace("rewards", lambda v: np.append(v, 0)), "rewards holds 6 values, expected 5"),
    "no rewards at all": (replace("rewards", lambda v: v[:0]), "rewards holds 0 values, expected 5"),
    "terminations as floats": (replace("terminations", lambda v: v + 0.5), "terminations holds float64 .*bool"),
    "NaN": (replace("rewards", with_nan), "rewards is not finite .* 1 of 5 steps, first at step 3"),
    "NaN in an observation": (replace("observations/position", with_nan), r"\['position'\] is not finite"),
    "actions of text": (replace("actions", lambda v: v.astype("S8")), r"actions holds \|S8"),
    "a single reward": (replace("rewards", lambda v: v[0]), "rewards holds the single value"),
    "images that do not fit": (replace("observations/camera", lambda v: v.astype(int) + 200), "do not fit into uint8"),
    "an observation too few": (replace("observations/camera", lambda v: v[1:]), r"observations\['camera'\] holds"),
    "wider actions": (replace("actions", lambda v: np.tile(v, 2)), r"actions .*\(5, 4\)"),
    "wider observations": (replace("observations/position", lambda v: v[:, :1]), r"\['position'\] .*\(6, 1\)"),
    "an episode without a step": (cut_to(0), "actions holds no step"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("storage", ["memory", "memmap"])
def test_damage_is_named_with_file_episode_and_key(name: str, storage: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SB3_QAM_CACHE", str(tmp_path))
    dataset = healthy_dataset()
    file = dataset.storage.data_path / "main_data.hdf5"
    damage, complaint = DAMAGES[name]
    with h5py.File(file, "a") as opened:
        damage(opened["episode_1"])
    model = QAM("MultiInputPolicy", offline_dataset=dataset.id, offline_storage=storage)
    with pytest.raises(ValueError, match=f"'test/damaged-v0', episode 1.*{complaint}") as error:
        model.pretrain(gradient_steps=1)
    assert str(file) in str(error.value)
    assert model.offline_buffer is None
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file(share: float):
    dataset = healthy_dataset()
    file = dataset.storage.data_path / "main_data.hdf5"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"'test/damaged-v0', episode 0 cannot be read.*main_data\.hdf5.*Repair"):
        read_episodes(minari.load_dataset(dataset.id))


def test_a_truncated_description():
    dataset = healthy_dataset()
    file = dataset.storage.data_path / "metadata.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=r"test/damaged-v0/data cannot be opened.*minari download --force"):
        QAM("MultiInputPolicy", offline_dataset=dataset.id)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_description_that_promises_other_steps(change: int):
    dataset = healthy_dataset()
    dataset.storage.update_metadata({"total_steps": 3 * N_STEPS + change})
    with pytest.raises(ValueError, match=f"'{dataset.id}': the metadata promise {15 + change} steps in all"):
        read_episodes(minari.load_dataset(dataset.id))


def test_an_episode_that_is_shorter_than_its_description():
    dataset = healthy_dataset()
    with h5py.File(dataset.storage.data_path / "main_data.hdf5", "a") as opened:
        cut_to(3)(opened["episode_1"])
        opened["episode_1"].attrs["total_steps"] = 5
    complaint = rf"'{dataset.id}', episode 1: .* holds 4 values, expected 6 in an .*{dataset.storage.data_path}"
    with pytest.raises(ValueError, match=complaint):
        read_episodes(dataset)


def test_actions_of_another_width_are_not_repeated():
    wide = spaces.Box(-2.0, 2.0, (2,))
    rng = np.random.default_rng(0)
    space = spaces.Box(-1, 1, (1,))
    episode = {
        "observations": rng.uniform(-1, 1, (6, 1)),
        "actions": rng.uniform(-1, 1, (5, 1)),
        "rewards": np.zeros(5),
    }
    dataset = write_dataset([episode], space, wide)
    with pytest.raises(ValueError, match=r"episode 0: actions holds values of shape \(5, 1\), expected \(5, 2\)"):
        read_episodes(dataset)


def test_a_success_that_is_no_number():
    space = spaces.Box(-1, 1, (1,))
    episode = {"observations": np.zeros((6, 1)), "actions": np.zeros((5, 1)), "rewards": np.zeros(5)}
    for success in (np.full(6, np.nan), np.zeros((6, 2))):
        dataset = write_dataset([{**episode, "infos": {"success": success}}], space, space)
        with pytest.raises(ValueError, match="episode 0: infos do not say"):
            read_episodes(dataset, transform=RewardTransform(from_success=True))


def test_a_filtered_dataset_whose_file_is_damaged():
    dataset = healthy_dataset().filter_episodes(lambda episode: True)
    file = dataset.storage.data_path / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be counted"):
        QAM("MultiInputPolicy", offline_dataset=dataset)


def test_an_episode_that_is_gone():
    dataset = healthy_dataset()
    with h5py.File(dataset.storage.data_path / "main_data.hdf5", "a") as opened:
        del opened["episode_2"]
    with pytest.raises(ValueError, match="episode 2 cannot be read"):
        read_episodes(dataset)


def test_a_damaged_arrow_dataset():
    dataset = healthy_dataset(data_format="arrow", **UNCOMPRESSED)
    part = next((dataset.storage.data_path / "1").glob("*.arrow"))
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"'test/damaged-v0', episode 1 cannot be read") as error:
        read_episodes(dataset)
    assert str(dataset.storage.data_path) in str(error.value)


def test_types_that_say_the_same_are_taken():
    dataset = healthy_dataset()
    expected = read_episodes(dataset)
    with h5py.File(dataset.storage.data_path / "main_data.hdf5", "a") as opened:
        replace("observations/position", lambda v: v.astype(np.float64))(opened["episode_0"])
        replace("actions", lambda v: v.astype(np.float64))(opened["episode_1"])
        replace("terminations", lambda v: v.astype(np.uint8))(opened["episode_2"])
        replace("rewards", np.round)(opened["episode_2"])
        replace("rewards", lambda v: v.astype(int))(opened["episode_2"])
    data = read_episodes(dataset)
    np.testing.assert_array_equal(data.observations["position"], expected.observations["position"])
    np.testing.assert_array_equal(data.actions, expected.actions)
    np.testing.assert_array_equal(data.terminations, expected.terminations)
    np.testing.assert_array_equal(data.rewards[10:], np.round(expected.rewards[10:]))
