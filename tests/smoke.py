"""What must work of an installed wheel, without the source tree: ``tox run -e wheel``, or ``python -I tests/smoke.py``.

Not a test module: it must run where nothing is installed but what the wheel asks for.
"""

import subprocess
import sysconfig
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import gymnasium as gym
import numpy as np

import sb3_qam
from sb3_qam import QAM, preset
from sb3_qam.callbacks import FlowDiagnosticsCallback
from sb3_qam.recording.collect import collect


def check_installation() -> None:
    """The package is that of this environment, typed, and says its version in one voice."""
    package = Path(sb3_qam.__file__).parent
    if not package.is_relative_to(sysconfig.get_path("purelib")):
        raise SystemExit(f"This is not an installed wheel: {package}")
    if version("sb3-qam") != sb3_qam.__version__:
        raise SystemExit(f"Metadata say {version('sb3-qam')}, the package says {sb3_qam.__version__}")
    if not (package / "py.typed").is_file():
        raise SystemExit("py.typed is missing")


def train() -> None:
    """Data, offline phase, online phase, file, action."""
    dataset = collect(None, "Pendulum-v1", "smoke/pendulum-v0", 2, max_episode_steps=50)
    env = gym.make("Pendulum-v1")
    model = QAM(
        "FlowPolicy",
        env,
        offline_dataset=dataset,
        offline_steps=10,
        batch_size=16,
        flow_steps=3,
        buffer_size=100,
        policy_kwargs={"net_arch": [16]},
        seed=0,
    )
    model.learn(20, callback=FlowDiagnosticsCallback(log_freq=10))
    model.save("model")
    observation, _ = env.reset(seed=0)
    action, _ = model.predict(observation, deterministic=True)
    loaded, _ = QAM.load("model").predict(observation, deterministic=True)
    np.testing.assert_array_equal(action, loaded)
    print(f"Trained for {model.num_timesteps} steps: {model.num_timesteps - 20} offline and 20 online")


def read_files() -> None:
    """What is no Python is there as well, and the published settings can be read."""
    missing = [name for name in ("page.html", "published.csv") if not (files(sb3_qam) / "results" / name).is_file()]
    if missing:
        raise SystemExit(f"sb3_qam/results lacks {missing}")
    print(f"Published settings: {', '.join(preset('cube-triple-play', 'SQAM').kwargs)}")


def run_commands() -> None:
    """The command line starts, and names its commands."""
    command = Path(sysconfig.get_path("scripts")) / "sb3-qam"
    for arguments, expected in ((["--help"], "benchmark"), (["data", "describe", "smoke/pendulum-v0"], "100")):
        output = subprocess.run([command, *arguments], check=True, text=True, capture_output=True).stdout
        if expected not in output:
            raise SystemExit(f"sb3-qam {' '.join(arguments)} does not say {expected!r}:\n{output}")
        print(f"sb3-qam {' '.join(arguments)}: works")


if __name__ == "__main__":
    import os

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MINARI_DATASETS_PATH"] = folder
        check_installation()
        train()
        read_files()
        run_commands()
    print("The wheel works.")
