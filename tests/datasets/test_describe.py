"""What describe() says of a dataset is what is in it."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from minari import MinariDataset
from typer.testing import CliRunner

from sb3_qam.cli import app
from sb3_qam.datasets.describe import describe
from tests.conftest import write_dataset

OBSERVATIONS = spaces.Box(-1.0, 1.0, (2,))
ACTIONS = spaces.Box(np.array([0.0, -5.0], np.float32), np.array([10.0, 5.0], np.float32))


def episode(rewards: list[float], actions: list[list[float]], success: list[bool] | None) -> dict[str, Any]:
    n = len(rewards)
    return {
        "observations": np.zeros((n + 1, 2), np.float32),
        "actions": np.array(actions, np.float32),
        "rewards": rewards,
        "terminations": [False] * (n - 1) + [bool(success and success[-1])],
        "infos": None if success is None else {"success": success},
    }


@pytest.fixture
def dataset() -> MinariDataset:
    return write_dataset(
        [
            episode([0.0, 0.0, 1.0], [[10, 0], [10, 0], [5, 5]], [False, False, False, True]),
            episode([0.0, 0.0], [[5, 0], [0, 0]], [False, False, False]),
        ],
        OBSERVATIONS,
        ACTIONS,
        "test/described-v0",
    )


def test_every_figure_is_that_of_the_data(dataset):
    found = describe("test/described-v0")
    assert found.lengths.tolist() == [3, 2]
    assert found.returns.tolist() == [1.0, 0.0]
    assert found.successes.tolist() == [True, False]
    assert (found.n_terminations, found.reward_range, found.n_distinct_rewards) == (1, (0.0, 1.0), 2)
    # of five steps the first action is at a bound in three, the second in one
    np.testing.assert_allclose(found.saturation, [0.6, 0.2])
    assert found.action_counts.sum(axis=1).tolist() == [5, 5]
    assert found.action_counts[0, [0, 20, 39]].tolist() == [1, 2, 2]
    assert "50.0% of the episodes" in str(found)
    assert "0 to 1 (2 distinct values)" in str(found)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_what_to_begin_with_follows_from_lengths_and_discounted_returns(scale: float):
    # 160 steps to the reward, at a termination that is not the end of the episode in the second one
    first, second = np.zeros(160), np.zeros(320)
    first[-1], second[[159, 319]] = scale, scale
    episodes = [episode(list(r), [[5.0, 0.0]] * len(r), [False] * len(r) + [True]) for r in (first, second)]
    episodes[1]["terminations"][159] = True
    found = describe(write_dataset(episodes, OBSERVATIONS, ACTIONS))
    assert found.gamma == 0.994
    np.testing.assert_allclose(found.value_std, scale * np.std(0.994 ** np.arange(160)), rtol=1e-6)
    assert found.inverse_temperature == pytest.approx(60.0 / scale)
    start = f"{60 / scale:g}"
    assert f"inverse_temperature={start}, or kl_budget=1.0 with reward_transform={{'scale': {start}}}" in str(found)


def test_data_without_a_reward_has_nothing_to_begin_with_but_bc():
    found = describe(write_dataset([episode([0.0, 0.0], [[5, 0], [0, 0]], None)], OBSERVATIONS, ACTIONS))
    assert (found.value_std, found.inverse_temperature) == (0.0, None)
    assert "gamma=0.99; all returns are the same: BC is all" in str(found)


def test_several_are_described_together(dataset):
    both = describe(["test/described-v0", dataset.filter_episodes(lambda episode: episode.id == 0)])
    assert both.lengths.tolist() == [3, 2, 3]
    assert both.name == "test/described-v0, test/described-v0"
    with pytest.raises(ValueError, match="Dataset 'test/described-v0' is given twice, and would count double"):
        describe([dataset, "test/described-v0"])


def test_datasets_of_other_spaces_are_refused(dataset):
    other = spaces.Box(-1.0, 1.0, (2,))
    wider = write_dataset([episode([0.0], [[1, 1]], [False, True])], OBSERVATIONS, other, "test/other-v0")
    with pytest.raises(ValueError, match=r"action space of dataset 'test/other-v0' does not fit.*: bounds"):
        describe([dataset, wider])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rewards", [0.0, np.nan], "rewards is not finite .* at 1 of 2 steps, first at step 1"),
        ("actions", np.full((2, 2), np.inf), "actions is not finite"),
        ("actions", np.zeros((2, 3)), r"actions holds values of shape \(2, 3\), expected \(2, 2\)"),
        ("actions", np.array([[b"a", b"b"]] * 2), "actions holds .* values, which are not float"),
        ("rewards", [0.0], "rewards holds 1 values, expected 2 in an episode of 2 steps"),
        ("rewards", [], "rewards holds 0 values, expected 2"),
        ("terminations", [True], "terminations holds 1 values, expected 2 in an episode of 2 steps"),
    ],
)
def test_what_training_refuses_is_refused_with_the_same_error(dataset, key: str, value: Any, message: str):
    with h5py.File(dataset.storage.data_path / "main_data.hdf5", "a") as file:
        del file[f"episode_1/{key}"]
        file[f"episode_1/{key}"] = value
    with pytest.raises(ValueError, match=rf"^Dataset 'test/described-v0', episode 1: {message}.*main_data.hdf5"):
        describe("test/described-v0")


def test_success_may_be_said_only_when_it_happens(dataset):
    silent = [episode([0.0, 0.0], [[5, 0], [0, 0]], None), episode([1.0], [[5, 0]], [False, True])]
    some = write_dataset(silent, OBSERVATIONS, ACTIONS, "test/some-v0")
    assert describe([some, dataset]).successes.tolist() == [False, True, True, False]
    none = write_dataset(silent[:1], OBSERVATIONS, ACTIONS, "test/none-v0")
    assert describe([some, none]).successes is None


def test_success_that_was_not_recorded_is_not_made_up(pendulum_dataset):
    found = describe(pendulum_dataset)
    assert found.successes is None
    assert "not recorded" in str(found)


def test_the_command_prints_draws_and_fails_on_one_line(dataset, tmp_path: Path):
    result = CliRunner().invoke(app, ["data", "describe", "test/described-v0", "--picture", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    assert "episodes                 2" in result.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    result = CliRunner().invoke(app, ["data", "describe", "nobody/knows-v0"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: No Minari dataset 'nobody/knows-v0'")
    assert len(result.output.strip().splitlines()) == 1
    for picture, message in {
        "nodir/x.png": "No such file or directory: .*nodir/x.png",
        "x.foo": "'foo' is not",
    }.items():
        arguments = ["data", "describe", "test/described-v0", "--picture", str(tmp_path / picture)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert re.search(f"^Error: .*{message}", result.output.splitlines()[-1])
        assert isinstance(result.exception, SystemExit)
