"""``sb3-qam data``."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from sb3_qam.cli.errors import on_one_line

app = typer.Typer(no_args_is_help=True, help="Datasets: what is in them, and where they come from.")


@app.command()
def describe(
    dataset: Annotated[list[str], typer.Argument(help="Id or folder of a Minari dataset; several are taken together.")],
    picture: Annotated[Optional[Path], typer.Option(help="Write histograms to this file.")] = None,  # noqa: UP045
) -> None:
    """
    Print episodes, steps, returns, success and actions of a dataset.

    Example: sb3-qam data describe D4RL/pointmaze/umaze-v2 --picture umaze.png
    """
    from sb3_qam.datasets.describe import describe as describe_dataset

    with on_one_line():
        description = describe_dataset(dataset)
        typer.echo(description)
        if picture is not None:
            description.draw(picture)
            typer.echo(f"Histograms: {picture}")


@app.command("import")
def import_(
    task: Annotated[str, typer.Argument(help="Id of one of OGBench's single tasks.")],
    path: Annotated[Optional[Path], typer.Option(help="OGBench's npz file; downloaded by default.")] = None,  # noqa: UP045
    dataset_id: Annotated[Optional[str], typer.Option(help="Id to give it, by default ogbench/TASK.")] = None,  # noqa: UP045
) -> None:
    """
    Write OGBench's data into the local Minari cache, with the rewards of a task.

    Example: sb3-qam data import cube-double-play-singletask-task1-v0
    """
    from sb3_qam.datasets.ogbench import import_ogbench

    with on_one_line():
        dataset = import_ogbench(task, path, dataset_id)
        typer.echo(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")
