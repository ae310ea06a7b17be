"""What a command says when it cannot do what it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym
import typer


@contextmanager
def on_one_line(*kinds: type[Exception]) -> Iterator[None]:
    """
    Print errors that tell users what to do on one line, and exit with status 1.

    :param kinds: Further kinds of errors that do
    """
    always = (ValueError, OSError, ImportError, FloatingPointError, gym.error.Error)
    expected: tuple[type[Exception], ...] = (*always, *kinds)
    try:
        yield
    except expected as error:
        typer.echo(f"Error: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        raise typer.Exit(1) from None
