"""The quickstart at a hundredth of its size: every step of it, on the real environment."""

import json
from pathlib import Path
from types import ModuleType

import minari
import numpy as np
import pytest

from tests.pages import ROOT


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # As for a script, what is beside it can be imported
    monkeypatch.syspath_prepend(ROOT / "examples")
    import quickstart

    sizes = {"N_EPISODES": 8, "OFFLINE_STEPS": 20, "ONLINE_STEPS": 10, "EVAL_FREQ": 10, "N_STARTS": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(quickstart, name, value)
    monkeypatch.chdir(tmp_path)
    return quickstart


def test_the_whole_quickstart(quickstart: ModuleType, capsys: pytest.CaptureFixture[str]):
    quickstart.main()
    output = capsys.readouterr().out
    dataset = minari.load_dataset(quickstart.DATASET_ID)
    assert dataset.total_episodes == 8
    env = dataset.recover_environment()
    assert env.spec.id == quickstart.ENV_ID
    assert env.observation_space == dataset.observation_space

    results = json.loads(Path("quickstart/results.json").read_text())
    for name in ("clone", "QAM offline", "QAM online"):
        assert 0 <= results[name]["success"] <= 1
        assert 1 <= results[name]["length"] <= 300
        assert name in output
    with np.load("quickstart/evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [10, 20, 30]
        # The table is of the evaluations in the picture
        for name, row in (("QAM offline", 1), ("QAM online", 2)):
            assert results[name]["success"] == (evaluations["results"][row] > 0).mean()
            assert results[name]["length"] == evaluations["ep_lengths"][row].mean()
    assert Path("quickstart/quickstart.png").stat().st_size > 10_000
    for name in ("qam_offline", "qam_online"):
        assert Path(f"quickstart/{name}.zip").exists()


def test_the_dataset_is_collected_once(quickstart: ModuleType):
    first = quickstart.collect_data()
    second = quickstart.collect_data()
    assert first.id == second.id
    assert first.total_steps == second.total_steps


def test_the_controller_reaches_the_goal_and_the_wanderer_takes_longer(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quickstart, "N_EPISODES", 40)
    dataset = quickstart.collect_data()
    actions = np.concatenate([episode.actions for episode in dataset])
    assert dataset.action_space.contains(actions[0])
    assert np.abs(actions).max() <= 1
    # The wanderer is slower; which one an episode is of is drawn for each
    speeds = np.array([np.abs(episode.observations["observation"][:, 2:]).mean() for episode in dataset])
    wanders = speeds < speeds.mean()
    assert 0 < wanders.sum() < len(speeds)
    to_goal = [episode for episode, other in zip(dataset, wanders, strict=True) if not other]
    assert all(episode.terminations[-1] and episode.rewards.sum() == 1 for episode in to_goal)
    lengths = np.array([len(episode) for episode in dataset])
    assert lengths[wanders].mean() > lengths[~wanders].mean()


def test_evaluations_start_from_the_same_states(quickstart: ModuleType):
    starts = quickstart.make_starts()
    model = quickstart.QAM("FlowPolicy", starts, buffer_size=10)
    first, second = (quickstart.evaluate(model, starts)["paths"] for _ in range(2))
    for one, other in zip(first.positions, second.positions, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(first.goals, second.goals)
