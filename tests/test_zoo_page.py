"""The commands at the top of the page on RL Zoo, from an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import minari
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def block(name: str) -> str:
    """The commands after <!-- NAME -->."""
    page = (ROOT / "docs" / "guide" / "zoo.md").read_text()
    match = re.search(rf"<!-- {name} -->\n(?:<!-- [^\n]* -->\n)*```sh\n(.*?)```", page, re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.slow
def test_the_command_line_works_as_written(tmp_path: Path):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Tests may run from a checkout that is not installed
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    commands = f"set -e\n{block('command line')}"
    found = subprocess.run(["bash", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    dataset = minari.load_dataset("mine/umaze-v0")
    assert dataset.total_episodes == 200
    of_the_data = np.mean([episode.rewards.sum() > 0 for episode in dataset.iterate_episodes()])
    run = tmp_path / "logs" / "qam" / "PointMaze_UMaze-v3_1"
    with np.load(run / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == list(range(500, 4001, 500))
        # What the page says of both
        assert of_the_data == pytest.approx(0.2, abs=0.05)
        assert evaluations["successes"][-1].mean() > 0.7
    assert "Loading logs/qam/PointMaze_UMaze-v3_1/PointMaze_UMaze-v3.zip" in found.stdout
    assert "PointMaze_UMaze-v3, qam, runs: 1: success rate" in found.stdout
    for name in ("index.html", "learning_curves.png"):
        assert (tmp_path / "plots" / name).stat().st_size > 10_000
