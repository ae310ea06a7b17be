"""The command line: ``sb3-qam --help``."""

from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Q-learning with Adjoint Matching.")
data_app = typer.Typer(no_args_is_help=True, help="Datasets: what is in them.")
app.add_typer(data_app, name="data")


@data_app.command()
def describe(
    dataset: Annotated[list[str], typer.Argument(help="Id or folder of a Minari dataset; several are taken together.")],
    picture: Annotated[Optional[Path], typer.Option(help="Write histograms to this file.")] = None,  # noqa: UP045
) -> None:
    """
    Print episodes, steps, returns, success and actions of a dataset.

    Example: sb3-qam data describe D4RL/pointmaze/umaze-v2 --picture umaze.png
    """
    from sb3_qam.datasets.describe import describe as describe_dataset

    try:
        description = describe_dataset(dataset)
        typer.echo(description)
        if picture is not None:
            description.draw(picture)
            typer.echo(f"Histograms: {picture}")
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
