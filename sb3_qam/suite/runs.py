"""The runs of a suite, each in its own folder and done exactly once."""

import faulthandler
import json
import math
import os
import platform
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock, Timeout

from sb3_qam.utils.atomic import atomic_write
from sb3_qam.utils.plain_yaml import read_yaml
from sb3_qam.variants import find_algorithm

KEYS = ("tasks", "algorithms", "hyperparams", "options")
# Options of the command that a run has of its own
OWN_OPTIONS = {"algo", "env", "seed", "hyperparams", "hyperparameters", "params", "f", "log-folder"}
# In the folder of a run
STARTED, FINISHED, OUTPUT, LOCK = "started.json", "finished.json", "output.txt", "lock"
MAX_ATTRIBUTES_SIZE = 2**27


@dataclass(frozen=True)
class Run:
    """
    One run of ``sb3-qam train``.

    :param task: Id of the environment
    :param algorithm: Name of the algorithm
    :param seed: Seed
    :param hyperparams: What differs from the zoo's configuration
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
        for name, value in {**self.options, "hyperparams": self.hyperparams}.items():
            arguments += _as_option(name, value)
        # The last one of repeated options counts
        return [*arguments, "-f", str(self.folder(root))]

    def is_finished(self, root: Path) -> bool:
        """
        :param root: The suite's folder
        :return: Whether it has taken all of its steps, which its marker says
        :raises ValueError: if it has with other settings, or the marker cannot be read
        """
        marker = self.folder(root) / FINISHED
        if not marker.is_file():
            return False
        try:
            settings = json.loads(marker.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{marker} is damaged ({error}): remove it, and the run is repeated.") from error
        if settings != asdict(self):
            raise ValueError(
                f"{marker.parent} was finished with other settings, see {FINISHED} there: choose another folder for "
                "the suite (--folder), or remove it."
            )
        return True

    def process_at_work(self, root: Path) -> str | None:
        """
        :param root: The suite's folder
        :return: The process that does the run at the moment, if there is one
        """
        if not (self.folder(root) / LOCK).is_file():
            return None
        try:
            with FileLock(self.folder(root) / LOCK, timeout=0):
                return None
        except Timeout:
            started = self._read_started(root)
            return f"process {started.get('process', '?')} on {started.get('host', 'an unknown machine')}"

    def _read_started(self, root: Path) -> dict[str, Any]:
        """What the process that began the run last has written; empty if there was none."""
        try:
            started = json.loads((self.folder(root) / STARTED).read_text())
            is_own = (started["task"], started["algorithm"], started["seed"]) == (self.task, self.algorithm, self.seed)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}
        return started if is_own else {}

    def begin(self, root: Path) -> None:
        """
        Remove what an earlier attempt at the run has left, and say that there is a new one.

        :param root: The suite's folder
        :raises ValueError: if there is something that no attempt has left
        """
        left_over = self.folder(root) / self.algorithm
        if left_over.exists():
            if left_over.is_symlink() or not self._read_started(root):
                raise ValueError(
                    f"{left_over} was not written by this suite ({STARTED} beside it does not say so): choose another "
                    "folder for the suite, or remove it yourself."
                )
            shutil.rmtree(left_over)
        started = {"host": platform.node(), "process": os.getpid()}
        with atomic_write(self.folder(root) / STARTED) as file:
            file.write_text(json.dumps({**asdict(self), **started}, indent=1))

    def finish(self, root: Path) -> None:
        """
        Mark the run as finished.

        :param root: The suite's folder
        :raises ValueError: if it has not taken all of its steps
        """
        models = (self.folder(root) / self.algorithm).glob("*/*.zip")
        # The zoo writes TASK_1/TASK.zip beside the settings in TASK_1/TASK
        final = next((path for path in models if path.with_suffix("").is_dir()), None)
        if final is None:
            raise ValueError(f"{self} has saved no final model in {self.folder(root)}.")
        n_steps, n_steps_to_do = read_progress(final)
        if n_steps < n_steps_to_do:
            raise ValueError(f"{self} ended after {n_steps:,} of {n_steps_to_do:,} steps.")
        with atomic_write(self.folder(root) / FINISHED) as file:
            file.write_text(json.dumps(asdict(self), indent=1))


def _as_option(name: str, value: Any) -> list[str]:
    """The option on the command line. A flag is ``True`` or ``False``."""
    if value is None or value is False or value == {}:
        return []
    if isinstance(value, dict):
        # The zoo evaluates the values
        value = [f"{key}:{_as_python(each)}" for key, each in value.items()]
    values = value if isinstance(value, list) else [] if value is True else [value]
    return [f"--{name}", *map(str, values)]


def _as_python(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_as_python(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_python, value))}]"
    # Without quotes inf is a name
    return f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def read_suite(path: Path, seeds: Iterable[int]) -> list[Run]:
    """
    :param path: A YAML file with ``tasks`` and ``algorithms`` (by default ``qam``), lists of names or dicts of
        hyper-parameters by name, and, for all runs, ``hyperparams`` and ``options`` of ``sb3-qam train``, in which
        ``{task}``, ``{algorithm}`` and ``{seed}`` are those of the run. The
        hyper-parameters of an algorithm override those of a task, and these override those for all
    :param seeds: Seeds
    :return: The runs
    :raises ValueError: if the file is something else, there is no algorithm of a name, or one has two entries
    """
    suite = read_yaml(path)
    if not set(suite) <= set(KEYS) or not suite.get("tasks"):
        raise ValueError(f"{path} must have tasks, and may have algorithms (qam by default), hyperparams and options.")
    for value in _not_plain(suite):
        raise ValueError(
            f"{path} must consist of names, texts, numbers, true and false, got {value}: quote what is to be text."
        )
    tasks, algorithms = (_by_name(key, suite.get(key) or ["qam"]) for key in ("tasks", "algorithms"))
    names = {name: find_algorithm(name)[0] for name in algorithms}
    if len(set(names.values())) < len(names):
        raise ValueError(f"algorithms of a suite must be different ones: {', '.join(names)}")
    algorithms = {names[name]: hyperparams for name, hyperparams in algorithms.items()}
    for key in ("hyperparams", "options"):
        if not isinstance(suite.get(key) or {}, dict):
            raise ValueError(f"{key} of a suite must be a dict of values by name: {suite[key]}")
    # Runs lie side by side, and give the same numbers wherever they run
    options = {"num-threads": 1, **(suite.get("options") or {})}
    if own := sorted(OWN_OPTIONS & options.keys()):
        raise ValueError(
            f"options of a suite cannot have {', '.join(own)}: its tasks, algorithms and hyperparams, --seeds and "
            "--folder say that."
        )
    if type(options["num-threads"]) is not int:
        raise ValueError(f"num-threads of a suite's options must be a whole number: {options['num-threads']!r}")
    return [
        Run(
            task,
            algorithm,
            seed,
            {**(suite.get("hyperparams") or {}), **of_task, **of_algorithm},
            {key: _filled(value, task=task, algorithm=algorithm, seed=seed) for key, value in options.items()},
        )
        for seed in seeds
        for task, of_task in tasks.items()
        for algorithm, of_algorithm in algorithms.items()
    ]


def _not_plain(value: Any) -> Iterator[Any]:
    """What of it would not come back from JSON as it was."""
    if isinstance(value, dict):
        yield from (name for name in value if not isinstance(name, str))
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _not_plain(each)
    elif not isinstance(value, str | float | int | None) or value != value:
        yield value


def _filled(option: Any, **names: Any) -> Any:
    """An option with what its placeholders stand for, also in a list or dict; other braces stay."""
    if isinstance(option, dict):
        return {key: _filled(each, **names) for key, each in option.items()}
    if isinstance(option, list):
        return [_filled(each, **names) for each in option]
    if isinstance(option, str):
        for name, value in names.items():
            option = option.replace(f"{{{name}}}", str(value))
    return option


def _by_name(key: str, entries: Any) -> dict[str, dict[str, Any]]:
    """:raises ValueError: if they are neither names nor hyper-parameters by name, or a name leads out of the suite"""
    is_list = isinstance(entries, list) and all(isinstance(each, str) for each in entries)
    by_name = dict.fromkeys(entries) if is_list else entries
    if not isinstance(by_name, dict) or not all(isinstance(each, (dict, type(None))) for each in by_name.values()):
        raise ValueError(f"{key} of a suite must be a list of names, or a dict of hyper-parameters by name: {entries}")
    for name in by_name:
        # Ids of environments may have a slash
        if PurePath(name).is_absolute() or not name.strip() or {".", ".."} & set(name.split("/")) or "\\" in name:
            raise ValueError(f"{key} of a suite must be names, and not paths that lead out of its folder: '{name}'")
    return {name: hyperparams or {} for name, hyperparams in by_name.items()}


def read_progress(model: Path) -> tuple[int, int]:
    """
    :param model: A saved model; nothing of it is unpickled
    :return: Steps that it has taken, and steps that its training was to take
    :raises ValueError: if it cannot be read
    """
    try:
        with zipfile.ZipFile(model) as file:
            if file.getinfo("data").file_size > MAX_ATTRIBUTES_SIZE:
                raise ValueError("its attributes take more than 128 MiB")
            attributes = json.loads(file.read("data"))
        return int(attributes["num_timesteps"]), int(attributes["_total_timesteps"])
    except Exception as error:
        # A damaged file raises any of a dozen kinds
        raise ValueError(f"the model {model.name} cannot be read: {error}") from error


def execute(run: Run, root: Path, timeout: float | None = None) -> None:
    """
    Do a run from its beginning, and mark it as finished. If another process is at it, wait for that.

    :param run: What to do
    :param root: The suite's folder
    :param timeout: After how many seconds this process ends, with a traceback of where it was
    :raises ValueError: if the run has ended before its last step, or its folder has something else in it
    """
    run.folder(root).mkdir(parents=True, exist_ok=True)
    other = run.process_at_work(root)
    if other is not None:
        print(f"Waiting for {other}, which does this run", flush=True)
    # Released by the system when the process dies, however it does
    with FileLock(run.folder(root) / LOCK):
        if run.is_finished(root):
            return
        run.begin(root)
        from sb3_qam.zoo import train
        from sb3_qam.zoo.arguments import zoo_arguments

        if timeout is not None:
            faulthandler.dump_traceback_later(timeout, exit=True)
        sys.argv = ["sb3-qam train", *zoo_arguments("train", run.arguments(root))]
        try:
            train()
        finally:
            faulthandler.cancel_dump_traceback_later()
        run.finish(root)
