"""
Whenever a process is killed, and however many write at once, files are complete: as they were, or as they will be.

All tests that kill processes have the marker ``kill``: ``pytest -m kill`` runs them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROUNDS = 150

pytestmark = [pytest.mark.kill, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork()")]

# Forks a child for each round: imports and models are made once
PREAMBLE = """
import json, os, pathlib, random, signal, sys, time
from sb3_qam import QAM
from sb3_qam.callbacks import BestModelCallback
from stable_baselines3.common.save_util import load_from_pkl

folder = pathlib.Path(sys.argv[1])
model = QAM("FlowPolicy", "Pendulum-v1", flow_steps=2, buffer_size=2000, batch_size=8, learning_starts=5,
            policy_kwargs={"net_arch": [32]}, device="cpu", seed=0)
model.learn(10)

def child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return pid

def survives(function, is_complete, rounds):
    # How many of the children were killed, and after how many of them there was no complete file
    function()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    n_killed = n_damaged = 0
    for _ in range(rounds):
        pid = child(function)
        time.sleep(random.uniform(0, 1.5 * seconds))
        os.kill(pid, signal.SIGKILL)
        n_killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        try:
            is_complete()
        except Exception:
            n_damaged += 1
            function()
    print(json.dumps([n_killed, n_damaged]))

def races(functions, is_complete, rounds):
    # After how many rounds of functions that run at once there was no complete file
    n_damaged = 0
    for _ in range(rounds):
        for pid in [child(lambda function=function: [function() for _ in range(3)]) for function in functions]:
            os.waitpid(pid, 0)
        try:
            is_complete()
        except Exception:
            n_damaged += 1
    print(json.dumps(n_damaged))
"""


def run(code: str, folder: Path, **kwargs: Any) -> Any:
    result = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code, str(folder)], capture_output=True, text=True, check=True, **kwargs
    )
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "load"),
    [
        ("model.save(folder / 'model')", "QAM.load(folder / 'model')"),
        ("model.save_replay_buffer(folder / 'buffer')", "load_from_pkl(folder / 'buffer.pkl')"),
    ],
    ids=["model", "replay buffer"],
)
def test_what_was_saved_survives_kills_of_what_saves_it_again(save: str, load: str, tmp_path: Path):
    n_killed, n_damaged = run(f"survives(lambda: {save}, lambda: {load}, {ROUNDS})", tmp_path)
    assert n_killed > ROUNDS / 4
    assert n_damaged == 0


@pytest.mark.slow
def test_processes_that_save_to_one_path_leave_the_model_of_one_of_them(tmp_path: Path):
    code = f"""
path = folder / "model.zip"
other = QAM("FlowPolicy", "Pendulum-v1", policy_kwargs={{"net_arch": [64, 64]}}, buffer_size=10, device="cpu")
races([lambda: model.save(path), lambda: other.save(path)], lambda: QAM.load(path), {ROUNDS})
"""
    assert run(code, tmp_path) == 0


@pytest.mark.slow
def test_callbacks_of_processes_that_share_a_path_leave_the_best_model_of_one_of_them(tmp_path: Path):
    code = f"""
import zipfile
path = folder / "best.zip"

def best(value):
    callback = BestModelCallback("test/value", path=path)
    callback.init_callback(model)
    callback.on_training_start({{}}, {{}})
    callback.best_value = None
    callback.write({{"test/value": value}}, {{}})

def is_complete():
    QAM.load(path)
    assert zipfile.ZipFile(path).namelist().count("best_model.json") == 1

races([lambda: best(1.0), lambda: best(2.0)], is_complete, {ROUNDS})
"""
    assert run(code, tmp_path) == 0


@pytest.mark.parametrize("save", ["model.save(folder / 'file.zip')", "model.save_replay_buffer(folder / 'file.zip')"])
def test_a_full_disk_leaves_the_file_that_was_there(save: str, tmp_path: Path):
    """A limit of the file size ends in the same OSError."""
    pytest.importorskip("resource")
    code = f"""
import resource
{save}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before = (folder / "file.zip").read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
try:
    {save}
    raised = False
except OSError:
    raised = True
print(json.dumps([raised, (folder / "file.zip").read_bytes() == before, os.listdir(folder)]))
"""
    assert run(code, tmp_path) == [True, True, ["file.zip"]]
