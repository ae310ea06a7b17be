"""What earlier versions saved is loaded, acts as it did and learns on; loading unpickles nothing that SB3 would not."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_qam import QAM
from sb3_qam.common.buffers import SequenceReplayBuffer
from tests.saved_models import FOLDER, VARIANTS, expected_actions, write

OLD_MODELS = sorted(FOLDER.glob("qam_*.zip"))

_found: list[tuple[str, str]] = []
_listening = False


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event == "pickle.find_class":
        _found.append(arguments)


# Python keeps an audit hook to its end: it is idle but for found_by_pickle()
sys.addaudithook(_listen)


def found_by_pickle(action: Callable[[], Any]) -> set[tuple[str, str]]:
    """Every (module, name) that unpickling looks up while the action runs."""
    global _listening
    _found.clear()
    _listening = True
    try:
        action()
    finally:
        _listening = False
    return set(_found)


def test_there_is_a_file_of_every_variant():
    assert {f"qam_0_2_0{variant}.zip" for variant in VARIANTS} <= {path.name for path in OLD_MODELS}


@pytest.mark.parametrize("path", OLD_MODELS, ids=lambda path: path.stem)
def test_an_old_model_predicts_what_it_did_and_learns_on(path: Path):
    model = QAM.load(path, env=gym.make("Pendulum-v1"), device="cpu")
    expected = json.loads(path.with_suffix(".json").read_text())
    np.testing.assert_allclose(expected_actions(model), expected, atol=1e-5)
    model.load_replay_buffer(path.with_suffix(".pkl"))
    assert isinstance(model.replay_buffer, SequenceReplayBuffer)
    assert model.replay_buffer.size() == 40
    n_updates = model._n_updates
    model.learn(5, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (66, n_updates + 5)


@pytest.mark.parametrize("path", OLD_MODELS, ids=lambda path: path.stem)
def test_loading_unpickles_what_sb3_unpickles_and_nothing_else(path: Path):
    by_sb3 = found_by_pickle(lambda: load_from_zip_file(path, device="cpu"))
    by_qam = found_by_pickle(lambda: QAM.load(path, env=gym.make("Pendulum-v1"), device="cpu"))
    assert by_qam == by_sb3
    # and of the package itself two classes, and where a chunk is in flight the tuple it is kept in
    own = {(module, name) for module, name in by_sb3 if module.startswith("sb3_qam")}
    classes = {("sb3_qam.qam.policies", "FlowPolicy"), ("sb3_qam.common.buffers", "SequenceReplayBuffer")}
    assert classes <= own <= classes | {("sb3_qam.runtime", "ChunkState")}


def test_parameters_are_taken_from_a_file_without_unpickling_anything():
    path = OLD_MODELS[0]
    model = QAM.load(path, device="cpu")
    assert found_by_pickle(lambda: model.set_parameters(path, device="cpu")) == set()


def test_loading_opens_no_dataset(pendulum_dataset, tmp_path: Path):
    folder = pendulum_dataset.storage.data_path.parent
    kwargs = {"batch_size": 4, "flow_steps": 2, "policy_kwargs": {"net_arch": [8]}}
    QAM("FlowPolicy", offline_dataset=str(folder), **kwargs).save(tmp_path / "model")
    shutil.rmtree(folder)
    assert QAM.load(tmp_path / "model").predict(np.zeros(3))[0].shape == (1,)


def test_the_command_writes_what_is_tested(tmp_path: Path):
    write(tmp_path)
    written = sorted(tmp_path.iterdir())
    assert len(written) == 3 * len(VARIANTS)
    assert max(path.stat().st_size for path in written) < 200_000
