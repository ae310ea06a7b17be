"""The suites of ``benchmarks/claims``, and the way from runs to the page."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sb3_qam.suite import read_suite
from tests.pages import ROOT
from tests.results.test_results import write_run

CLAIMS = ROOT / "benchmarks" / "claims"


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CLAIMS))
    sys.modules.pop("report", None)
    module = pytest.importorskip("report")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(module, "PICTURE", tmp_path / "claims.png")
    return module


def run(report: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    report.main()


@pytest.mark.parametrize("path", sorted(CLAIMS.rglob("*.yml")), ids=lambda path: path.stem)
def test_suites_are_of_the_task_with_settings_that_all_share(path: Path):
    runs = read_suite(path, [1])
    assert {run.task for run in runs} == {"scene-play-singletask-task2-v0"}
    assert len({run.hyperparams["offline_steps"] for run in runs}) == 1
    for run in runs:
        if path.stem.startswith("online"):
            # A run of offline.yml with the same seed
            (before,) = [each for each in read_suite(CLAIMS / "offline.yml", [1]) if each.algorithm == run.algorithm]
            folder = before.folder(Path("benchmark/offline")) / run.algorithm
            assert run.options["trained-agent"] == f"{folder}/{run.task}_1/{run.task}.zip"
            assert {**before.hyperparams, **run.hyperparams}.items() >= before.hyperparams.items()
        else:
            assert run.options["n-timesteps"] == 5


def test_the_table_is_that_of_the_csv_file_and_this_that_of_the_runs(
    tmp_path: Path, report: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    steps = (25_000, 50_000)
    for seed, last in enumerate((1.0, 0.5, 0.75)):
        write_run(tmp_path / "offline", seed + 1, seed=seed, steps=steps, successes=(0.25, last))
    write_run(tmp_path / "offline", algorithm="bc", steps=steps, successes=(0.0, 0.5))
    write_run(tmp_path / "few_steps", steps=steps, successes=(0.0, 0.0))
    folders = [str(tmp_path / "offline"), str(tmp_path / "few_steps")]
    run(report, monkeypatch, "--runs", *folders)
    table = capsys.readouterr().out
    assert "| few_steps | qam | 50,000 | 0 | 0 | 4 |" in table
    assert "| offline | bc | 50,000 | 50 | 50 |  |" in table
    assert "| offline | qam | 50,000 | 75 [50, 100] | 100, 50, 75 | 80 |" in table
    assert report.RESULTS.read_text().splitlines()[:2] == [
        "suite,algorithm,seed,steps,success_percent",
        "few_steps,qam,0,25000,0.0",
    ]
    assert report.PICTURE.is_file()
    run(report, monkeypatch)
    assert capsys.readouterr().out == table
    # Only the suites that are named are read anew
    run(report, monkeypatch, "--runs", folders[1])
    assert capsys.readouterr().out == table


def test_online_curves_begin_where_the_offline_run_of_the_same_seed_ended(tmp_path: Path, report: ModuleType):
    write_run(tmp_path / "offline", 1, steps=(100, 200), successes=(0.25, 0.5))
    write_run(tmp_path / "offline", 2, seed=1, steps=(100, 200), successes=(0.25, 0.75))
    write_run(tmp_path / "online_half", seed=1, steps=(300, 400), successes=(1.0, 0.5))
    curves = report.as_curves(report.replace_suites([], [tmp_path / "offline", tmp_path / "online_half"]))
    assert curves["online_half", "qam"] == {1: [(0, 75.0), (300, 100.0), (400, 50.0)]}
    report.draw(curves)
    assert report.PICTURE.is_file()
    # The offline run was repeated for it
    write_run(tmp_path / "offline_again", seed=1, steps=(100, 200), successes=(0.0, 0.25))
    folders = [tmp_path / name for name in ("offline", "offline_again", "online_half")]
    rows = report.replace_suites([], folders)
    assert report.as_curves(rows)["online_half", "qam"] == {1: [(0, 25.0), (300, 100.0), (400, 50.0)]}
    # Whoever runs offline.yml has no need of our repeats
    rows = report.replace_suites(rows, [tmp_path / "offline"])
    assert report.as_curves(rows)["online_half", "qam"] == {1: [(0, 75.0), (300, 100.0), (400, 50.0)]}


def test_nothing_that_is_wrong_reaches_the_csv_file(
    tmp_path: Path, report: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path / "offline", 1, steps=(100, 200), successes=(0.25, 1.0))
    folders = ["--runs", str(tmp_path / "offline")]
    run(report, monkeypatch, *folders)
    before, table = report.RESULTS.read_text(), capsys.readouterr().out

    # A second seed that is at work
    write_run(tmp_path / "offline", 2, seed=1, steps=(100,), successes=(0.0,), steps_done=100)
    run(report, monkeypatch, *folders)
    output = capsys.readouterr().out
    assert "Maze-v0_2: it has not finished\n" in output
    assert output.endswith(table)
    # The suite begun anew in another place
    write_run(tmp_path / "anew" / "offline", steps=(100,), successes=(0.0,), steps_done=100)
    run(report, monkeypatch, "--runs", str(tmp_path / "anew" / "offline"))
    assert "Nothing of offline has finished" in capsys.readouterr().out
    assert report.RESULTS.read_text() == before

    # The same seed in two folders of one suite
    write_run(tmp_path / "again" / "offline", steps=(100, 200), successes=(0.0, 0.0))
    with pytest.raises(SystemExit, match="are both qam with seed 0"):
        run(report, monkeypatch, *folders, str(tmp_path / "again" / "offline"))

    # The same seed twice, seeds without a common step, no folder
    write_run(tmp_path / "offline", 3, steps=(100, 200), successes=(0.0, 0.0))
    write_run(tmp_path / "other", 1, steps=(100, 200), successes=(0.0, 0.0))
    write_run(tmp_path / "other", 2, seed=1, steps=(150, 250), successes=(0.0, 0.0))
    (tmp_path / "updates.json").write_text("[]")
    for arguments, expected in {
        (*folders,): "Error: .*Maze-v0_1 and .*Maze-v0_3 are both qam with seed 0: expected one task",
        ("--runs", str(tmp_path / "other")): r"Error: There is no step at which all of the seeds \[0, 1\] of a method",
        ("--runs", str(tmp_path / "nowhere")): "Error: There is no folder",
        ("--expect", str(tmp_path / "nowhere")): "Error: .*No such file",
        ("--expect", str(tmp_path / "updates.json")): (
            "Error: .* has no rates of QAM with and without graphs: expected what"
        ),
    }.items():
        with pytest.raises(SystemExit, match=expected):
            run(report, monkeypatch, *arguments)
    assert report.RESULTS.read_text() == before


def test_without_results_it_says_so(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(report, monkeypatch)
    assert capsys.readouterr().out.startswith("There are no results yet")


def test_the_page_shows_the_committed_numbers():
    results = CLAIMS / "results.csv"
    page = (ROOT / "docs" / "guide" / "results.md").read_text()
    if not results.is_file():
        assert "What is measured so far: nothing" in page
        return
    sys.path.insert(0, str(CLAIMS))
    try:
        module = pytest.importorskip("report")
    finally:
        sys.path.remove(str(CLAIMS))
    for line in module.make_table(module.as_curves(module.read_rows(results))).splitlines():
        assert line in page


def test_hours_of_a_gpu_are_those_of_the_measured_rates(
    tmp_path: Path, report: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # As benchmarks/updates.py writes them
    rates = {"qam": 100.0, "sqam": 200.0, "cuda_graph=True": 500.0}
    rows = [{"size": "paper", "arguments": name, "updates_per_s": rate} for name, rate in rates.items()]
    (tmp_path / "updates.json").write_text(json.dumps([{**rows[0], "size": "mid"}, *rows]))
    run(report, monkeypatch, "--expect", str(tmp_path / "updates.json"))
    output = capsys.readouterr().out
    assert "sqam: 100,000 updates at 500.0 a second: 0.06 hours" in output
    assert "rebrac: 100,000 updates at 100.0 a second: 0.28 hours" in output
    # 2 at 100 (ifql, rebrac), which have no graphs, and 5 at 500
    assert "One seed: 0.83 hours" in output
