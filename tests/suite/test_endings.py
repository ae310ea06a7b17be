"""How runs of a suite end: what counts as finished, what is stopped, what is deleted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from typer.testing import CliRunner

from sb3_qam.cli import app
from sb3_qam.suite import OUTPUT, Run, execute, read_suite, run_locally
from sb3_qam.suite.runs import FINISHED, LOCK, STARTED
from tests.suite.test_suite import start, wait_until

# An environment whose twentieth step does what it is told to
MODULE = """
import os, time
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv

ENDINGS = {
    "os._exit": lambda: os._exit(0),
    "SystemExit": lambda: exec("raise SystemExit(0)"),
    "KeyboardInterrupt": lambda: exec("raise KeyboardInterrupt"),
    "hang": lambda: time.sleep(1000),
    "none": lambda: None,
}

class Ends(PendulumEnv):
    n = 0

    def __init__(self, ending="none"):
        super().__init__()
        self.ending = ending

    def step(self, action):
        self.n += 1
        if self.n == 20:
            ENDINGS[self.ending]()
        return super().step(action)

gym.register("Ends-v0", Ends, max_episode_steps=10)
"""
HYPERPARAMS: dict[str, Any] = {
    "buffer_size": 100,
    "learning_starts": 10,
    "flow_steps": 2,
    "batch_size": 8,
    "policy_kwargs": {"net_arch": [8]},
}


@pytest.fixture
def path_of_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "endings.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path / "modules")]))


def make_run(ending: str, seed: int = 0, n_timesteps: int = 40) -> Run:
    options = {
        "num-threads": 1,
        "n-timesteps": n_timesteps,
        "eval-freq": -1,
        "gym-packages": ["endings"],
        "env-kwargs": {"ending": ending},
    }
    return Run("Ends-v0", "qam", seed, HYPERPARAMS, options)


def output_of(run: Run, root: Path) -> str:
    return (run.folder(root) / OUTPUT).read_text()


@pytest.mark.usefixtures("path_of_module")
@pytest.mark.parametrize("ending", ["os._exit", "SystemExit", "KeyboardInterrupt"])
def test_a_run_that_ends_before_its_last_step_is_not_finished(ending: str, tmp_path: Path):
    run = make_run(ending)
    assert list(run_locally([run], tmp_path)) == [(run, False)]
    assert not (run.folder(tmp_path) / FINISHED).exists()
    if ending == "KeyboardInterrupt":
        # The zoo has saved its model as that of any other
        assert "Ends-v0, seed 0 ended after 19 of 40 steps" in output_of(run, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("path_of_module")
def test_nor_is_it_on_ray(tmp_path: Path):
    pytest.importorskip("ray")
    from sb3_qam.suite import run_on_ray

    runs = [make_run("os._exit"), make_run("none", 1), make_run("KeyboardInterrupt", 2)]
    outcomes = {run.seed: is_finished for run, is_finished in run_on_ray(runs, tmp_path, address="local")}
    assert outcomes == {0: False, 1: True, 2: False}


@pytest.mark.usefixtures("path_of_module")
def test_a_run_that_hangs_is_stopped_after_the_timeout_and_gives_its_place_to_the_next(tmp_path: Path):
    runs = [make_run("hang"), make_run("none", 1)]
    assert list(run_locally(runs, tmp_path, jobs=1, timeout=30)) == [(runs[0], False), (runs[1], True)]
    assert "Timeout" in output_of(runs[0], tmp_path)
    assert "endings.py" in output_of(runs[0], tmp_path)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for is dead
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes where Linux has them")
@pytest.mark.usefixtures("path_of_module")
@pytest.mark.parametrize("stopped_by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda each: each.name)
def test_the_runs_end_with_the_command(stopped_by: signal.Signals, tmp_path: Path):
    """Whatever ends the command's own process, and even if the run hangs."""
    run = make_run("hang")
    suite = {"tasks": [run.task], "hyperparams": HYPERPARAMS, "options": run.options}
    (tmp_path / "suite.yml").write_text(yaml.safe_dump(suite))
    root = tmp_path / "runs"
    environment = os.environ["PYTHONPATH"]
    process = start(tmp_path / "suite.yml", root, "0", jobs="1", python_path=environment)
    started = run.folder(root) / STARTED
    wait_until(lambda: started.is_file() and any(run.folder(root).glob("*/*/*.monitor.csv")))
    child = json.loads(started.read_text())["process"]
    assert is_alive(child)
    os.kill(process.pid, stopped_by)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if stopped_by == signal.SIGKILL else 130), output
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)
    with FileLock(run.folder(root) / LOCK, timeout=1):
        pass


def test_who_does_a_run_already_is_said(tmp_path: Path):
    run = Run("Pendulum-v1", "qam", 0, {}, {"num-threads": 1, "n-timesteps": 0})
    folder = run.folder(tmp_path)
    folder.mkdir(parents=True)
    assert run.process_at_work(tmp_path) is None
    code = (
        "import sys, time; from filelock import FileLock; from pathlib import Path; from sb3_qam.suite import Run\n"
        f"run, root = Run('Pendulum-v1', 'qam', 0, {{}}, {run.options!r}), Path({str(tmp_path)!r})\n"
        f"with FileLock({str(folder / LOCK)!r}): run.begin(root); print('begun', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == b"begun\n"
        assert str(run.process_at_work(tmp_path)).startswith(f"process {other.pid} on ")
        (tmp_path / "suite.yml").write_text("{tasks: [Pendulum-v1], options: {n-timesteps: 0}}")
        command = start(tmp_path / "suite.yml", tmp_path, "0", errors=subprocess.STDOUT)
        assert command.stdout is not None
        command.stdout.readline()
        line = command.stdout.readline()
        assert line.startswith(f"qam on Pendulum-v1, seed 0: process {other.pid} on ")
        assert line.endswith(" is running it; waiting for that\n")
        command.terminate()
        command.communicate()
    finally:
        other.communicate()
    assert run.process_at_work(tmp_path) is None


# ---------------------------------------------------------------------- what a suite may write and delete


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/../../x", "..", ".", "", "a/./b", "..\\x"])
@pytest.mark.parametrize("key", ["tasks", "algorithms"])
def test_names_that_lead_out_of_the_suite_are_refused(key: str, name: str, tmp_path: Path):
    for entries in ([name], {name: {"gamma": 0.9}}):
        (tmp_path / "suite.yml").write_text(yaml.safe_dump({"tasks": ["Pendulum-v1"], key: entries}))
        with pytest.raises(ValueError, match=f"^{key} of a suite must be names"):
            read_suite(tmp_path / "suite.yml", [0])


def test_ids_with_a_namespace_are_names(tmp_path: Path):
    (tmp_path / "suite.yml").write_text("{tasks: [ALE/Pong-v5, module:Env-v0]}")
    for run in read_suite(tmp_path / "suite.yml", [0]):
        assert run.folder(tmp_path).is_relative_to(tmp_path)


def test_what_the_suite_has_not_written_is_not_deleted(tmp_path: Path):
    run = Run("Pendulum-v1", "qam", 0, {}, {})
    left_over = run.folder(tmp_path) / "qam"
    left_over.mkdir(parents=True)
    (left_over / "thesis.tex").write_text("x")
    (run.folder(tmp_path) / "notes").mkdir()
    other = Run("Other-v0", "qam", 0, {}, {})
    other.folder(tmp_path).mkdir(parents=True)
    other.begin(tmp_path)
    for marker in ("", "{}", "[]", (other.folder(tmp_path) / STARTED).read_text()):
        (run.folder(tmp_path) / STARTED).write_text(marker)
        with pytest.raises(ValueError, match="was not written by this suite"):
            execute(run, tmp_path)
        assert (left_over / "thesis.tex").is_file()
    # What an earlier attempt has left goes, and nothing beside it; not through a link either
    (run.folder(tmp_path) / STARTED).unlink()
    left_over.rename(tmp_path / "elsewhere")
    run.begin(tmp_path)
    left_over.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="was not written by this suite"):
        run.begin(tmp_path)
    left_over.unlink()
    left_over.mkdir()
    run.begin(tmp_path)
    assert not left_over.exists()
    assert (tmp_path / "elsewhere" / "thesis.tex").is_file()
    assert (run.folder(tmp_path) / "notes").is_dir()


# ---------------------------------------------------------------------- files and arguments as they are written


def arguments(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "suite.yml").write_text(text)
    return read_suite(tmp_path / "suite.yml", [0])[0].arguments(tmp_path)


def test_values_of_a_suite_work_as_they_are_written(tmp_path: Path):
    text = "{tasks: ['7'], hyperparams: {max_grad_norm: .inf, learning_rate: 3e-4, policy_kwargs: {a: [.inf, x]}}}"
    found = arguments(tmp_path, text)
    assert found[found.index("--env") + 1] == "7"
    values = found[found.index("--hyperparams") + 1 : found.index("-f")]
    assert {name: eval(value) for name, _, value in (each.partition(":") for each in values)} == {
        **{"max_grad_norm": float("inf"), "learning_rate": 3e-4, "policy_kwargs": {"a": [float("inf"), "x"]}}
    }
    options = "{save-replay-buffer: false, progress: true, track: , eval-freq: 5, env-kwargs: {a: x, b: .inf}}"
    found = arguments(tmp_path, f"{{tasks: [A-v0], options: {options}}}")
    expected = (
        "--algo qam --env A-v0 --seed 0 --num-threads 1 --progress --eval-freq 5 --env-kwargs a:'x' b:float('inf')"
    )
    assert found[:-2] == expected.split()
    found = arguments(tmp_path, "{tasks: [A-v0], options: {eval-env-kwargs: {name: 'x{seed}'}}}")
    assert found[found.index("--eval-env-kwargs") + 1] == "name:'x0'"
    found = arguments(tmp_path, "{tasks: [A-v0], options: {env-kwargs: ['name:{task}', 'run:{seed}']}}")
    assert found[found.index("--env-kwargs") + 1 :][:2] == ["name:A-v0", "run:0"]


@pytest.mark.parametrize(
    "text",
    [
        *("{tasks: {7: {gamma: 0.9}}}", "{tasks: [A-v0], hyperparams: {day: 2020-01-01}}", "{tasks: {~: }}"),
        *("{tasks: [A-v0], hyperparams: {policy_kwargs: {1: 2}}}", "{tasks: [A-v0], hyperparams: {gamma: .nan}}"),
        *("{tasks: [A-v0], algorithms: [qam, QAM]}", "{tasks: {A-v0: {gamma: 0.9}, A-v0: {gamma: 0.8}}}"),
        *("{tasks: [A-v0], options: {seed: 5}}", "{tasks: [A-v0], options: {algo: sac, hyperparams: {gamma: 0.9}}}"),
        *("{tasks: [A-v0], options: [3]}", "{tasks: A-v0}", "{tasks: [[A-v0]]}", "tasks: &a [*a]", "{tasks: [7]}"),
    ],
)
def test_other_values_are_refused_on_one_line(text: str, tmp_path: Path):
    (tmp_path / "suite.yml").write_text(text)
    result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "suite.yml"), "--folder", str(tmp_path / "runs")])
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1
    assert result.output.startswith("Error: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", ["", "{", "\0", "[" * 100_000], ids=["empty", "cut", "NUL", "deep"])
def test_a_damaged_marker_is_named(content: str, tmp_path: Path):
    run = Run("Pendulum-v1", "qam", 0, {}, {})
    run.folder(tmp_path).mkdir(parents=True)
    (run.folder(tmp_path) / FINISHED).write_text(content)
    with pytest.raises(ValueError, match=rf"seed_0/{FINISHED} is damaged \(.*\): remove it, and the run is repeated"):
        run.is_finished(tmp_path)


@pytest.mark.parametrize("seeds", ["0-2000000000", "0-10000", "5,6-99999999999999999999"])
def test_so_many_seeds_are_a_mistake(seeds: str, tmp_path: Path):
    (tmp_path / "suite.yml").write_text("{tasks: [Pendulum-v1]}")
    result = CliRunner().invoke(app, ["benchmark", str(tmp_path / "suite.yml"), "--seeds", seeds])
    assert result.output.strip() == (
        f"Error: --seeds must be numbers or ranges, such as 0-11 or 0,2,5, and at most 10,000, got '{seeds}'."
    )
