"""``sb3-qam train``, ``enjoy`` and ``record-video``: RL Zoo's commands."""

import runpy
import sys
import traceback
from importlib import import_module

import typer

from sb3_qam.cli.errors import on_one_line
from sb3_qam.cli.options import EnsembleDecay, ReplanEvery
from sb3_qam.common.chunks import ChunkedPolicy
from sb3_qam.variants import VARIANTS

TRAIN_HELP = f"""Train by RL Zoo: every option below is the zoo's. With -optimize also:
  --small               search networks, batches and critics that a few CPU cores train in minutes

Examples:
  sb3-qam train --algo qam --env PointMaze_UMaze-v3 --eval-freq 10000
  sb3-qam train --algo qam_edit --env cube-double-play-singletask-task1-v0 --seed 1 --device cuda
  sb3-qam train --algo qam --env Pendulum-v1 -n 5000 --hyperparams inverse_temperature:1.0
  sb3-qam train --algo qam --env PointMaze_UMaze-v3 --hyperparams offline_dataset:"'mine/maze-v0'" offline_steps:20000
  sb3-qam train --algo qam --env Pendulum-v1 -optimize --n-trials 20 --n-evaluations 2
  sb3-qam train --algo qam --env my_module:MyEnv-v0

Algorithms of this package: {", ".join(VARIANTS)}. Configurations: sb3_qam/zoo/hyperparams.py.
Ctrl-C saves the model and says how to resume.
"""
ENJOY_HELP = """Watch a trained model by RL Zoo: every option below is the zoo's. With chunks also:
  --replan-every N      plan a new chunk after this many actions; by default at the end of each
  --ensemble-decay K    average overlapping chunks with weights exp(-K i) as in ACT, such as 0.01

Examples:
  sb3-qam enjoy --algo qam --env PointMaze_UMaze-v3 -f logs
  sb3-qam enjoy --algo qam --env PointMaze_UMaze-v3 -f logs --load-best --no-render -n 3000
  sb3-qam enjoy --algo trqam --env cube-double-play-singletask-task1-v0 -f logs --replan-every 1 --ensemble-decay 0.01
"""

RECORD_VIDEO_HELP = """Record a trained model by RL Zoo, as an mp4 file: every option below is the zoo's.

Example:
  sb3-qam record-video --algo qam --env PointMaze_UMaze-v3 -f logs -n 600
"""


def train(context: typer.Context) -> None:
    """Train by RL Zoo, with all its options. See: sb3-qam train --help"""
    _run(context, "train", TRAIN_HELP)


def enjoy(context: typer.Context, replan_every: ReplanEvery = None, ensemble_decay: EnsembleDecay = None) -> None:
    """Watch a trained model by RL Zoo, with all its options. See: sb3-qam enjoy --help"""
    # The zoo loads the model itself
    ChunkedPolicy.replan_every, ChunkedPolicy.ensemble_decay = replan_every, ensemble_decay
    try:
        _run(context, "enjoy", ENJOY_HELP)
    finally:
        ChunkedPolicy.replan_every = ChunkedPolicy.ensemble_decay = None


def record_video(context: typer.Context) -> None:
    """Record a video of a trained model by RL Zoo, with all its options. See: sb3-qam record-video --help"""
    _run(context, "record_video", RECORD_VIDEO_HELP)


def _run(context: typer.Context, command: str, help_text: str) -> None:
    """
    :param context: Has what was typed
    :param command: Name of the zoo's module and of its function, which reads ``sys.argv``
    :param help_text: What to print before the zoo's own help
    """
    if {"-h", "--help"} & set(context.args):
        typer.echo(help_text)
    # The zoo asserts what users are to give
    with on_one_line(AssertionError):
        # First of all it says what to install
        import_module("sb3_qam.zoo")
        arguments = import_module("sb3_qam.zoo.arguments").zoo_arguments(command, context.args)
        sys.argv = [context.command_path, *arguments]
        try:
            if command == "record_video":
                # A script without a function
                runpy.run_module("rl_zoo3.record_video", run_name="__main__")
            else:
                getattr(import_module(f"rl_zoo3.{command}"), command)()
        except (NameError, SyntaxError) as error:
            # The zoo evaluates values as Python
            if not (
                isinstance(error, SyntaxError) or traceback.extract_tb(error.__traceback__)[-1].filename == "<string>"
            ):
                raise
            raise ValueError(
                f"A value on the command line is not Python ({error}): quote text twice, such as "
                """offline_dataset:"'mine/maze-v0'"."""
            ) from error
