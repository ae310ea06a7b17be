"""``sb3-qam eval``: which environment it takes, what it runs, what it prints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3 import SAC
from typer.testing import CliRunner

from sb3_qam import QAM, PolicyValue, ReBRAC, fitted_q_evaluation
from sb3_qam.cli import app
from tests.conftest import record, write_dataset

SMALL: dict[str, Any] = {"buffer_size": 100, "policy_kwargs": {"net_arch": [8]}, "chunk_size": 3, "flow_steps": 2}
ROWS = ("deterministic", "sampled", "bc_deterministic", "bc_sampled")


def evaluate(*args: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["eval", *map(str, args), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error_of(*args: str | Path) -> str:
    result = CliRunner().invoke(app, ["eval", *map(str, args)])
    assert (result.exit_code, len(result.output.strip().splitlines())) == (1, 1), result.output
    return result.output.strip()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    QAM("FlowPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "pendulum.zip")
    return tmp_path / "pendulum.zip"


# ---------------------------------------------------------------------- rows


def test_deterministic_and_sampled_returns_stand_beside_each_other(model: Path):
    found = evaluate(model, "-n", "2", "--env", "Pendulum-v1")
    assert (found["model"], found["env"]) == (str(model), "Pendulum-v1")
    assert found.keys() == {"model", "env", "deterministic", "sampled"}
    for row in ROWS[:2]:
        assert (found[row]["episodes"], found[row]["mean_length"], found[row]["success"]) == (2, 200, None)
    assert found["deterministic"]["mean_return"] != found["sampled"]["mean_return"]
    assert found == evaluate(model, "-n", "2", "--env", "Pendulum-v1")
    text = CliRunner().invoke(app, ["eval", str(model), "-n", "2", "--env", "Pendulum-v1", "--baseline", "bc"]).stdout
    lines = text.splitlines()
    assert lines[0] == "Pendulum-v1, 2 episodes each"
    assert lines[1].split() == ["return", "length", "success"]
    assert [line[:16].strip().replace(" ", "_") for line in lines[2:]] == list(ROWS)
    assert f"{found['sampled']['mean_return']:.4g} +/- {found['sampled']['std_return']:.4g}" in lines[3]


@pytest.mark.parametrize(
    "kwargs", [{}, {"distill_coef": 1.0}, {"edit_scale": 0.5}, {"kl_budget": 1.0}, {"best_of_n": 3}], ids=str
)
def test_the_baseline_acts_with_the_behavior_flow(kwargs: dict[str, Any], tmp_path: Path):
    """As a model does whose training was cloning alone."""
    model = QAM("FlowPolicy", "Pendulum-v1", seed=0, **SMALL, **kwargs)
    model.save(tmp_path / "model.zip")
    clone = QAM("FlowPolicy", "Pendulum-v1", **SMALL)
    clone.load_behavior(model)
    clone.save(tmp_path / "clone.zip")
    env = ("--env", "Pendulum-v1", "-n", "1")
    found, of_clone = evaluate(tmp_path / "model.zip", *env, "--baseline", "bc"), evaluate(tmp_path / "clone.zip", *env)
    for row in ROWS[:2]:
        assert found[f"bc_{row}"] == of_clone[row]
    assert found["deterministic"] != found["bc_deterministic"]
    assert error_of(tmp_path / "model.zip", *env, "--baseline", "sac") == (
        "Error: --baseline must be bc, the behavior flow of a QAM model, got 'sac' for 'qam'."
    )


def test_models_of_other_algorithms_are_evaluated_too(tmp_path: Path):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [8]}).save(tmp_path / "sac.zip")
    sac = (tmp_path / "sac.zip", "--algo", "sac")
    assert evaluate(*sac, "--env", "Pendulum-v1", "-n", "1")["sampled"]["mean_length"] == 200
    assert "is not known: pass --env ID." in error_of(*sac)
    assert "the behavior flow of a QAM model, got 'bc' for 'sac'" in error_of(*sac, "--baseline", "bc")


def test_the_algorithm_is_that_of_the_run(tmp_path: Path):
    path = write_run(tmp_path, "Pendulum-v1", yaml.dump({"env": "Pendulum-v1", "algo": "rebrac", "env_kwargs": None}))
    ReBRAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [8]}).save(path)
    assert evaluate(path, "-n", "1")["deterministic"]["mean_length"] == 200
    assert "QAM" in error_of(path, "-n", "1", "--algo", "qam")


# ---------------------------------------------------------------------- environments, and whose code is run


def write_run(folder: Path, env_id: str, args: str = "", config: str = "") -> Path:
    """What RL Zoo writes about a run, with a model in it."""
    settings = folder / f"{env_id}_1" / env_id
    settings.mkdir(parents=True)
    (settings / "args.yml").write_text(args or yaml.dump({"env": env_id, "env_kwargs": None}))
    (settings / "config.yml").write_text(config or yaml.dump({"n_timesteps": 100}))
    QAM("FlowPolicy", "Pendulum-v1", **SMALL).save(settings.parent / "best_model.zip")
    return settings.parent / "best_model.zip"


def test_only_the_folder_of_the_run_says_the_environment(model: Path):
    """A harmless neighbor, and one that would run a command."""
    made = model.parent / "made"
    for number, text in enumerate(("env: CartPole-v1", f"!!python/object/apply:os.mkdir [{made}]")):
        neighbor = model.parent / f"neighbor{number}"
        neighbor.mkdir()
        (neighbor / "args.yml").write_text(text)
    assert error_of(model) == f"Error: The environment of {model} is not known: pass --env ID."
    # Not even in a folder of the right name
    other = write_run(model.parent, "Pendulum-v1").parent / "CartPole-v1"
    other.mkdir()
    (other / "args.yml").write_text("env: CartPole-v1")
    assert evaluate(other.parent / "best_model.zip", "-n", "1")["env"] == "Pendulum-v1"
    assert not made.exists()


def test_no_code_in_the_settings_of_a_run_is_run(tmp_path: Path):
    call = f"!!python/object/apply:os.mkdir [{tmp_path / 'made'}]"
    args = f"{{env: Pendulum-v1, env_kwargs: {{max_episode_steps: 7}}, device: {call}}}"
    found = evaluate(write_run(tmp_path, "Pendulum-v1", args, f"{{n_timesteps: 5, seed: {call}}}"), "-n", "1")
    assert found["deterministic"]["mean_length"] == 7
    assert error_of(write_run(tmp_path / "second", "Pendulum-v1", call)).startswith("Error: args.yml must have names")
    assert not (tmp_path / "made").exists()


class _Marked(gym.Env):
    observation_space = action_space = spaces.Box(-1.0, 1.0, (1,))
    n_made = 0

    def __init__(self, **_: Any) -> None:
        type(self).n_made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, dtype=np.float32), 0.0, True, False, {}


def dataset_with_spec(env_id: str, spec: gym.envs.registration.EnvSpec) -> minari.MinariDataset:
    episodes = record(_Marked(), 3)
    return write_dataset(episodes, _Marked.observation_space, _Marked.action_space, env_id, env=spec)


def test_of_a_dataset_the_id_is_taken_and_not_the_specification(tmp_path: Path):
    """A specification names what is called to make an environment: it is code that came with the data."""
    gym.register("Registered-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=9)
    evil = gym.envs.registration.EnvSpec("Registered-v0", entry_point=f"{__name__}:_Marked")
    episodes = record(gym.make("Registered-v0"), 3)
    pendulum = gym.make("Registered-v0")
    write_dataset(episodes, pendulum.observation_space, pendulum.action_space, "test/known-v0", env=evil)
    dataset_with_spec("test/unknown-v0", gym.envs.registration.EnvSpec("Unknown-v0", entry_point=f"{__name__}:_Marked"))
    for name in ("known", "unknown"):
        QAM("FlowPolicy", offline_dataset=f"test/{name}-v0", **SMALL).save(tmp_path / f"{name}.zip")
    _Marked.n_made = 0
    found = evaluate(tmp_path / "known.zip", "-n", "1")
    assert (found["env"], found["sampled"]["mean_length"]) == ("Registered-v0", 9)
    assert error_of(tmp_path / "unknown.zip").endswith("is not known: pass --env ID.")
    assert _Marked.n_made == 0


def test_what_is_no_model_is_said_on_one_line(model: Path):
    (model.parent / "text.zip").write_text("no model")
    for name in ("nothing.zip", ".", "text.zip"):
        assert error_of(model.parent / name).startswith("Error: ")
    missing = model.parent / "nothing.zip"
    assert error_of(missing) == f"Error: There is no saved model {missing}."
    assert evaluate(model.with_suffix(""), "-n", "1", "--env", "Pendulum-v1").keys() >= {"deterministic", "sampled"}


def test_chunks_are_executed_as_the_options_say(model: Path, tmp_path: Path):
    task = (model, "-n", "2", "--env", "Pendulum-v1")
    open_loop = evaluate(*task)
    assert evaluate(*task, "--replan-every", "3") == open_loop
    for options in (["--replan-every", "1"], ["--ensemble-decay", "0.01"]):
        assert evaluate(*task, *options)["deterministic"] != open_loop["deterministic"]
    assert "replan_every must be an integer from 1 to chunk_size=3" in error_of(*task, "--replan-every", "4")
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac.zip")
    of_sac = (tmp_path / "sac.zip", "--algo", "sac", "--env", "Pendulum-v1")
    assert "are for chunks, which 'sac' has not" in error_of(*of_sac, "--replan-every", "1")


# ---------------------------------------------------------------------- without an environment


def test_offline_it_prints_values_and_their_intervals(model: Path, pendulum_dataset: minari.MinariDataset):
    given = ("--offline", pendulum_dataset.id, "--gradient-steps", "2", "--baseline", "bc")
    found = evaluate(model, *given)
    assert found.keys() == {"model", "dataset", *ROWS}
    assert found["sampled"] == asdict(fitted_q_evaluation(QAM.load(model), pendulum_dataset, 2, deterministic=False))
    lines = CliRunner().invoke(app, ["eval", str(model), *given]).stdout.splitlines()
    assert lines[0] == f"Fitted Q evaluation on {pendulum_dataset.id}, 2 gradient steps each"
    assert lines[2] == f"{'sampled':16} {PolicyValue(**found['sampled'])}"
    assert error_of(model, *given, "--env", "Pendulum-v1").startswith("Error: --offline and --env exclude each other")
    assert "No Minari dataset 'test/absent-v0'" in error_of(model, "--offline", "test/absent-v0")


def test_offline_is_for_algorithms_of_this_package(tmp_path: Path):
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac.zip")
    assert error_of(tmp_path / "sac.zip", "--algo", "sac", "--offline", "test/x-v0") == (
        "Error: --offline needs an algorithm of this package, got 'sac'."
    )
