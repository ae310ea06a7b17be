"""Weights & Biases' own callback for SB3, in both phases, without a server."""

from pathlib import Path

import gymnasium as gym
import pytest

from sb3_qam import QAM
from tests.contract.conftest import SMALL

wandb = pytest.importorskip("wandb")


def test_its_callback_in_both_phases(pendulum_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from wandb.integration.sb3 import WandbCallback

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("", "CACHE_", "CONFIG_", "DATA_"):
        monkeypatch.setenv(f"WANDB_{name}DIR", str(tmp_path))
    env = gym.make("Pendulum-v1", max_episode_steps=6)
    with wandb.init(project="sb3-qam") as run:
        callback = WandbCallback(model_save_path=str(tmp_path / "model"), model_save_freq=4, gradient_save_freq=2)
        model = QAM("MlpPolicy", env, offline_dataset=pendulum_dataset, offline_steps=8, **SMALL)
        model.pretrain(gradient_steps=4, callback=callback)
        assert QAM.load(tmp_path / "model" / "model.zip").num_timesteps == 4
        # what is left of the offline phase, and environment steps
        model.learn(12, callback=callback)
        assert run.config["algo"] == "QAM"
        assert run.config["flow_steps"] == model.flow_steps
    assert QAM.load(tmp_path / "model" / "model.zip").num_timesteps == 16
