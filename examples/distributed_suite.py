"""Algorithms x seeds side by side, in one command that can be interrupted: ``python examples/distributed_suite.py``.

Needs ``pip install "sb3-qam[zoo]"``.

A suite is a YAML file. ``sb3-qam benchmark`` runs each combination in a process with one thread, as many at once as
there are cores. Finished runs are not repeated: run this script twice, or interrupt it and run it again.

What it prints (one minute on two CPU cores; numbers, of an earlier run with five flow steps, differ a little from
machine to machine):

    4 runs in distributed_suite/runs, 0 of them finished
    qam       2 seeds: return -1200 (-1169, -1231)
    qam_edit  2 seeds: return -1209 (-1147, -1270)

and a line for each run as it ends. 2,000 steps are too few for Pendulum, but enough to see a suite work.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

OUTPUT = Path("distributed_suite")
SUITE: dict[str, Any] = {
    "tasks": {"Pendulum-v1": {"gamma": 0.98, "learning_starts": 500}},
    "algorithms": {"qam": None, "qam_edit": {"edit_scale": 0.2}},
    "hyperparams": {"batch_size": 128, "policy_kwargs": {"net_arch": [64, 64]}},
    "options": {"n-timesteps": 2000, "eval-freq": 2000, "eval-episodes": 5},
}


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    suite = OUTPUT / "suite.yml"
    suite.write_text(yaml.safe_dump(SUITE))
    command = [sys.executable, "-m", "sb3_qam", "benchmark", str(suite), "--seeds", "0,1"]
    subprocess.run([*command, "--folder", str(OUTPUT / "runs")], check=True)

    for algorithm in SUITE["algorithms"]:
        # Evaluations as SB3's EvalCallback writes them: (evaluations, episodes)
        files = sorted((OUTPUT / "runs" / algorithm).glob("*/seed_*/*/*/evaluations.npz"))
        returns = [np.load(file)["results"][-1].mean() for file in files]
        each = ", ".join(f"{value:.0f}" for value in returns)
        print(f"{algorithm:9} {len(returns)} seeds: return {np.mean(returns):.0f} ({each})")


if __name__ == "__main__":
    main()
