"""The quickstart at a hundredth of its size: every step of it, on the real environment."""

import json
from pathlib import Path

import minari
import numpy as np
import pytest

from examples import quickstart


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sizes = {"N_EPISODES": 6, "OFFLINE_STEPS": 20, "ONLINE_STEPS": 10, "EVAL_INTERVAL": 10, "N_STARTS": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(quickstart, name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "quickstart"


def test_the_whole_quickstart(small: Path, capsys: pytest.CaptureFixture[str]):
    quickstart.main()
    output = capsys.readouterr().out
    dataset = minari.load_dataset(quickstart.DATASET_ID)
    assert dataset.total_episodes == 6
    env = dataset.recover_environment()
    assert env.spec.id == quickstart.ENV_ID
    assert env.observation_space == dataset.observation_space

    summary = json.loads((small / "results.json").read_text())
    for name in ("bc", "QAM offline", "QAM online"):
        assert 0 <= summary[name]["success"] <= 1
        assert 1 <= summary[name]["length"] <= 300
        assert name in output
    assert [point["step"] for point in summary["curve"]] == [10, 20, 30]
    assert (small / "quickstart.png").stat().st_size > 10_000
    assert (small / "qam_umaze.zip").exists()


def test_the_dataset_is_collected_once(small: Path):
    first = quickstart.load_or_collect()
    second = quickstart.load_or_collect()
    assert first.id == second.id
    assert first.total_steps == second.total_steps


def test_the_controller_reaches_the_goal_and_the_wanderer_takes_longer(small: Path):
    dataset = quickstart.load_or_collect()
    to_goal = [episode for number, episode in enumerate(dataset) if number % 2 == 0]
    assert all(episode.terminations[-1] and episode.rewards.sum() == 1 for episode in to_goal)
    wandering = [episode for number, episode in enumerate(dataset) if number % 2 == 1]
    assert np.mean([len(episode) for episode in wandering]) > np.mean([len(episode) for episode in to_goal])
    actions = np.concatenate([episode.actions for episode in dataset])
    assert dataset.action_space.contains(actions[0])
    assert np.abs(actions).max() <= 1


def test_evaluations_start_from_the_same_states(small: Path):
    quickstart.OUTPUT.mkdir()
    evaluate = quickstart.StartsEvaluation()
    model = quickstart.QAM("FlowPolicy", evaluate.env, buffer_size=10)
    first, second = evaluate(model), evaluate(model)
    for one, other in zip(first["paths"], second["paths"], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(first["goals"], second["goals"])
