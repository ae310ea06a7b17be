"""``sb3-qam plot`` on real runs, and its page in a browser."""

import html
import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from typer.testing import CliRunner

from sb3_qam.cli import app
from sb3_qam.results.figures import COLORS, make_looks
from sb3_qam.suite import execute, read_suite
from tests.results.test_results import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PNGS = [f"{name}.png" for name in ("learning_curves", "aggregate", "sample_efficiency", "performance_profile")]
SMALL = {
    "buffer_size": 500,
    "learning_starts": 10,
    "flow_steps": 2,
    "batch_size": 8,
    "policy_kwargs": {"net_arch": [8]},
    "vec_env_wrapper": "sb3_qam.zoo.wrappers.EpisodeSuccess",
}
SUITE = {
    "tasks": ["Pendulum-v1", "MountainCarContinuous-v0"],
    "algorithms": {"qam": None, "qam_edit": {"edit_scale": 0.2}},
    "hyperparams": SMALL,
    "options": {"n-timesteps": 60, "eval-freq": 20, "eval-episodes": 2, "env-kwargs": ["max_episode_steps:10"]},
}


@pytest.fixture(scope="module")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two algorithms and two seeds, trained by the zoo."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "suite.yml").write_text(yaml.safe_dump(SUITE))
    arguments = sys.argv
    for run in read_suite(folder / "suite.yml", [0, 1]):
        execute(run, folder / "runs")
    sys.argv = arguments
    return folder / "runs"


def plot(*args: str | Path) -> list[str]:
    result = CliRunner().invoke(app, ["plot", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def error_of(*args: str | Path) -> str:
    result = CliRunner().invoke(app, ["plot", *map(str, args)])
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1), result.output
    return result.output.strip()


def test_a_suite_is_drawn(suite_folder: Path, tmp_path: Path):
    lines = plot("-f", suite_folder, "-o", tmp_path / "plots")
    assert len(lines) == 4 + 1 + len(PNGS)
    for task, method in ((task, method) for task in sorted(SUITE["tasks"]) for method in SUITE["algorithms"]):
        (line,) = [line for line in lines if line.startswith(f"{task}, {method}, runs: 2: success rate")]
        # The numbers of the zoo's files
        files = (suite_folder / method / task).glob(f"seed_*/{method}/{task}_1/evaluations.npz")
        last = [np.load(file)["successes"][-1].mean() for file in files]
        assert f"success rate {np.mean(last):.2f} [{min(last):.2f}, {max(last):.2f}]" in line
    for name in PNGS:
        pixels = imread(tmp_path / "plots" / name)
        assert pixels.shape[0] > 200
        assert pixels.shape[1] > 500
        found = {tuple(color) for color in np.round(pixels[..., :3].reshape(-1, 3) * 255).astype(int).tolist()}
        for color in COLORS[:2]:
            assert tuple(bytes.fromhex(color[1:])) in found, (name, color)
    page = (tmp_path / "plots" / "index.html").read_text()
    assert "8 runs of 2 methods" in page
    assert "<td>finished</td>" in page


def test_filters_and_metrics(suite_folder: Path, tmp_path: Path):
    options = ["-f", suite_folder, "-o", tmp_path, "--algo", "qam", "--env", "Pendulum-v1", "--metric", "reward"]
    lines = plot(*options)
    assert lines[0].startswith("Pendulum-v1, qam, runs: 2: return -")
    assert len(lines) == 2 + len(PNGS)
    # The lowest and the highest return of any evaluation
    files = (suite_folder / "qam" / "Pendulum-v1").glob("seed_*/qam/Pendulum-v1_1/evaluations.npz")
    returns = np.concatenate([np.load(file)["results"].mean(axis=1) for file in files])
    bounds = f"Pendulum-v1 {returns.min():.4g} to {returns.max():.4g}."
    assert f"Normalized scores: 0 and 1 are these returns: {bounds}" in (tmp_path / "index.html").read_text()
    assert error_of("-f", suite_folder, "--algo", "sac") == (
        "Error: No run is of sac. There are: qam on MountainCarContinuous-v0, qam on Pendulum-v1, qam_edit on "
        "MountainCarContinuous-v0, qam_edit on Pendulum-v1."
    )


def test_a_run_is_shown_once(tmp_path: Path):
    write_run(tmp_path)
    once = plot("-f", tmp_path, "-o", tmp_path / "plots")
    assert plot("-f", tmp_path, "-f", tmp_path / "qam", "-o", tmp_path / "plots") == once
    assert once[0].startswith("Maze-v0, qam, runs: 1: ")


def test_one_run_that_has_just_begun(tmp_path: Path):
    write_run(tmp_path, steps=[100], successes=[0.5], steps_done=None)
    write_run(tmp_path, 2, steps=())
    lines = plot("-f", tmp_path, "-o", tmp_path / "plots")
    assert lines[0] == "Maze-v0, qam, runs: 0 of 1: success rate not finished"
    assert f"Left out: {tmp_path / 'qam' / 'Maze-v0_2'}: there are no evaluations yet" in "\n".join(lines)
    assert not (tmp_path / "plots" / "aggregate.png").exists()


def test_nothing_to_show(tmp_path: Path):
    assert error_of("-f", tmp_path / "none").startswith(
        f"Error: There is no folder '{tmp_path / 'none'}': pass the log"
    )
    assert error_of("-f", tmp_path).startswith(f"Error: There are no runs in '{tmp_path}': expected folders such as")
    for number in (1, 2):
        write_run(tmp_path, number, steps=())
    assert error_of("-f", tmp_path) == (
        f"Error: There is nothing to show: {tmp_path / 'qam' / 'Maze-v0_1'}: there are no evaluations yet: they come "
        "every --eval-freq steps, by default 25,000, and 1 more runs that cannot be shown."
    )
    write_run(tmp_path, 3, successes=None)
    assert "success rate was not recorded" not in error_of("-f", tmp_path, "--metric", "success", "--env", "Other-v0")
    assert "Error: --metric must be one of success, reward, got 'speed'." in error_of("--metric", "speed")
    (tmp_path / "file").write_text("")
    assert "File exists" in error_of("-f", tmp_path, "-o", tmp_path / "file")


def test_without_matplotlib_it_is_said_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; from sb3_qam.cli import app; app(['plot'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "Error: Charts need matplotlib: pip install 'sb3-qam[plot]'.\n"
    assert result.returncode == 1


def test_methods_are_told_apart():
    looks = make_looks([str(number) for number in range(24)])
    assert len({tuple(look.values()) for look in looks.values()}) == 24


# ---------------------------------------------------------------------- browser

# Looks into the page, which is of the same origin, and writes down what is there
PROBE = """<iframe src="{page}" onload="
  const page = this.contentDocument, rows = (id) => page.querySelectorAll(id + ' tbody tr').length;
  document.body.textContent = JSON.stringify({{
    widths: [...page.images].map((image) => image.naturalWidth),
    results: rows('#results'), runs: rows('#runs'), published: rows('#published'),
    text: page.body.innerText,
  }});"></iframe>"""


class Recorder(SimpleHTTPRequestHandler):
    """Serves a folder, and remembers what it was asked for."""

    paths: list[str]

    def __init__(self, *args: object, paths: list[str], **kwargs: object) -> None:
        self.paths = paths
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def look_at(page: Path, folder: Path) -> tuple[dict, list[str], list[str]]:
    """What is on the page, the console's lines, and what the browser asked the server for."""
    (page.parent / "probe.html").write_text(PROBE.format(page=page.name))
    paths: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Recorder, directory=str(page.parent), paths=paths))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *quiet.split()]
    command += [f"--user-data-dir={folder}", "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    try:
        address = f"http://127.0.0.1:{server.server_port}/probe.html"
        found = subprocess.run([*command, address], capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    console = [line for line in found.stderr.splitlines() if ":CONSOLE" in line]
    start, end = found.stdout.index("{"), found.stdout.rindex("}")
    return json.loads(html.unescape(found.stdout[start : end + 1])), console, paths


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_shows_curves_and_tables_without_errors(suite_folder: Path, tmp_path: Path):
    page = tmp_path / "plots" / "index.html"
    plot("-f", suite_folder, "-o", page.parent)
    found, console, paths = look_at(page, tmp_path / "browser")
    assert console == []
    assert len(found["widths"]) == len(PNGS)
    assert min(found["widths"]) > 500
    assert (found["results"], found["runs"], found["published"]) == (4, 8, 0)
    for text in ("Learning curves", "Sample efficiency", "MountainCarContinuous-v0", "qam_edit"):
        assert text in found["text"]
    # The page is all there is
    assert sorted(path for path in paths if path != "/favicon.ico") == ["/index.html", "/probe.html"]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_with_published_numbers_and_runs_that_are_left_out(tmp_path: Path):
    for number in range(1, 4):
        write_run(tmp_path, number, task=f"scene-play-singletask-task{number}-v0", seed=number)
    write_run(tmp_path, 4, algorithm="<b>&", steps=())
    page = tmp_path / "plots" / "index.html"
    plot("-f", tmp_path, "-o", page.parent)
    found, console, _ = look_at(page, tmp_path / "browser")
    assert console == []
    assert (found["results"], found["published"]) == (3, 3)
    assert "<b>&/Maze-v0_4: there are no evaluations yet" in found["text"]
    # and errors would have been seen
    page.write_text(page.read_text().replace("</body>", '<img src="missing.png"><script>nothing()</script></body>'))
    found, console, paths = look_at(page, tmp_path / "browser")
    assert found["widths"][-1] == 0
    assert "/missing.png" in paths
    assert "nothing is not defined" in "".join(console)
