"""SB3's outputs, in both phases."""

import csv
import json
from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3.common.logger import HumanOutputFormat, configure

from sb3_qam import QAM
from tests.contract.conftest import SMALL, Algorithm, small

EXPECTED = ["train/critic_loss", "train/bc_loss", "train/adjoint_loss", "train/learning_rate", "time/fps"]


def short_pendulum() -> gym.Env:
    return gym.make("Pendulum-v1", max_episode_steps=10)


def train(model: Algorithm, dataset) -> Algorithm:
    model.pretrain(dataset, gradient_steps=6, log_interval=3)
    return model.learn(20, log_interval=1, reset_num_timesteps=False)


def test_all_outputs_at_once_say_the_same(pendulum_dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = QAM("MlpPolicy", short_pendulum(), **SMALL)
    logger = configure(str(tmp_path), ["stdout", "csv", "json", "log", "tensorboard"])
    model.set_logger(logger)
    train(model, pendulum_dataset)
    assert model.logger is logger
    with open(tmp_path / "progress.csv") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [line["time/total_timesteps"] for line in lines] == [3, 6, 16, 26]
    assert [int(row["time/total_timesteps"]) for row in table] == [3, 6, 16, 26]
    for line, row in zip(lines, table, strict=True):
        for name in EXPECTED:
            assert float(row[name]) == pytest.approx(line[name])
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/episodes"} <= lines[-1].keys()
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "log.txt").read_text()
    assert printed.count("critic_loss") == 4
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_nothing_is_printed_unless_asked_for(pendulum_dataset, capsys: pytest.CaptureFixture[str]):
    train(QAM("MlpPolicy", short_pendulum(), verbose=0, **SMALL), pendulum_dataset)
    assert capsys.readouterr().out == ""
    model = train(QAM("MlpPolicy", short_pendulum(), verbose=1, **SMALL), pendulum_dataset)
    printed = capsys.readouterr().out
    assert "Using cpu device" in printed
    assert "Wrapping the env in a DummyVecEnv" in printed
    assert "critic_loss" in printed
    assert any(isinstance(output, HumanOutputFormat) for output in model.logger.output_formats)


def test_every_run_has_its_tensorboard_folder(algorithm, pendulum_dataset, tmp_path: Path):
    kwargs = {"tensorboard_log": str(tmp_path), **small(algorithm)}
    model = train(algorithm("MlpPolicy", short_pendulum(), **kwargs), pendulum_dataset)
    assert [path.name for path in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"]
    model.learn(10, tb_log_name="other")
    model.learn(10)
    # continued training appends
    model.learn(10, reset_num_timesteps=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{algorithm.__name__}_1",
        "other_1",
        f"{algorithm.__name__}_2",
    }


def test_rewards_and_lengths_are_those_of_the_last_episodes(tmp_path: Path):
    model = QAM("MlpPolicy", short_pendulum(), stats_window_size=2, **SMALL)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(50, log_interval=1)
    assert model.ep_info_buffer.maxlen == 2
    rewards = [episode["r"] for episode in model.ep_info_buffer]
    last = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    assert last["rollout/ep_rew_mean"] == pytest.approx(sum(rewards) / 2)
    assert last["time/episodes"] == 5


def test_success_is_reported_where_the_environment_says_it(tmp_path: Path):
    class Succeeds(gym.Wrapper):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, terminated, truncated, info | {"is_success": truncated}

    model = QAM("MlpPolicy", Succeeds(short_pendulum()), **SMALL)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(20, log_interval=2)
    (line,) = (tmp_path / "progress.json").read_text().splitlines()
    assert json.loads(line)["rollout/success_rate"] == 1.0


@pytest.mark.parametrize("log_interval", [1, 3, None])
def test_episodes_between_two_outputs(log_interval: int | None, tmp_path: Path):
    model = QAM("MlpPolicy", short_pendulum(), **SMALL)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(60, log_interval=log_interval)
    lines = (tmp_path / "progress.json").read_text().splitlines()
    assert [json.loads(line)["time/episodes"] for line in lines] == list(range(1, 7))[
        (log_interval or 7) - 1 :: log_interval or 7
    ]
