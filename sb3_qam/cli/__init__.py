"""The command line: ``sb3-qam --help``."""

import typer

from sb3_qam.cli import benchmark, data, evaluate, plot, sweep, zoo

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Q-learning with Adjoint Matching.")
app.add_typer(data.app, name="data")
app.command("eval")(evaluate.evaluate)
app.command("benchmark")(benchmark.benchmark)
app.command("sweep")(sweep.sweep)
app.command("plot")(plot.plot)
# Every option is the zoo's, also --help
pass_through = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
app.command("train", context_settings=pass_through)(zoo.train)
app.command("enjoy", context_settings=pass_through)(zoo.enjoy)
