"""A dataset is data: reading it runs no code, reads no other file, and damage is said in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import FlattenObservation

from sb3_qam.datasets import describe, open_datasets, wrap_dataset
from sb3_qam.datasets.minari import read_episodes
from tests.conftest import record, write_dataset


def metadata_file(dataset: minari.MinariDataset) -> Path:
    return Path(dataset.spec.data_path) / "metadata.json"


def change(dataset: minari.MinariDataset, **changes: Any) -> None:
    """Metadata with other values; ``None`` removes one."""
    metadata = json.loads(metadata_file(dataset).read_text()) | changes
    metadata_file(dataset).write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


@pytest.fixture
def dataset() -> minari.MinariDataset:
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    return write_dataset(record(env, 3), env.observation_space, env.action_space, "test/untrusted-v0")


@pytest.mark.parametrize("missing", [[], ["observation_space"], ["action_space"]])
def test_an_environment_that_is_code_is_not_made(missing: list[str], dataset, tmp_path: Path):
    ran = tmp_path / "ran"
    spec = EnvSpec("Evil-v0", entry_point="os:system", kwargs={"command": f"touch {ran}"})
    change(dataset, env_spec=spec.to_json(), **dict.fromkeys(missing))
    for read in (lambda: describe(dataset.id), lambda: read_episodes(wrap_dataset(dataset.id, FlattenObservation))):
        if missing:
            with pytest.raises(ValueError, match=f"metadata.json does not say {missing[0]}"):
                read()
        else:
            read()
    assert not ran.exists()
    if not missing:
        # It would run where the user asks for it, as SECURITY.md says
        with pytest.raises(TypeError):
            open_datasets(dataset.id)[0].recover_environment()
        assert ran.exists()


def external_link(file: h5py.File, secret: Path) -> None:
    del file["episode_1/observations"]
    file["episode_1/observations"] = h5py.ExternalLink(str(secret), "observations")


def external_group(file: h5py.File, secret: Path) -> None:
    del file["episode_1"]
    file["episode_1"] = h5py.ExternalLink(str(secret), "/")


def external_storage(file: h5py.File, secret: Path) -> None:
    del file["episode_1/observations"]
    file.create_dataset("episode_1/observations", (6, 3), np.float32, external=[(str(secret), 0, 72)])


def virtual(file: h5py.File, secret: Path) -> None:
    del file["episode_1/observations"]
    layout = h5py.VirtualLayout((6, 3), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "observations", (6, 3))
    file.create_virtual_dataset("episode_1/observations", layout)


@pytest.mark.parametrize("damage", [external_link, external_group, external_storage, virtual])
@pytest.mark.parametrize("wrappers", [[], [FlattenObservation]], ids=["plain", "wrapped"])
def test_arrays_in_other_files_are_refused(damage, wrappers, dataset, tmp_path: Path):
    secret = tmp_path / "secret.hdf5"
    with h5py.File(secret, "w") as other:
        for key in ("observations", "actions", "rewards", "terminations", "truncations"):
            other[key] = np.zeros((6, 3) if key == "observations" else (5, 1), np.float32)
        other.attrs["total_steps"] = 5
    with h5py.File(Path(dataset.spec.data_path) / "main_data.hdf5", "a") as file:
        damage(file, secret)
    with pytest.raises(ValueError, match=r"'test/untrusted-v0', episode \d cannot be read: .*lies in another file"):
        read_episodes(*open_datasets(wrap_dataset(dataset.id, *wrappers) if wrappers else dataset.id))


@pytest.mark.parametrize("content", ["", "[]", "null", "3", '"text"', "{}", '{"a": 1', "\x00", '{"dataset_id": 3}'])
def test_damaged_metadata_name_the_dataset(content: str, dataset, tmp_path: Path):
    folder = shutil.copytree(Path(dataset.spec.data_path), tmp_path / "copied")
    (folder / "metadata.json").write_text(content)
    for source, path in ((folder, folder), (dataset.id, Path(dataset.spec.data_path))):
        metadata_file(dataset).write_text(content)
        with pytest.raises(ValueError, match=rf"The dataset in {path} cannot be opened: .*metadata.json") as error:
            open_datasets(source)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key",
    ["total_episodes", "total_steps", "data_format", "observation_space", "action_space", "env_spec", "minari_version"],
)
@pytest.mark.parametrize("value", [[], {}, "text", -1, 1.5, True, 10**18])
def test_a_wrong_value_in_the_metadata_names_the_dataset(key: str, value: Any, dataset):
    change(dataset, **{key: value})
    with pytest.raises((ValueError, MemoryError), match=r"untrusted-v0") as error:
        read_episodes(*open_datasets(dataset.id))
    assert "\n" not in str(error.value)
