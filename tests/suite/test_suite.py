"""Suites of runs: complete, each run once, and the same whatever has interrupted them."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from typer.testing import CliRunner

from sb3_qam import QAM
from sb3_qam.cli import app
from sb3_qam.cli.benchmark import parse_seeds
from sb3_qam.suite import OUTPUT, Run, execute, read_suite
from sb3_qam.suite.runs import FINISHED, LOCK

SUITE = {
    "tasks": {"Pendulum-v1": {"gamma": 0.9}, "MountainCarContinuous-v0": None},
    "algorithms": {"qam": None, "qam_edit": {"edit_scale": 0.2}},
    "hyperparams": {
        "buffer_size": 1000,
        "learning_starts": 10,
        "flow_steps": 2,
        "batch_size": 16,
        "chunk_size": 2,
        "policy_kwargs": {"net_arch": [8]},
    },
    "options": {"n-timesteps": 120, "eval-freq": 50, "eval-episodes": 1, "env-kwargs": ["max_episode_steps:50"]},
}


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(SUITE | changes))
    return path


def results(run: Run, root: Path) -> dict[str, np.ndarray]:
    """The numbers of a run; that there is one folder of the zoo is checked along the way."""
    (folder,) = run.folder(root).glob("*/*_*")
    assert folder.name == f"{run.task}_1"
    parameters = QAM.load(folder / f"{run.task}.zip").policy.state_dict()
    with np.load(folder / "evaluations.npz") as evaluations:
        return {**evaluations, **{name: value.numpy() for name, value in parameters.items()}}


def start(
    path: Path, root: Path, seeds: str, *options: str, jobs: str = "2", python_path: str = "", errors: int | None = None
) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "sb3_qam", "benchmark", str(path), "--seeds", seeds, *options]
    environment = os.environ | {"PYTHONPATH": python_path or str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [*command, "--folder", str(root), "--jobs", jobs],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def check_kill_and_start_again(tmp_path: Path, path: Path, seeds: str, whole_group: bool, *options: str) -> None:
    root = tmp_path / "broken"
    process = start(path, root, seeds, *options, jobs="1")
    # One run is finished, and another one in the middle
    wait_until(lambda: any(root.glob(f"*/*/*/{FINISHED}")))
    runs = read_suite(path, parse_seeds(seeds))
    wait_until(
        lambda: (
            any(not run.is_finished(root) and any(run.folder(root).glob("*/*/*.monitor.csv")) for run in runs)
            or all(run.is_finished(root) for run in runs)
        )
    )
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    finished = {str(run): (run.folder(root) / FINISHED).stat().st_mtime_ns for run in runs if run.is_finished(root)}
    assert len(finished) > 0

    again = start(path, root, seeds, *options)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    for run in runs:
        assert run.is_finished(root)
        if str(run) in finished:
            assert (run.folder(root) / FINISHED).stat().st_mtime_ns == finished[str(run)]
        unbroken = tmp_path / "unbroken"
        execute(run, unbroken)
        expected, found = results(run, unbroken), results(run, root)
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{run}: {name}")
    assert len(list(root.glob(f"*/*/*/{FINISHED}"))) == len(runs)

    # Nothing is left to do
    assert (
        f"{len(runs)} runs in {root}, {len(runs)} of them finished"
        in start(path, root, seeds, *options).communicate()[0]
    )


def test_a_killed_suite_resumes(tmp_path: Path):
    path = write(tmp_path / "suite.yml", tasks=["Pendulum-v1"], algorithms=["qam", "qam_edit"])
    check_kill_and_start_again(tmp_path, path, "7", whole_group=True)


@pytest.mark.slow
def test_a_suite_of_twelve_runs_resumes_whose_launcher_was_killed(tmp_path: Path):
    check_kill_and_start_again(tmp_path, write(tmp_path / "suite.yml"), "0-2", whole_group=False)


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes, which have room for one run each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    # Of the processes that run tasks
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=size)
    try:
        cluster.add_node(**size)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_a_suite_on_the_nodes_of_a_ray_cluster_is_the_local_one(tmp_path: Path, ray_cluster: Any):
    path = write(tmp_path / "suite.yml", tasks=["Pendulum-v1"])
    options = ["--launcher", "ray", "--address", ray_cluster.address]
    check_kill_and_start_again(tmp_path, path, "7-8", False, *options)
    outputs = [(run.folder(tmp_path / "broken") / OUTPUT).read_text() for run in read_suite(path, [7, 8])]
    nodes = {node for output in outputs for node in re.findall(r"^On .*, node (\w+) of Ray$", output, re.MULTILINE)}
    assert nodes == {node.node_id for node in ray_cluster.list_all_nodes()}


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_on_a_ray_cluster(tmp_path: Path, ray_cluster: Any):
    path = write(tmp_path / "suite.yml", tasks=["Pendulum-v1"], options={"n-timesteps": 100_000})
    root = tmp_path / "runs"
    process = start(path, root, "7", "--launcher", "ray", "--address", ray_cluster.address)
    runs = read_suite(path, [7])
    wait_until(lambda: all(any(run.folder(root).glob("*/*/*.monitor.csv")) for run in runs))
    os.kill(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    for run in runs:
        assert not run.is_finished(root)
        # Nobody writes there any more
        with FileLock(run.folder(root) / LOCK, timeout=60):
            pass


def test_what_a_suite_consists_of(tmp_path: Path):
    runs = read_suite(write(tmp_path / "suite.yml"), [3, 4])
    assert len(runs) == len({run.folder(tmp_path) for run in runs}) == 8
    (run,) = [run for run in runs if (run.task, run.algorithm, run.seed) == ("Pendulum-v1", "qam_edit", 4)]
    assert run.hyperparams == {**SUITE["hyperparams"], "gamma": 0.9, "edit_scale": 0.2}
    arguments = run.arguments(tmp_path)
    assert arguments[:6] == ["--algo", "qam_edit", "--env", "Pendulum-v1", "--seed", "4"]
    assert arguments[arguments.index("--num-threads") + 1] == "1"
    assert "policy_kwargs:{'net_arch': [8]}" in arguments


def test_a_run_that_fails_is_named_and_not_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    path = write(tmp_path / "suite.yml", tasks={"Pendulum-v1": {"gamma": 2.0}}, algorithms=["qam"])
    args = ["benchmark", str(path), "--seeds", "1", "--folder", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    assert "1/1 qam on Pendulum-v1, seed 1: failed, see" in result.output
    assert "(ValueError: gamma must be a finite number" in result.output
    assert "Error: 1 of 1 runs failed" in result.output
    (run,) = read_suite(path, [1])
    assert not run.is_finished(tmp_path / "runs")
    assert "gamma must be" in (run.folder(tmp_path / "runs") / OUTPUT).read_text()


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run("Pendulum-v1", "qam", 0, {}, {})
    run.folder(tmp_path).mkdir(parents=True)
    (run.folder(tmp_path) / FINISHED).write_text(json.dumps({"task": "Pendulum-v1"}))
    with pytest.raises(ValueError, match=r"seed_0 was finished with other settings"):
        run.is_finished(tmp_path)
    with pytest.raises(ValueError, match=r"suite.yml must have tasks, and may have algorithms"):
        read_suite(write(tmp_path / "suite.yml", envs=["Pendulum-v1"]), [0])
    with pytest.raises(ValueError, match="num-threads of a suite's options must be a whole number: 'x'"):
        read_suite(write(tmp_path / "suite.yml", options={"num-threads": "x"}), [0])
    for value, shown in {
        "{gamma: .nan}": "nan",
        "{policy_kwargs: {3: [8]}}": "3",
        "{since: 2026-01-02}": "2026-01-02",
    }.items():
        (tmp_path / "suite.yml").write_text(f"tasks: [Pendulum-v1]\nhyperparams: {value}")
        with pytest.raises(ValueError, match=rf"suite.yml must consist of names, .*, got {shown}: quote what is"):
            read_suite(tmp_path / "suite.yml", [0])
    with pytest.raises(ValueError, match="algorithms of a suite must be a list of names, or a dict"):
        read_suite(write(tmp_path / "suite.yml", algorithms={"qam": 3}), [0])
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    for seeds in ("", "a", "3-1", "1-"):
        with pytest.raises(ValueError, match="--seeds must be numbers or ranges"):
            parse_seeds(seeds)
    args = ["benchmark", str(write(tmp_path / "suite.yml")), "--folder", str(tmp_path / "none"), "--launcher"]
    for launcher, error in {
        ("moon",): "--launcher must be one of local, ray, got 'moon'.",
        ("local", "--gpus", "0.5"): "--gpus 0.5 is for --launcher ray",
        ("local", "--address", "10.0.0.1:6379"): "--address 10.0.0.1:6379 is for --launcher ray",
        ("ray", "--address", "127.0.0.1:1"): "There is no Ray cluster to join at 127.0.0.1:1",
        ("ray", "--address", "moon"): "There is no Ray cluster to join at moon",
    }.items():
        assert f"Error: {error}" in CliRunner().invoke(app, [*args, *launcher]).output
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: find(name) if name != "ray" else None
    )
    assert "pip install 'sb3-qam[ray]'" in CliRunner().invoke(app, [*args, "ray"]).output
    assert not (tmp_path / "none").exists()
