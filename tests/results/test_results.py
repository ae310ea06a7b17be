"""What is made of runs: statistics in closed form, and runs as RL Zoo leaves them, whole and broken."""

import csv
import json
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import norm

from sb3_qam.environments import OGBENCH_TASKS
from sb3_qam.results import make_report, scores
from sb3_qam.results.figures import common_axis, step_axis
from sb3_qam.results.runs import TrainingRun, drop_repetitions, join_resumed, name_methods, read_runs
from sb3_qam.results.scores import make_tasks

# Scores of six runs on four tasks
SCORES = np.array(
    [
        [0.989, 0.42, 0.293, 0.898],
        [0.09, 0.572, 0.492, 0.758],
        [0.875, 0.687, 0.366, 0.574],
        [0.664, 0.706, 0.442, 0.698],
        [0.407, 0.72, 0.405, 0.591],
        [0.945, 0.58, 0.345, 0.381],
    ]
)


def write_run(
    root: Path,
    number: int = 1,
    algorithm: str = "qam",
    task: str = "Maze-v0",
    seed: int = 0,
    steps: Any = (100, 200, 300),
    successes: Any = (0.0, 0.5, 1.0),
    steps_done: int | None = 300,
    trained_agent: str = "",
    **config: Any,
) -> Path:
    """The files of a run as RL Zoo and SB3 write them: by default 100 offline and 200 online steps, all taken."""
    folder = root / algorithm / f"{task}_{number}"
    settings = folder / task
    settings.mkdir(parents=True)
    config = {"n_timesteps": 200, "offline_steps": 100, "policy": "FlowPolicy", **config}
    args = {"algo": algorithm, "env": task, "seed": seed, "n_timesteps": -1, "trained_agent": trained_agent}
    for name, values in {"args": args, "config": config}.items():
        (settings / f"{name}.yml").write_text(yaml.dump(OrderedDict(values)))
    if len(steps) > 0:
        episodes = {} if successes is None else {"successes": np.stack([successes, successes], axis=1)}
        rewards = np.arange(2.0 * len(steps)).reshape(-1, 2)
        np.savez(folder / "evaluations", timesteps=steps, results=rewards, ep_lengths=rewards, **episodes)
    if steps_done is not None:
        write_model(folder / f"{task}.zip", steps_done)
    return folder


def write_model(path: Path, num_timesteps: int, total_timesteps: int = 300) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps({"num_timesteps": num_timesteps, "_total_timesteps": total_timesteps}))


# ---------------------------------------------------------------------- statistics


def test_statistics_are_those_of_rliable():
    """Numbers of rliable 1.2.0 with 50,000 resamples, and 20,000 for the profile."""
    tasks = list(SCORES.T)
    expected = {
        scores.iqm: (0.569417, 0.485417, 0.654),
        scores.median: (0.632083, 0.496415, 0.689),
        scores.mean: (0.579083, 0.499, 0.651792),
    }
    for statistic, (value, low, high) in expected.items():
        found = scores.estimate(tasks, statistic)
        assert found.value == pytest.approx(value, abs=1e-6)
        # As far as 2,000 resamples give the ends
        assert (found.low, found.high) == (pytest.approx(low, abs=0.012), pytest.approx(high, abs=0.012))
    profile = scores.performance_profile(tasks, np.array([0.2, 0.4, 0.6, 0.8]))
    np.testing.assert_allclose(profile.value, np.array([23, 19, 10, 4]) / 24)
    assert profile.low is not None
    assert profile.high is not None
    np.testing.assert_allclose(profile.low, np.array([21, 15, 6, 1]) / 24, atol=1.01 / 24)
    np.testing.assert_allclose(profile.high, np.array([24, 22, 14, 7]) / 24, atol=1.01 / 24)


def test_the_interquartile_mean_is_that_of_the_middle_half():
    assert scores.iqm(np.array([100.0, 3.0, -50.0, 4.0])) == 3.5
    assert scores.iqm(np.array([100.0, 3.0]), np.array([-50.0, 4.0])) == 3.5


def test_runs_are_resampled_within_their_task():
    """Tasks differ, runs of a task do not: there is nothing uncertain."""
    found = scores.estimate([np.zeros(3), np.ones(5)], scores.mean)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_the_interval_of_a_mean_of_many_is_the_normal_one():
    values = np.random.default_rng(3).normal(size=200)
    found = scores.estimate([values], scores.mean)
    half = norm.ppf(0.975) * values.std() / np.sqrt(200)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_a_task_with_one_run_has_no_interval():
    found = scores.estimate([np.array([0.2, 0.4]), np.array([0.9])], scores.mean)
    assert (found.value, found.low, found.high) == (pytest.approx(0.6), None, None)


def test_curves_with_other_evaluations_meet_where_both_are_known():
    positions, values = scores.common_curve(
        [np.array([10.0, 20.0, 40.0]), np.array([5.0, 25.0, 30.0])],
        [np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 2.0])],
    )
    assert positions.tolist() == [10, 20, 25, 30]
    np.testing.assert_allclose(values, np.array([[1, 2, 2.5, 3], [0.5, 1.5, 2, 2]]).T)
    assert scores.common_curve([np.array([10.0]), np.array([20.0])], [np.ones(1), np.ones(1)])[0].size == 0
    many = np.arange(1000.0)
    positions, values = scores.common_curve([many], [many**2], n_points=10)
    assert (positions[0], positions[-1], len(positions)) == (0, 999, 10)
    np.testing.assert_array_equal(values[:, 0], positions**2)


# ---------------------------------------------------------------------- runs


def test_a_run_is_read_as_the_zoo_has_written_it(tmp_path: Path):
    write_run(tmp_path, seed=3, policy_kwargs={"net_arch": [8]}, bc_steps=20)
    (run,), left_out = read_runs([tmp_path])
    assert left_out == []
    assert (run.algorithm, run.task, run.seed, run.state) == ("qam", "Maze-v0", 3, "finished")
    assert (run.offline_steps, run.total_steps) == (120, 320)
    assert run.values["reward"].tolist() == [0.5, 2.5, 4.5]
    assert run.values["success"].tolist() == [0, 0.5, 1]
    assert run.settings["policy_kwargs"] == {"net_arch": [8]}
    # A run is a folder of runs, too
    assert [run.folder for run in read_runs([run.folder])[0]] == [run.folder]


def test_no_code_of_a_settings_file_is_run(tmp_path: Path):
    folder = write_run(tmp_path)
    config = folder / "Maze-v0" / "config.yml"
    config.write_text(f"!!python/object/apply:os.mkdir [{tmp_path / 'made'}]")
    assert read_runs([tmp_path])[1][0].reason == "config.yml must have names with values in it, such as 'name: value'."
    config.write_text(
        "{n_timesteps: 5, policy: !!python/name:torch.nn.modules.activation.ReLU '', net: !!python/tuple [8]}"
    )
    (run,), _ = read_runs([tmp_path])
    assert run.settings == {"n_timesteps": 5, "policy": "name:torch.nn.modules.activation.ReLU", "net": [8]}
    assert not (tmp_path / "made").exists()


def test_a_link_that_leads_back_is_not_followed(tmp_path: Path):
    write_run(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(read_runs([tmp_path])[0]) == 1


def test_how_far_a_run_came(tmp_path: Path):
    write_run(tmp_path, 1, steps_done=None, steps=[100, 200], successes=[0, 1])
    write_run(tmp_path, 2, steps_done=250)
    write_run(tmp_path, 10, steps_done=301)
    runs, _ = read_runs([tmp_path])
    assert [run.state for run in runs] == [
        "unfinished, 200 of 300 steps",
        "unfinished, 250 of 300 steps",
        "finished",
    ]


def test_what_is_broken_is_named_with_its_reason(tmp_path: Path):
    def broken(number: int) -> Path:
        return write_run(tmp_path, number)

    write_run(tmp_path, 1, steps=())
    (broken(2) / "evaluations.npz").write_bytes(b"PK")
    (broken(3) / "Maze-v0" / "args.yml").unlink()
    (broken(4) / "Maze-v0" / "args.yml").write_text("{a: [")
    (broken(5) / "Maze-v0" / "args.yml").write_text("{algo: qam}")
    (broken(6) / "Maze-v0.zip").write_bytes(b"")
    write_run(tmp_path, 7, successes=[0, np.nan, 1])
    write_run(tmp_path, 8, successes=[0, 1])
    write_run(tmp_path, 9, steps=[100, 100, 200])
    write_run(tmp_path, 10)
    (tmp_path / "qam" / "Maze-v0" / "seed_4").mkdir(parents=True)
    (tmp_path / "qam" / "Maze-v0" / "seed_4" / "output.txt").write_text("Traceback")
    runs, left_out = read_runs([tmp_path])
    runs, without_evaluations = join_resumed(runs)
    assert [run.folder.name for run in runs] == ["Maze-v0_10"]
    left_out += without_evaluations
    reasons = {each.folder.name: each.reason for each in left_out}
    expected = {
        "Maze-v0_1": "there are no evaluations yet: they come every --eval-freq steps",
        "Maze-v0_2": "evaluations.npz cannot be read: ",
        "Maze-v0_3": "there is no Maze-v0/args.yml: training did not begin",
        "Maze-v0_4": "args.yml cannot be read as YAML: ",
        "Maze-v0_5": "Maze-v0/args.yml and config.yml are not as RL Zoo writes them: KeyError('n_timesteps')",
        "Maze-v0_6": "the model Maze-v0.zip cannot be read: ",
        "Maze-v0_7": "evaluations.npz is damaged: it has not one finite value for each of 3 evaluations",
        "Maze-v0_8": "evaluations.npz is damaged: it has not one finite value for each of 3 evaluations",
        "Maze-v0_9": "evaluations.npz is damaged: its steps do not increase",
        "seed_4": "training did not begin, see output.txt there",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reasons[name].startswith(reason), name


def test_a_run_that_resumed_from_another_is_one_with_it(tmp_path: Path):
    # Stopped after 50 offline steps of 100; the rest of them and 200 online ones; and 40 more from a checkpoint at 230
    write_run(tmp_path, 1, steps=[20, 40, 60], steps_done=50)
    second = write_run(
        tmp_path, 2, steps=[100, 200], successes=[0.6, 0.7], trained_agent="logs/qam/Maze-v0_1/Maze-v0.zip"
    )
    write_model(second / "Maze-v0.zip", 250)
    write_model(second / "rl_model_180_steps.zip", 180)
    write_run(
        tmp_path,
        3,
        steps=[30],
        successes=[0.9],
        steps_done=40,
        n_timesteps=40,
        trained_agent="logs/qam/Maze-v0_2/rl_model_180_steps.zip",
    )
    write_run(tmp_path, 4, trained_agent="elsewhere/qam/Maze-v0_7/Maze-v0.zip")
    runs, _ = read_runs([tmp_path])
    (run,), left_out = join_resumed(runs)
    assert run.folder.name == "Maze-v0_3"
    # 60 was after the model from which training went on
    assert run.steps.tolist() == [20, 40, 150, 260]
    assert run.values["success"].tolist() == [0, 0.5, 0.6, 0.9]
    assert (run.offline_steps, run.total_steps, run.steps_done) == (100, 270, 270)
    assert run.settings["n_timesteps"] == 170
    assert [each.reason for each in left_out] == [
        "it resumed from elsewhere/qam/Maze-v0_7/Maze-v0.zip, whose run is not among those that were read: give its "
        "folder too, -f FOLDER"
    ]


def test_a_run_that_was_stopped_before_its_first_evaluation_is_one_with_its_end(tmp_path: Path):
    write_run(tmp_path, 1, steps=(), steps_done=50)
    write_run(tmp_path, 2, steps=[100, 200], successes=[0.6, 0.7], trained_agent="logs/qam/Maze-v0_1/Maze-v0.zip")
    write_run(tmp_path, 3, steps=(), trained_agent="logs/qam/Maze-v0_2/Maze-v0.zip")
    (run,), left_out = join_resumed(read_runs([tmp_path])[0])
    assert left_out == []
    assert run.steps.tolist() == [150, 250]
    assert run.values["success"].tolist() == [0.6, 0.7]


def test_a_suite_that_goes_on_from_the_ends_of_another_is_one_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    seed = "qam/Maze-v0/seed_0"
    write_run(tmp_path / "offline" / seed, steps=[50, 100], successes=[0, 0.5], steps_done=100)
    write_run(
        tmp_path / "online" / seed,
        steps=[100],
        successes=[1],
        trained_agent=f"offline/{seed}/qam/Maze-v0_1/Maze-v0.zip",
    )
    (run,), left_out = join_resumed(read_runs([tmp_path / "offline", tmp_path / "online"])[0])
    assert (run.steps.tolist(), left_out) == ([50, 100, 200], [])


def test_runs_that_differ_by_their_settings_are_methods_of_their_own(tmp_path: Path):
    write_run(tmp_path, 1, inverse_temperature=1.0)
    write_run(tmp_path, 2, inverse_temperature=3.0)
    write_run(tmp_path, 5, inverse_temperature=3)
    write_run(tmp_path, 3)
    write_run(tmp_path, algorithm="sac")
    write_run(tmp_path, task="Other-v0", inverse_temperature=5.0)
    runs = name_methods(read_runs([tmp_path])[0])
    assert {(run.task, run.method) for run in runs} == {
        ("Maze-v0", "qam, inverse_temperature=1"),
        ("Maze-v0", "qam, inverse_temperature=3"),
        ("Maze-v0", "qam, inverse_temperature not set"),
        ("Maze-v0", "sac"),
        ("Other-v0", "qam"),
    }
    write_run(tmp_path / "again", 3)
    runs = name_methods([run for root in (tmp_path / "qam", tmp_path / "again") for run in read_runs([root])[0]])
    assert f"{tmp_path / 'again'}: qam" in {run.method for run in runs}


def test_one_seed_counts_once(tmp_path: Path):
    for number, steps_done in enumerate((300, 200, 300), start=1):
        write_run(tmp_path, number, steps_done=steps_done)
    write_run(tmp_path, 4, seed=1)
    kept, left_out = drop_repetitions(name_methods(read_runs([tmp_path])[0]))
    assert [run.folder.name for run in kept] == ["Maze-v0_3", "Maze-v0_4"]
    assert [(each.folder.name, each.reason.rpartition("/")[2]) for each in left_out] == [
        ("Maze-v0_2", "Maze-v0_1"),
        ("Maze-v0_1", "Maze-v0_3"),
    ]


# ---------------------------------------------------------------------- axes, scores


def runs_of(root: Path) -> list[TrainingRun]:
    return name_methods(read_runs([root])[0])


def test_all_runs_go_online_at_the_same_place(tmp_path: Path):
    write_run(tmp_path)
    write_run(tmp_path, algorithm="sac", offline_steps=0)
    offline, online = runs_of(tmp_path)
    axis = step_axis([offline, online])
    assert (axis.offline_end, axis.end, axis.label) == (100, 300, "gradient steps, then environment steps")
    assert axis.place(offline).tolist() == [100, 200, 300]
    assert axis.place(online).tolist() == [200, 300, 400]
    assert [axis.tick(each) for each in (0, 200, 12_500, 1e6)] == ["0", "200", "12.5k", "1M"]
    assert step_axis([online]).label == "environment steps"
    assert common_axis([offline, online]) == axis


def test_phases_of_different_lengths_are_compared_by_shares(tmp_path: Path):
    write_run(tmp_path)
    write_run(tmp_path, task="Other-v0", offline_steps=150, n_timesteps=300)
    first, second = runs_of(tmp_path)
    axis = common_axis([first, second])
    assert axis.has_shares
    assert (axis.offline_end, axis.end) == (1, 2)
    assert axis.place(first).tolist() == [1, 1.5, 2]
    np.testing.assert_allclose(axis.place(second), [2 / 3, 1 + 1 / 6, 1.5])
    assert [axis.tick(each) for each in (0, 0.5, 1, 1.5, 2)] == ["0%", "50%", "100%", "50%", "100%"]


def test_scores_after_each_phase(tmp_path: Path):
    write_run(tmp_path, steps=[50, 90, 250], offline_steps=100)
    write_run(tmp_path, task="Rewards-v0", successes=None)
    write_run(tmp_path, 2, steps_done=200, seed=1)
    tasks, _ = make_tasks(runs_of(tmp_path))
    maze, rewards = tasks
    assert (maze.metric_name, maze.bounds, rewards.metric_name, rewards.bounds) == (
        "success",
        (0, 1),
        "reward",
        (0.5, 4.5),
    )
    # One of two is finished
    assert (maze.after_offline("qam").tolist(), maze.last("qam").tolist()) == ([0.5], [1.0])
    np.testing.assert_allclose(rewards.scores(np.array([0.5, 2.5, 4.5])), [0, 0.5, 1])
    (only,), left_out = make_tasks(runs_of(tmp_path), "success")
    assert only.name == "Maze-v0"
    assert [each.reason for each in left_out] == [
        "success rate was not recorded: the environment does not say is_success"
    ]


# ---------------------------------------------------------------------- published


def test_published_numbers_are_of_the_tasks_that_there_are():
    by_task = scores.published_scores()
    assert set(by_task) == set(OGBENCH_TASKS)
    assert all(
        [score.method for score in of_task] == [*["QAM", "QAM-E", "QAM-F", "FQL", "IFQL", "ReBRAC", "BAM"]]
        for of_task in by_task.values()
    )
    with scores.PUBLISHED_FILE.open() as file:
        assert next(csv.reader(file))[0].startswith("# Success in percent")


@pytest.mark.parametrize(
    ("domain", "method", "offline", "online"),
    [
        ("cube-double-play", "QAM", 64, 100),
        ("antmaze-large-navigate", "QAM-E", 83, 96),
        ("humanoidmaze-medium-navigate", "QAM", 67, 83),
        ("puzzle-4x4-play", "QAM-E", 39, 99),
    ],
)
def test_published_numbers_have_the_published_means(domain: str, method: str, offline: int, online: int):
    """Means over the five tasks of a domain are published separately."""
    found = [
        score
        for number in range(1, 6)
        for score in scores.published_scores()[f"{domain}-singletask-task{number}-v0"]
        if score.method == method
    ]
    assert 100 * np.mean([score.offline for score in found]) == pytest.approx(offline, abs=0.6)
    assert 100 * np.mean([score.online for score in found]) == pytest.approx(online, abs=0.6)


# ---------------------------------------------------------------------- report


def test_the_table_of_a_report(tmp_path: Path):
    task = "cube-double-play-singletask-task2-v0"
    for seed in range(3):
        write_run(tmp_path, seed + 1, task=task, seed=seed, successes=[0, 0.5, 0.5 + seed / 10])
    write_run(tmp_path, 1, "qam_edit", task, steps_done=None)
    report = make_report([tmp_path])
    edited, row = sorted(report.rows, key=lambda row: row.runs)
    assert (row.runs, row.steps, row.offline, row.published) == ("3", "100 + 200", "0.00 [0.00, 0.00]", "0.79 → 1.00")
    assert row.last.startswith("0.60 [0.5")
    assert (edited.method, edited.runs, edited.last) == ("qam_edit", "0 of 1", "not finished")
    assert report.notes == [
        "Not in the charts over all tasks, without finished runs on each of them: qam_edit.",
    ]
    assert make_report([tmp_path], with_published=False).rows[0].published == ""
    assert [row.method for row in make_report([tmp_path], algorithms=["qam"]).rows] == ["qam"]


def test_charts_of_earlier_calls_do_not_stay(tmp_path: Path):
    folder, other = write_run(tmp_path), write_run(tmp_path, 2, seed=1)
    output = tmp_path / "plots"
    names = [path.name for path in make_report([tmp_path / "qam"]).write(output)]
    assert names == [
        "index.html",
        *(f"{name}.png" for name in ("learning_curves", "aggregate", "sample_efficiency", "performance_profile")),
    ]
    for each, note in (
        (other, "There are no charts over all runs, which need several of a method: other seeds or other tasks."),
        (folder, "There are no charts over all tasks: no method has finished runs on each of them."),
    ):
        (each / "Maze-v0.zip").unlink()
        report = make_report([tmp_path / "qam"])
        assert [path.name for path in report.write(output)] == names[:2]
        assert {path.name for path in output.iterdir()} == set(names[:2])
        assert report.notes == [note]


# ---------------------------------------------------------------------- damaged runs

HUGE = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


def damaged(root: Path) -> list[Path]:
    """Folders of runs, each with something else in it that no run has."""
    folders = []

    def other(file: str | None = None, content: str | bytes = "", **kwargs: Any) -> None:
        kwargs = {"steps": (100, 200, 300), "successes": (0.0, 0.5, 1.0)} | kwargs
        folders.append(write_run(root, len(folders) + 2, seed=len(folders) + 2, **kwargs))
        if file is not None:
            data = content.encode() if isinstance(content, str) else content
            (folders[-1] / file).write_bytes(data)

    for steps in ([100, 200, np.inf], [np.nan, 1, 2], [-5, 1, 2], [1, 2, 1e300], ["a", "b", "c"], [[1, 2, 3]]):
        other(steps=steps)
    other(successes=[0, 0.5, 1e300])
    for n_timesteps in (".inf", ".nan", "-5", "[3]", "1e300", "x", "9" * 400):
        other("Maze-v0/config.yml", f"n_timesteps: {n_timesteps}")
    other("Maze-v0/config.yml", HUGE)
    other("Maze-v0/config.yml", "n_timesteps: &a [*a]")
    other("Maze-v0/config.yml", "[" * 5000)
    other("Maze-v0/config.yml", b"\xff\xfe\x00")
    other("Maze-v0/args.yml", "{algo: qam, env: Maze-v0, seed: 1, n_timesteps: -1, trained_agent: 7}")
    other("Maze-v0/args.yml", f"{{algo: qam, env: {'x' * 5000}, seed: 1, n_timesteps: -1}}")
    for content in (b"", b"PK", b"\x93NUMPY", b"no zip"):
        other("evaluations.npz", content)
        other("Maze-v0.zip", content)
    for attributes in ("", "[" * 100_000, '{"num_timesteps": Infinity, "_total_timesteps": 3}', "[]", '{"a": 3}'):
        other()
        with zipfile.ZipFile(folders[-1] / "Maze-v0.zip", "w") as file:
            file.writestr("data", attributes)
    other()
    content = (folders[-1] / "evaluations.npz").read_bytes()
    # Its directory says that the arrays are encrypted
    encrypted = re.sub(rb"PK\x01\x02(....)..", lambda found: found[0][:8] + b"\x01\x00", content, flags=re.DOTALL)
    (folders[-1] / "evaluations.npz").write_bytes(encrypted)
    other(trained_agent="logs/qam/Maze-v0_2/Maze-v0.zip")
    return folders


def test_damaged_runs_are_left_out_and_the_others_are_shown(tmp_path: Path):
    write_run(tmp_path)
    folders = damaged(tmp_path)
    report = make_report([tmp_path])
    assert [row.runs for row in report.rows] == ["1"]
    assert {each.folder for each in report.left_out} == set(folders)
    assert all(each.reason for each in report.left_out)
    report.write(tmp_path / "plots")


def test_runs_that_resumed_from_each_other_are_left_out(tmp_path: Path):
    for number in (1, 2):
        write_run(tmp_path, number, trained_agent=f"logs/qam/Maze-v0_{3 - number}/Maze-v0.zip")
    write_run(tmp_path, 3)
    runs, left_out = join_resumed(read_runs([tmp_path])[0])
    assert ([run.folder.name for run in runs], len(left_out)) == (["Maze-v0_3"], 2)


@pytest.mark.parametrize("name", [r"$\frac$", "$", "a_b^c", "<b>&", "日本", "x" * 150, "%s {} {0}", "a\tb"])
def test_names_are_names_and_no_formulas(name: str, tmp_path: Path):
    (tmp_path / name).mkdir()
    for seed in (1, 2):
        write_run(tmp_path / name, seed, algorithm=name, task=name, seed=seed, gamma=name * seed)
        write_run(tmp_path / "other", seed, task=name, seed=seed)
    report = make_report([tmp_path / name, tmp_path / "other"])
    report.write(tmp_path / "plots")
    assert len(report.rows) == 3
    assert {row.task for row in report.rows} == {name}


def test_settings_with_other_keys_than_names_are_compared_too(tmp_path: Path):
    for number, value in enumerate(("{1: 2, x: {3: 4, y: 5}}", "{2: 2, null: 3, [1, 2]: 4}", "{}"), start=1):
        folder = write_run(tmp_path, number)
        (folder / "Maze-v0" / "config.yml").write_text(
            f"{{n_timesteps: 200, offline_steps: 100, 7: a, kwargs: {value}}}"
        )
    report = make_report([tmp_path])
    report.write(tmp_path / "plots")
    assert len(report.rows) + len(report.left_out) == 3
    assert len(report.rows) >= 2
