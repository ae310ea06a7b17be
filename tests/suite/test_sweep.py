"""A sweep trains one policy for each value, all from the same clone."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from typer.testing import CliRunner

from sb3_qam import QAM
from sb3_qam.cli import app
from sb3_qam.suite import sweep
from tests.conftest import record, write_dataset


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    env = gym.make("Pendulum-v1")
    spaces = (env.observation_space, env.action_space)
    dataset = write_dataset(record(env, 2), *spaces, "test/pendulum-v0", env=env)
    model = QAM("FlowPolicy", offline_dataset=dataset.id, policy_kwargs={"net_arch": [8]}, flow_steps=2, batch_size=8)
    model.pretrain(gradient_steps=2, objective="bc").save(tmp_path / "bc")
    return tmp_path / "bc.zip"


OTHER = r"has other settings .*: choose another folder"


def rows_of(clone: Path, values: list[float], folder: Path, **kwargs: Any) -> list[dict[str, Any]]:
    env = kwargs.pop("env", None) or make_vec_env("Pendulum-v1")
    settings = {"gradient_steps": 3, "n_eval_episodes": 1, "device": "cpu", **kwargs}
    return list(sweep(clone, "inverse_temperature", values, env, folder=folder, **settings))


def test_every_policy_starts_from_the_clone_with_its_own_temperature(clone: Path, tmp_path: Path):
    rows = rows_of(clone, [0.0, 0.5, 1000.0], tmp_path / "sweep")
    assert [row["inverse_temperature"] for row in rows] == [0.0, 0.5, 1000.0]
    assert all(row["episodes"] == 1 and row["mean_length"] == 200 for row in rows)
    # Three steps of 3e-4 from a policy that is the clone
    assert all(row["path_kl"] < 0.1 for row in rows)
    for value in ("0", "0.5", "1000"):
        model = QAM.load(tmp_path / "sweep" / f"inverse_temperature={value}.zip")
        assert (model.inverse_temperature, model._n_updates) == (float(value), 5)


def test_a_sweep_resumes_and_equals_one_that_was_not_interrupted(clone: Path, tmp_path: Path):
    whole = rows_of(clone, [1.0, 10.0], tmp_path / "whole")
    rows_of(clone, [1.0], tmp_path / "parts")
    saved = (tmp_path / "parts" / "inverse_temperature=1.zip").stat().st_mtime_ns
    th.manual_seed(1)
    assert rows_of(clone, [1.0, 10.0], tmp_path / "parts") == whole
    assert (tmp_path / "parts" / "inverse_temperature=1.zip").stat().st_mtime_ns == saved
    with pytest.raises(ValueError, match=OTHER):
        rows_of(clone, [1.0], tmp_path / "parts", gradient_steps=4)
    with pytest.raises(ValueError, match=OTHER):
        rows_of(clone, [1.0], tmp_path / "parts", env=make_vec_env("Pendulum-v1", env_kwargs={"g": 5.0}))
    QAM.load(clone).pretrain(gradient_steps=1, objective="bc").save(clone)
    with pytest.raises(ValueError, match=OTHER):
        rows_of(clone, [1.0], tmp_path / "parts")


def test_policies_of_a_clone_of_normalized_observations_see_the_same(clone: Path, tmp_path: Path):
    model = QAM.load(clone)
    env = VecNormalize(make_vec_env("Pendulum-v1"), norm_reward=False)
    model.set_env(env)
    model.pretrain(gradient_steps=1, objective="bc").save(clone)
    env.save(str(tmp_path / "statistics.pkl"))
    with pytest.warns(UserWarning, match="and now they are not"):
        rows_of(clone, [1.0], tmp_path / "raw")
    # A warning would be an error
    statistics = env.obs_rms.mean.copy()
    rows_of(clone, [1.0], tmp_path / "normalized", env=env)
    np.testing.assert_array_equal(env.obs_rms.mean, statistics)
    env.obs_rms.update(np.ones((100, 3)))
    with pytest.raises(ValueError, match=OTHER):
        rows_of(clone, [1.0], tmp_path / "normalized", env=env)
    args = ["sweep", str(clone), "--kl-budget", "1", "--steps", "1", "-n", "1", "--folder", str(tmp_path / "command")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    assert "has learned from observations that VecNormalize normalized: give its statistics" in result.output
    result = CliRunner().invoke(app, [*args, "--vec-normalize", str(tmp_path / "statistics.pkl")])
    assert result.exit_code == 0, result.output


def test_critics_are_new_whatever_the_model_has_learned(clone: Path, tmp_path: Path):
    """Those that were trained have learned with a temperature."""
    trained = tmp_path / "trained.zip"
    QAM.load(clone).pretrain(gradient_steps=20).save(trained)
    # The one step of the sweep moves nothing
    QAM.load(trained, learning_rate=1e-9).save(trained)
    rows_of(trained, [1.0], tmp_path / "sweep", gradient_steps=1)
    old, new = (QAM.load(path).critic.state_dict() for path in (trained, tmp_path / "sweep/inverse_temperature=1.zip"))
    name = next(name for name in old if name.endswith("weight"))
    assert (new[name] - old[name]).abs().max() > 0.01


def test_values_that_are_close_are_different_ones(clone: Path, tmp_path: Path):
    rows = rows_of(clone, [1.0, 1.0000001], tmp_path / "close")
    assert [row["inverse_temperature"] for row in rows] == [1.0, 1.0000001]
    assert len(list((tmp_path / "close").glob("*.zip"))) == 2


def test_only_temperatures_and_budgets_are_swept(clone: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="argument must be one of inverse_temperature, kl_budget, got 'gamma'"):
        sweep(clone, "gamma", [0.9], make_vec_env("Pendulum-v1"), 1, tmp_path)
    for values, message in (
        ([], r"values must be different numbers such as \[1, 3, 10\], got \[\]"),
        ([1, 1], r"values must be different numbers .* got \[1, 1\]"),
        ([1, "a"], "kl_budget must be a finite number .* greater than 0, got 'a'"),
        ([1, 0], "kl_budget must be a finite number .* greater than 0, got 0"),
    ):
        # Before anything is trained
        with pytest.raises(ValueError, match=message):
            sweep(clone, "kl_budget", values, make_vec_env("Pendulum-v1"), 1, tmp_path)


def test_the_command_prints_a_row_for_each_budget(clone: Path, tmp_path: Path):
    options = ["--steps", "2", "-n", "1", "--folder", str(tmp_path / "sweep"), "--device", "cpu"]
    result = CliRunner().invoke(app, ["sweep", str(clone), "--kl-budget", "0.5,1", *options])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == "Pendulum-v1, 1 episodes each"
    assert [line.split()[0] for line in result.stdout.splitlines()[2:4]] == ["0.5", "1"]
    row = json.loads((tmp_path / "sweep" / "kl_budget=0.5.json").read_text())["row"]
    assert f"{row['mean_return']:.4g}" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give either --inverse-temperature or --kl-budget, with values such as 1,3,10."),
        (["--kl-budget", "1", "--inverse-temperature", "1"], "Give either"),
        (["--kl-budget", "1,x"], "--kl-budget takes numbers such as 1,3,10, got '1,x'."),
        (["--kl-budget", "-1"], "kl_budget must be"),
    ],
)
def test_bad_input_is_one_line(clone: Path, tmp_path: Path, options: list[str], message: str):
    result = CliRunner().invoke(app, ["sweep", str(clone), *options, "--folder", str(tmp_path / "sweep")])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith(f"Error: {message}")
    assert result.stdout == ""
