"""The scripts that draw the pictures of the documentation still run, and the pictures they draw are committed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT

FIGURES = ROOT / "docs" / "figures"
SCRIPTS = sorted(path for path in FIGURES.glob("*.py") if "def main" in path.read_text())
IMAGES = ROOT / "docs" / "images"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_draws_the_picture_that_is_committed(script: Path, tmp_path: Path):
    environment = {"MUJOCO_GL": "egl", **os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, str(script), "--quick", "--output", str(tmp_path)]
    subprocess.run(arguments, cwd=tmp_path, env=environment, check=True, timeout=300)
    drawn = [path for path in tmp_path.iterdir() if path.suffix in (".png", ".svg", ".gif")]
    assert len(drawn) == 1
    assert drawn[0].stat().st_size > 1000
    committed = IMAGES / drawn[0].name
    assert committed.stat().st_size > 1000
    pages = "".join(page.read_text() for page in PAGES)
    assert f"images/{committed.name}" in pages


def test_every_picture_that_a_page_shows_is_there_and_every_picture_is_shown():
    pages = "".join(page.read_text() for page in PAGES)
    assert {path.name for path in IMAGES.iterdir() if f"images/{path.name}" not in pages} == set()


def test_the_picture_of_the_data_flow_names_what_is_in_the_code():
    from sb3_qam import QAM, FlowPolicy
    from sb3_qam.networks import flows
    from sb3_qam.qam import adjoint_matching

    text = (IMAGES / "data_flow.svg").read_text()
    for thing in (QAM.train, FlowPolicy, FlowPolicy.sample_actions, FlowPolicy.predict, flows, adjoint_matching):
        assert thing.__name__.rpartition(".")[2] in text
