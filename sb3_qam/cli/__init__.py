"""The command line: ``sb3-qam --help``."""

import warnings
from typing import Annotated

import typer

from sb3_qam.cli import benchmark, data, evaluate, plot, sweep, zoo
from sb3_qam.version import __version__

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Q-learning with Adjoint Matching.")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"sb3-qam {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Q-learning with Adjoint Matching."""
    # Without the place in the code, which says nothing to users
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {' '.join(str(message).split())}\n"


app.add_typer(data.app, name="data")
app.command("eval")(evaluate.evaluate)
app.command("benchmark")(benchmark.benchmark)
app.command("sweep")(sweep.sweep)
app.command("plot")(plot.plot)
# Every option is the zoo's, also --help
pass_through = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
app.command("train", context_settings=pass_through)(zoo.train)
app.command("enjoy", context_settings=pass_through)(zoo.enjoy)
app.command("record-video", context_settings=pass_through)(zoo.record_video)
