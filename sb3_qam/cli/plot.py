"""``sb3-qam plot``."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from sb3_qam.cli.errors import on_one_line
from sb3_qam.results import make_report
from sb3_qam.results.scores import METRICS
from sb3_qam.variants import find_algorithm


def plot(
    log_folder: Annotated[
        list[Path] | None,
        typer.Option(
            "--log-folder", "-f", help="Folder with runs, of train or benchmark; may be repeated. By default logs."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the charts and the page.")] = Path("plots"),
    metric: Annotated[
        str | None,
        typer.Option(help="success or reward; by default success where it was recorded."),
    ] = None,
    algo: Annotated[
        list[str] | None,
        typer.Option("--algo", "-a", help="Only this algorithm; may be repeated."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", help="Only this environment; may be repeated."),
    ] = None,
    published: Annotated[
        bool, typer.Option(help="Show published success rates beside those of OGBench's tasks.")
    ] = True,
) -> None:
    """
    Draw learning curves, interquartile means, sample efficiency and performance profiles of runs, as PNG files and as
    one HTML page with a table.

    Examples:
      sb3-qam plot
      sb3-qam plot -f benchmark/mazes --algo qam --algo qam_edit -o mazes
      sb3-qam plot -f logs --metric reward
    """
    with on_one_line():
        missing = [name for name in ("jinja2", "matplotlib", "scipy") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f"Charts need {' and '.join(missing)}: pip install 'sb3-qam[plot]'.")
        if metric not in (None, *METRICS):
            raise ValueError(f"--metric must be one of {', '.join(METRICS)}, got '{metric}'.")
        algorithms = [find_algorithm(each)[0] for each in algo or []]
        report = make_report(log_folder or [Path("logs")], metric, algorithms, env or [], published)
        files = report.write(output)
    for row in report.rows:
        offline = f", after the offline phase {row.offline}" if row.offline else ""
        typer.echo(f"{row.task}, {row.method}, runs: {row.runs}: {row.metric} {row.last}{offline}")
    for each in report.left_out:
        typer.echo(f"Left out: {each.folder}: {each.reason}", err=True)
    typer.echo("\n".join(map(str, files)))
