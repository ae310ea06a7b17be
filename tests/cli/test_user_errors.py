"""What users mistype, forget or mix up on the command line: one line that says what to do, never a traceback."""

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import SAC, HerReplayBuffer
from typer.testing import CliRunner

from sb3_qam import QAM
from sb3_qam.cli import app
from tests.conftest import needs_ogbench


def small() -> dict[str, Any]:
    return {"buffer_size": 100, "policy_kwargs": {"net_arch": [8]}}


NOT_THERE = "Error: There is no environment 'Pendulm-v1': did you mean 'Pendulum-v1'?"
NO_MODULE = "Error: The module 'nowhere' with the environment"
NO_ALGORITHM = "Error: There is no algorithm 'qan': did you mean 'qam'?"
NO_MODEL = "Error: There is no saved model nothere.zip."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    QAM("FlowPolicy", "Pendulum-v1", **small()).save(folder / "qam")
    SAC("MlpPolicy", "Pendulum-v1", **small()).save(folder / "sac")
    (folder / "text.zip").write_text("no model")
    (folder / "suite.yml").write_text("tasks: [Pendulm-v1]")
    (folder / "other.yml").write_text("tasks: [Pendulum-v1]\nalgorithms: [qan]")
    (folder / "arrays.csv").write_text("1,2,3")
    return folder


def last_line(folder: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> str:
    """What a command that fails says last; what comes before is the zoo's account of what it does."""
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        # Environments
        ("data collect Pendulm-v1 mine/a-v0", NOT_THERE),
        ("eval qam.zip --env Pendulm-v1", NOT_THERE),
        ("sweep qam.zip --env Pendulm-v1 --kl-budget 1", NOT_THERE),
        ("train --algo qam --env Pendulm-v1", NOT_THERE),
        ("enjoy --algo qam --env Pendulm-v1 -f logs", NOT_THERE),
        ("record-video --algo qam --env Pendulm-v1 -f logs", NOT_THERE),
        ("benchmark suite.yml", NOT_THERE),
        ("data collect nowhere:Env-v0 mine/a-v0", NO_MODULE),
        ("data collect Env-v0 mine/a-v0 --gym-packages nowhere", NO_MODULE),
        ("eval qam.zip --env Env-v0 --gym-packages nowhere", NO_MODULE),
        ("train --algo qam --env nowhere:Env-v0", NO_MODULE),
        ("train --algo qam --env Pendulum-v1 --gym-packages nowhere", NO_MODULE),
        ("enjoy --algo qam --env nowhere:Env-v0 -f logs", NO_MODULE),
        ("eval qam.zip --env MountainCarContinuous-v0", "Error: The model's observation space does not fit"),
        ("eval qam.zip --env CartPole-v1", "Error: The model's observation space does not fit the environment"),
        ("data collect MountainCarContinuous-v0 mine/a-v0 --model qam.zip", "Error: The model's observation space"),
        ("eval qam.zip", "Error: The environment of qam.zip is not known: pass --env ID."),
        ("data collect Pendulum-v1 mine/a-v0 --oracle", "Error: There is no scripted oracle for 'Pendulum-v1'"),
        ("data record Pendulum-v1 file.npz", "Error: There is no scripted oracle for 'Pendulum-v1'"),
        # Algorithms
        ("eval qam.zip --algo qan --env Pendulum-v1", NO_ALGORITHM),
        ("data collect Pendulum-v1 mine/a-v0 --model qam.zip --algo qan", NO_ALGORITHM),
        ("train --algo qan --env Pendulum-v1", NO_ALGORITHM),
        ("enjoy --algo qan --env Pendulum-v1 -f logs", NO_ALGORITHM),
        ("record-video --algo qan --env Pendulum-v1 -f logs", NO_ALGORITHM),
        ("plot --algo qan", NO_ALGORITHM),
        ("benchmark other.yml", NO_ALGORITHM),
        ("data collect Pendulum-v1 mine/a-v0 --model qam.zip --algo sac", "Error: qam.zip cannot be loaded as a model"),
        ("eval qam.zip --env Pendulum-v1 --algo rebrac", "Error: The policy of ReBRAC must be a"),
        ("eval sac.zip --env Pendulum-v1", "Error: The policy of QAM must be a"),
        # Files
        ("eval nothere.zip --env Pendulum-v1", NO_MODEL),
        ("data collect Pendulum-v1 mine/a-v0 --model nothere.zip", NO_MODEL),
        ("sweep nothere.zip --kl-budget 1", NO_MODEL),
        ("eval text --env Pendulum-v1", "Error: text.zip is no saved model"),
        ("eval text.zip --env Pendulum-v1", "Error: text.zip is no saved model: expected a zip file that save()"),
        ("data collect Pendulum-v1 mine/a-v0 --model qam.zip --vec-normalize nothere.pkl", "Error: [Errno 2] No such"),
        ("data collect Pendulum-v1 mine/a-v0 --model qam.zip --vec-normalize text.zip", "Error: text.zip holds no"),
        ("eval qam.zip --env Pendulum-v1 --vec-normalize text.zip", "Error: text.zip holds no statistics of a"),
        ("benchmark nothere.yml", "Error: nothere.yml cannot be read as YAML"),
        ("plot -f nothere", "Error: There is no folder 'nothere'"),
        ("enjoy --algo qam --env Pendulum-v1 -f nothere", "Error: The nothere/qam folder was not found"),
        ("data import nothere.npz mine/a-v0", "Error: There is no file nothere.npz."),
        ("data import arrays.csv mine/a-v0", "Error: arrays.csv is neither an npz nor an HDF5 file"),
        ("data describe arrays.csv", "Error: 'arrays.csv' is a file, and datasets are in Minari's format"),
        ("data describe a/b-v0 a/b-v0", "Error: Dataset 'a/b-v0' is given twice"),
        # Values
        ("eval qam.zip --env Pendulum-v1 --device cudda", "Error: There is no device 'cudda'"),
        ("train --algo qam --env Pendulum-v1 --device cudda", "Error: The run cannot be set up: RuntimeError"),
        ("train --algo qam --env Pendulum-v1 --hyperparams gama:0.9", "Error: qam has no hyper-parameter 'gama': did"),
        ("train --algo sac --env Pendulum-v1 --hyperparams gama:0.9", "Error: sac has no hyper-parameter 'gama': did"),
        ("train --algo qam --env Pendulum-v1 --hyperparams gamma:2.0", "Error: gamma must be a finite number"),
        ("train --algo qam --env Pendulum-v1 --hyperparams policy_kwargs:dict(net_arc=[8])", "net_arc"),
        ("train --algo qam --env Pendulum-v1 --hyperparams noise_type:'normal'", "KeyError: 'noise_std'"),
        ("train --algo qam --env Pendulum-v1 --env-kwargs gravity:1", "gravity"),
        ("train --algo qam --env Pendulum-v1 --hyperparams offline_dataset:'nothere/a-v0'", "No Minari dataset"),
        ("data describe nothere/a-v0", "Error: No Minari dataset 'nothere/a-v0'"),
        ("data describe nothere", "Error: 'nothere' is not a Minari dataset id"),
        ("data collect Pendulum-v1 mine/a", "Error: 'mine/a' is not a Minari dataset id"),
        ("eval qam.zip --offline nothere/a-v0", "Error: No Minari dataset 'nothere/a-v0'"),
        ("sweep qam.zip --env Pendulum-v1", "Error: Give either --inverse-temperature or --kl-budget"),
        ("sweep qam.zip --env Pendulum-v1 --kl-budget x", "Error: --kl-budget takes numbers such as 1,3,10"),
        ("benchmark suite.yml --seeds x", "Error: --seeds must be numbers or ranges"),
    ],
)
def test_one_line_says_what_to_do(command: str, expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert expected in last_line(folder, monkeypatch, command)
    # A run that does not begin leaves no folder that would be taken for the latest one
    assert not list(folder.glob("logs/*/*"))


def test_a_hindsight_model_acts_without_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Acting needs no replay buffer, and no environment to compute rewards with."""
    from sb3_qam.environments import register_environments

    monkeypatch.chdir(tmp_path)
    register_environments()
    her = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 10, **small()}
    QAM("MultiInputPolicy", "PointMaze_UMaze-v3", **her).save("her")
    for command, expected in (
        ("eval her --env PointMaze_UMaze-v3 -n 1 --baseline bc", "bc sampled"),
        ("data collect PointMaze_UMaze-v3 mine/way-v0 -n 1 --model her --max-episode-steps 20", "1 episodes, 20 steps"),
        ("eval her --offline mine/way-v0 --gradient-steps 2", "Fitted Q evaluation on mine/way-v0"),
    ):
        result = CliRunner().invoke(app, command.split())
        assert expected in result.output, result.output


@needs_ogbench
def test_names_of_ogbenchs_data_are_environments():
    for name in ("pointmaze-medium-navigate-singletask-task1-v0", "cube-double-play-singletask-task2-v0"):
        result = CliRunner().invoke(
            app, ["data", "collect", name, f"test/{name}", "-n", "1", "--max-episode-steps", "3"]
        )
        assert "1 episodes, 3 steps" in result.output, result.output
