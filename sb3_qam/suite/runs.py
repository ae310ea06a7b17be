"""Many runs of RL Zoo: tasks x algorithms x seeds, each in a folder of its own, to be interrupted and gone on with."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

KEYS = ("tasks", "algorithms", "hyperparams", "options")
MARKER, OUTPUT, LOCK = "finished.json", "output.txt", "lock"


@dataclass(frozen=True)
class Run:
    """
    One run of ``sb3-qam train``.

    :param task: Id of the environment
    :param algorithm: Name of the algorithm
    :param seed: Seed
    :param hyperparams: What is not as in the zoo's configuration
    :param options: Other options of the command, without their dashes
    """

    task: str
    algorithm: str
    seed: int
    hyperparams: dict[str, Any]
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.task}, seed {self.seed}"

    def folder(self, root: Path) -> Path:
        """
        :param root: The suite's folder
        :return: The run's folder, where the zoo puts its own
        """
        return root / self.algorithm / self.task / f"seed_{self.seed}"

    def arguments(self, root: Path) -> list[str]:
        """
        :param root: The suite's folder
        :return: Arguments of ``sb3-qam train``
        """
        arguments = ["--algo", self.algorithm, "--env", self.task, "--seed", str(self.seed)]
        arguments += ["-f", str(self.folder(root))]
        for name, value in self.options.items():
            values = value if isinstance(value, list) else [] if value is True else [value]
            arguments += [f"--{name}", *map(str, values)]
        if self.hyperparams:
            # The zoo evaluates them
            arguments += ["--hyperparams", *(f"{name}:{value!r}" for name, value in self.hyperparams.items())]
        return arguments

    def is_finished(self, root: Path) -> bool:
        """
        :param root: The suite's folder
        :return: Whether the run has come to its end
        :raises ValueError: if it has, with other settings
        """
        marker = self.folder(root) / MARKER
        if not marker.is_file():
            return False
        if json.loads(marker.read_text()) != asdict(self):
            raise ValueError(
                f"{self.folder(root)} has been finished with other settings, see {marker.name}: choose another folder "
                "for the suite, or remove it."
            )
        return True


def read_suite(path: Path, seeds: Iterable[int]) -> list[Run]:
    """
    :param path: A YAML file with ``tasks`` and ``algorithms`` (by default ``qam``), lists of names or dicts of
        hyper-parameters by name, and, for all runs, ``hyperparams`` and ``options`` of ``sb3-qam train``. The
        hyper-parameters of an algorithm come before those of a task, and these before those for all
    :param seeds: Seeds
    :return: The runs
    :raises ValueError: if the file is not such a one
    """
    try:
        suite = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(suite, dict) or not set(suite) <= set(KEYS) or not suite.get("tasks"):
        raise ValueError(f"{path} must have tasks, and may have algorithms (qam by default), hyperparams and options.")
    tasks, algorithms = (_by_name(key, suite.get(key) or ["qam"]) for key in ("tasks", "algorithms"))
    for key in ("hyperparams", "options"):
        if not isinstance(suite.get(key) or {}, dict):
            raise ValueError(f"{key} of a suite must be a dict of values by name: {suite[key]}")
    # Runs lie side by side, and give the same numbers wherever they run
    options = {"num-threads": 1, **(suite.get("options") or {})}
    if type(options["num-threads"]) is not int:
        raise ValueError(f"num-threads of a suite's options must be a whole number: {options['num-threads']!r}")
    return [
        Run(task, algorithm, seed, {**(suite.get("hyperparams") or {}), **of_task, **of_algorithm}, options)
        for seed in seeds
        for task, of_task in tasks.items()
        for algorithm, of_algorithm in algorithms.items()
    ]


def _by_name(key: str, entries: Any) -> dict[str, dict[str, Any]]:
    """
    :raises ValueError: if they are neither names nor hyper-parameters by name
    """
    by_name = dict.fromkeys(entries) if isinstance(entries, list) else entries
    if not isinstance(by_name, dict) or not all(isinstance(each, (dict, type(None))) for each in by_name.values()):
        raise ValueError(f"{key} of a suite must be a list of names, or a dict of hyper-parameters by name: {entries}")
    return {name: hyperparams or {} for name, hyperparams in by_name.items()}


def execute(run: Run, root: Path) -> None:
    """
    Do a run, from its beginning, and mark it as finished. A run that another process is at, as after a suite has been
    killed and started again, is waited for.

    :param run: What to do
    :param root: The suite's folder
    """
    folder = run.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    # Given back by the system when the process dies, however it does
    with FileLock(folder / LOCK):
        if run.is_finished(root):
            return
        for left_over in folder.iterdir():
            if left_over.is_dir():
                shutil.rmtree(left_over)
        _train(run.arguments(root))
        # A marker is there as a whole, or not at all
        unfinished = folder / f"{MARKER}.tmp"
        with unfinished.open("w") as file:
            json.dump(asdict(run), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, folder / MARKER)


def _train(arguments: list[str]) -> None:
    from sb3_qam.zoo.train import train

    # The zoo would save the model of an interrupted run, and go on as if it had come to its end
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.argv = ["sb3-qam train", *arguments]
    train()


if __name__ == "__main__":
    execute(Run(**json.loads(sys.argv[2])), Path(sys.argv[1]))
