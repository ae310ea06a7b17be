"""Every example and notebook, run as a user runs it; what it prints is what its docstring says, but for the digits."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import needs_ogbench
from tests.pages import ROOT, check_extras

EXAMPLES = ROOT / "examples"
# What is run; the others are modules beside it
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text())
# Kept small enough to be read at a glance, and to be opened in a browser
MAX_NOTEBOOK_BYTES = 100_000
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def run(name: str, folder: Path) -> list[str]:
    """An example, in an empty folder: the lines that it prints."""
    # A process that is started from one that has threads and a renderer of its own is still one of a user's
    environment = {**os.environ, "MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    result = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def promised(name: str) -> list[str]:
    """The indented lines at the top of an example."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text()))
    assert docstring is not None
    return [line.strip() for line in docstring.splitlines() if line.startswith("    ")]


def pattern(line: str) -> str:
    return " ".join(NUMBER.sub("#", line).split())


def check(name: str, folder: Path) -> list[tuple[str, list[float]]]:
    """
    Run an example: the promised lines are there, in this order, maybe with others between them.

    :return: Of each promised line as it was printed, what stands before the first number, and the numbers
    """
    printed, lines = iter(run(name, folder)), []
    for line in promised(name):
        found = next((each for each in printed if pattern(each) == pattern(line)), None)
        assert found is not None, f"{name} does not print: {line}"
        beginning = " ".join(NUMBER.split(found, maxsplit=1)[0].split())
        lines.append((beginning, [float(number) for number in NUMBER.findall(found)]))
    return lines


def test_export_onnx(tmp_path: Path):
    printed = dict(check("export_onnx", tmp_path))
    assert printed["policy.onnx:"] == [(tmp_path / "policy.onnx").stat().st_size // 1000]


@pytest.mark.slow
def test_own_controller_is_beaten(tmp_path: Path):
    steps = {name: numbers[-1] for name, numbers in check("own_controller", tmp_path)}
    assert steps["QAM: at the top after"] < 0.9 * steps["controller: at the top after"]
    assert steps["QAM: at the top after"] < 0.9 * steps["clone: at the top after"]


@pytest.mark.slow
def test_from_tqc_learns_more_than_was_recorded(tmp_path: Path):
    returns = {name: numbers[-1] for name, numbers in check("from_tqc", tmp_path)}
    assert returns["QAM: return"] > returns["TQC, exploring: return"]
    assert returns["QAM: return"] > returns["clone: return"]


@needs_ogbench
@pytest.mark.slow
def test_chunks_lose_nothing_against_their_clone(tmp_path: Path):
    printed = dict(check("chunks", tmp_path))
    assert printed["QAM: success"][0] >= printed["clone: success"][0]


@pytest.mark.slow
def test_trqam_stays_within_each_budget(tmp_path: Path):
    budgets = [numbers for beginning, numbers in check("trqam", tmp_path) if beginning == "budget"]
    assert len(budgets) == 3
    for budget, distance, *_ in budgets:
        assert distance < 2 * budget
    assert budgets[0][1] < budgets[1][1] < budgets[2][1]


@pytest.mark.slow
def test_resume_gives_the_same_parameters(tmp_path: Path):
    # The last line ends with: True
    check("resume", tmp_path)
    # As if it had been killed between the last checkpoint and the final model
    final = tmp_path / "resume" / "killed" / "final.zip"
    final.unlink()
    train = "import sys; from pathlib import Path; from resume import train; train(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", train, str(final.parent)], cwd=EXAMPLES, check=True)
    assert final.is_file()


@pytest.mark.slow
def test_weights_and_biases_have_both_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("CACHE_", "CONFIG_", "DATA_"):
        monkeypatch.setenv(f"WANDB_{name}DIR", str(tmp_path))
    check("weights_and_biases", tmp_path)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_distributed_suite_resumes_where_it_was(tmp_path: Path):
    first = dict(check("distributed_suite", tmp_path))
    again = run("distributed_suite", tmp_path)
    assert again[0] == "4 runs in distributed_suite/runs, 4 of them finished"
    assert [float(number) for number in NUMBER.findall(again[-2])] == first["qam"]


# What replaces the sizes of a notebook's cell with the tag "parameters"
TINY = {
    "quickstart": "N_EPISODES, OFFLINE_STEPS, ONLINE_STEPS = 4, 20, 10",
    "own_data": "N_EPISODES, GRADIENT_STEPS = 3, 20",
}


def full_size(notebook: nbformat.NotebookNode, name: str) -> None:
    """As it is."""


def tiny(notebook: nbformat.NotebookNode, name: str) -> None:
    """The same cells with other sizes."""
    (position,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(position + 1, nbformat.v4.new_code_cell(TINY[name]))


@pytest.mark.parametrize("change", [tiny, pytest.param(full_size, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TINY)
def test_notebooks_run(
    name: str, change: Callable[[nbformat.NotebookNode, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    path = EXAMPLES / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_NOTEBOOK_BYTES
    # On a new machine the first cell installs what is installed here
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("%pip install")
    assert "install" in first.metadata["tags"]
    change(notebook, name)
    client = NotebookClient(
        notebook, timeout=1200, skip_cells_with_tag="install", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    texts = [output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]
    assert any("QAM" in text for text in texts)


def needs(path: Path) -> str:
    """What an example says is to be installed for it."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        return next(cell.source for cell in cells if cell.cell_type == "code").removeprefix("%pip install -q ")
    found = re.search(r"^Needs ``pip install (.+)``\.$", path.read_text(), re.MULTILINE)
    assert found is not None, f"{path.name} does not say what it needs"
    return found[1]


@pytest.mark.parametrize("path", [*SCRIPTS, *sorted(EXAMPLES.glob("*.ipynb"))], ids=lambda path: path.name)
def test_every_example_is_listed_with_what_it_needs(path: Path):
    for requirement in needs(path).replace('"', "").split():
        check_extras(requirement)
    (row,) = [line for line in (ROOT / "docs/guide/quickstart.md").read_text().splitlines() if f"`{path.name}`" in line]
    assert f"/examples/{path.name})" in row
    assert row.endswith(f"| `pip install {needs(path)}` |")


def test_every_example_is_run():
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for name in (path.stem for path in SCRIPTS):
        runs = rf"import {name}\b|check\(\"{name}\""
        assert re.search(runs, tests), f"No test runs {name}.py"
