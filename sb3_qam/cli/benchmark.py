"""``sb3-qam benchmark``."""

import importlib.util
import signal
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from sb3_qam.cli.errors import on_one_line
from sb3_qam.environments import find_environment
from sb3_qam.suite import OUTPUT, read_suite, run_locally, run_on_ray

LAUNCHERS = ("local", "ray")
MAX_SEEDS = 10_000
# In seconds, 30 years: what a timer takes
MAX_TIMEOUT = 1e9
# In characters
MAX_REASON = 300


def benchmark(
    suite: Annotated[Path, typer.Argument(help="YAML file of tasks, algorithms, hyperparams and options.")],
    seeds: Annotated[str, typer.Option(help="Seeds of the runs, such as 0-11 or 0,2,5.")] = "0-4",
    folder: Annotated[Path | None, typer.Option(help="Folder for all runs; by default benchmark/SUITE.")] = None,
    launcher: Annotated[str, typer.Option(help="Where to run: local or ray.")] = "local",
    jobs: Annotated[int | None, typer.Option(min=1, help="Number of parallel runs; by default one per core.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, max=MAX_TIMEOUT, help="Seconds after which a run is stopped.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster; by default one that is found.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that each run asks Ray for, such as 0.5.")] = 0.0,
) -> None:
    """
    Train all algorithms of a suite on all its tasks, with several seeds. The same command resumes a suite: finished
    runs are skipped, and interrupted ones are repeated. Ctrl-C stops all runs.

    Examples:

    sb3-qam benchmark mazes.yml --seeds 0-11 --jobs 4 --timeout 86400

    sb3-qam benchmark mazes.yml --seeds 0-11 --launcher ray --address 10.0.0.1:6379
    """
    with on_one_line():
        if importlib.util.find_spec("rl_zoo3") is None:
            raise ImportError("A suite is run by RL Zoo: pip install 'sb3-qam[zoo]'.")
        if launcher not in LAUNCHERS:
            raise ValueError(f"--launcher must be one of {', '.join(LAUNCHERS)}, got '{launcher}'.")
        for name, value in {"address": address, "gpus": gpus}.items():
            if value and launcher == "local":
                raise ValueError(f"--{name} {value} is for --launcher ray: give that too, or leave it out.")
        root = folder or Path("benchmark") / suite.stem
        runs = read_suite(suite, parse_seeds(seeds))
        if launcher == "local":
            # At once, and not by as many runs that fail
            for run in {run.task: run for run in runs}.values():
                packages = run.options.get("gym-packages") or []
                find_environment(run.task, packages if isinstance(packages, list) else [packages])
        missing = [run for run in runs if not run.is_finished(root)]
        typer.echo(f"{len(runs)} runs in {root}, {len(runs) - len(missing)} of them finished")
        for run in missing:
            process = run.process_at_work(root)
            if process is not None:
                typer.echo(f"{run}: {process} is running it; waiting for that", err=True)
        if launcher == "local":
            outcomes = run_locally(missing, root, jobs, timeout)
        else:
            outcomes = run_on_ray(missing, root, jobs, timeout, address, gpus)
        n_failed = 0
        on_terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for number, (run, is_finished) in enumerate(outcomes, start=1):
                n_failed += not is_finished
                outcome = "finished" if is_finished else _reason(run.folder(root) / OUTPUT)
                typer.echo(f"{number}/{len(missing)} {run}: {outcome}")
        except KeyboardInterrupt:
            typer.echo("Interrupted. The same command resumes with what is missing.", err=True)
            raise typer.Exit(130) from None
        finally:
            signal.signal(signal.SIGTERM, on_terminate)
        if n_failed > 0:
            raise ValueError(f"{n_failed} of {len(missing)} runs failed. The same command repeats them.")


def _reason(output: Path) -> str:
    """Why a run failed, and where to see more."""
    lines = output.read_text(errors="replace").split("\n") if output.is_file() else []
    last = next((line for line in reversed(lines) if line.strip()), "")
    # Those of a traceback, which a run that is stopped ends with, are indented
    reason = "" if last.startswith(" ") else f" ({shorten(last, MAX_REASON)})"
    return f"failed, see {output}{reason if last else ''}"


def parse_seeds(text: str) -> list[int]:
    """
    :param text: Numbers and ranges, separated by commas
    :return: The seeds
    :raises ValueError: if it is something else, there are none, or there are too many
    """
    seeds: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds.update(range(int(first), int(last if dash else first) + 1)[: MAX_SEEDS + 1])
    except ValueError:
        seeds = set()
    if not 0 < len(seeds) <= MAX_SEEDS:
        raise ValueError(
            f"--seeds must be numbers or ranges, such as 0-11 or 0,2,5, and at most {MAX_SEEDS:,}, got '{text}'."
        )
    return sorted(seeds)
