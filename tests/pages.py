"""What the pages of the documentation find where a reader has data of their own, and who checks their commands."""

import argparse
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import metadata
from pathlib import Path
from unittest.mock import patch

import minari
import typer
from typer.testing import CliRunner

from sb3_qam.cli import app
from sb3_qam.environments import register_environments
from sb3_qam.recording import collect
from tests.robot_files import unpack_lerobot, write_robomimic

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]


def record_maze(
    *dataset_ids: str, env_id: str = "PointMaze_UMaze-v3", n_episodes: int = 4, n_steps: int = 40
) -> minari.MinariDataset:
    """Write datasets of short random episodes in a maze, and return the last of them."""
    register_environments()
    for dataset_id in dataset_ids:
        dataset = collect(None, env_id, dataset_id, n_episodes, max_episode_steps=n_steps)
    return dataset


def copy_robot_files() -> None:
    """Put a robomimic file and a LeRobot dataset into the current folder."""
    write_robomimic(Path("low_dim.hdf5"))
    unpack_lerobot(Path())
    Path("v30").rename("robot")


def command_lines(block: str) -> list[list[str]]:
    """The words of each command of a shell block, which may go on in the next line by a backslash."""
    lines = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


def run_command(words: list[str]) -> None:
    """Run ``sb3-qam`` as a user would; other programs are not for tests to run."""
    if words[0] != "sb3-qam":
        raise AssertionError(f"{shlex.join(words)} is not run by the tests: say <!-- parse: REASON --> before it.")
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"


def parse_command(words: list[str]) -> None:
    """Have the program's own parser read a command, and stop it there."""
    if words[0] == "sb3-qam":
        parse_own_command(words[1:])
    elif words[:2] == ["pip", "install"]:
        for word in words[2:]:
            check_extras(word)
    elif words[0].endswith("python") and words[1].endswith(".py"):
        script = ROOT / words[1]
        # What stands beside a script can be imported by it
        with parsing_only(words[1:]), patch.object(sys, "path", [str(script.parent), *sys.path]):
            runpy.run_path(str(script), run_name="__main__")
    else:
        raise AssertionError(f'Nothing reads {shlex.join(words)}: say <!-- skip: next "REASON" --> before it.')


def parse_own_command(words: list[str]) -> None:
    command = typer.main.get_command(app)
    context = command.make_context("sb3-qam", list(words))
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
        assert command is not None, f"There is no command {name}."
        context = command.make_context(name, list(words), parent=context)
    if name in ("train", "enjoy"):
        # RL Zoo's parser is inside of what it runs
        with parsing_only(["sb3-qam", *context.args]):
            command.invoke(context)


class Parsed(Exception):
    """Everything was understood."""


@contextmanager
def parsing_only(arguments: list[str]) -> Iterator[None]:
    """Stop a program as soon as it has parsed its arguments; it is wrong if it never does, or refuses them."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)  # type: ignore[call-overload]
        raise Parsed

    # The zoo puts its own folder into sys.path
    with patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop), patch.object(sys, "argv", arguments):
        try:
            yield
        except Parsed:
            return
    raise AssertionError(f"{shlex.join(arguments)} has no arguments that could be parsed.")


def check_extras(requirement: str) -> None:
    """The extras that are asked for are those of this package."""
    if not requirement.startswith(("sb3-qam[", ".[")):
        return
    known = metadata("sb3-qam").get_all("Provides-Extra", [])
    missing = set(requirement[requirement.index("[") + 1 : -1].split(",")) - set(known)
    assert not missing, f"{requirement}: there are no extras {', '.join(sorted(missing))}."
