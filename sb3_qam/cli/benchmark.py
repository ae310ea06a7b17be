"""``sb3-qam benchmark``."""

import importlib.util
from pathlib import Path
from typing import Annotated, Optional

import typer

from sb3_qam.cli.errors import on_one_line


def benchmark(
    suite: Annotated[Path, typer.Argument(help="YAML file of tasks, algorithms, hyperparams and options.")],
    seeds: Annotated[str, typer.Option(help="Such as 0-11 or 0,2,5.")] = "0-4",
    folder: Annotated[Optional[Path], typer.Option(help="Of all runs, by default benchmark/SUITE.")] = None,  # noqa: UP045
    launcher: Annotated[str, typer.Option(help="Where runs take place: local, or ray.")] = "local",
    jobs: Annotated[Optional[int], typer.Option(min=1, help="Runs side by side, by default one per core.")] = None,  # noqa: UP045
    address: Annotated[Optional[str], typer.Option(help="Of a Ray cluster, by default the one Ray finds.")] = None,  # noqa: UP045
    gpus: Annotated[float, typer.Option(min=0, help="Share of a GPU that each run asks Ray for.")] = 0.0,
) -> None:
    """
    Train all algorithms of a suite on all its tasks, with several seeds. What is finished is skipped, and what has
    been interrupted is repeated: the same command goes on.

    Examples:

    sb3-qam benchmark mazes.yml --seeds 0-11 --jobs 4

    sb3-qam benchmark mazes.yml --seeds 0-11 --launcher ray --address 10.0.0.1:6379
    """
    from sb3_qam.suite.launchers import LAUNCHERS
    from sb3_qam.suite.resources import Resources
    from sb3_qam.suite.runs import OUTPUT, read_suite

    with on_one_line():
        if importlib.util.find_spec("rl_zoo3") is None:
            raise ImportError("A suite is run by RL Zoo: pip install 'sb3-qam[zoo]'.")
        if launcher not in LAUNCHERS:
            raise ValueError(f"--launcher must be one of {', '.join(LAUNCHERS)}, got '{launcher}'.")
        root = folder or Path("benchmark") / suite.stem
        runs = read_suite(suite, parse_seeds(seeds))
        missing = [run for run in runs if not run.is_finished(root)]
        resources = Resources(jobs, address, gpus)
        typer.echo(f"{len(runs)} runs in {root}, {len(runs) - len(missing)} of them finished")
        n_failed = 0
        try:
            for number, (run, ended) in enumerate(LAUNCHERS[launcher](missing, root, resources), start=1):
                n_failed += not ended
                outcome = "finished" if ended else f"failed, see {run.folder(root) / OUTPUT}"
                typer.echo(f"{number}/{len(missing)} {run}: {outcome}")
        except KeyboardInterrupt:
            typer.echo("Interrupted. The same command goes on with what is missing.", err=True)
            raise typer.Exit(130) from None
        if n_failed > 0:
            raise ValueError(f"{n_failed} of {len(missing)} runs failed. The same command repeats them.")


def parse_seeds(text: str) -> list[int]:
    """
    :param text: Numbers and ranges, separated by commas
    :return: The seeds
    :raises ValueError: if it is something else, or none
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        seeds = []
    if not seeds:
        raise ValueError(f"--seeds must be numbers or ranges, such as 0-11 or 0,2,5, got '{text}'.")
    return seeds
