"""Runs as RL Zoo has left them: their settings, their evaluations, and how far they came."""

import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sb3_qam.suite.runs import OUTPUT

# As the zoo names the folder of a run: task, number, and an id with --uuid
RUN_NAME = re.compile(r"(?P<task>.+)_(?P<number>\d+)(_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?")

# As a suite does: ALGORITHM/TASK/seed_NUMBER
SEED_NAME = re.compile(r"seed_\d+")


@dataclass(frozen=True)
class TrainingRun:
    """
    One run that has been evaluated at least once. Its steps are on the axis of the logs: gradient steps of the offline
    phase first, environment steps after them.

    :param folder: Where the zoo has put it, ``logs/ALGO/TASK_1``
    :param source: Which of the folders that were read it was found in
    :param algorithm: Name of the algorithm
    :param task: Id of the environment
    :param seed: Seed
    :param settings: What was configured: runs that differ in it, are runs of different methods
    :param goes_on_from: The model that training went on from, if it did not begin anew
    :param offline_steps: Gradient steps before the first environment step
    :param total_steps: Steps of both phases that it was to take
    :param steps_done: How many it has taken, as far as known
    :param is_finished: Whether it has come to its end
    :param steps: When it was evaluated, shape (n,), increasing
    :param rewards: Mean return of each evaluation, shape (n,)
    :param successes: Success rate of each evaluation in [0, 1], shape (n,), where it was recorded
    :param method: Name under which runs that differ by their seeds only are taken together
    """

    folder: Path
    source: Path
    algorithm: str
    task: str
    seed: int
    settings: dict[str, Any]
    goes_on_from: Path | None
    offline_steps: int
    total_steps: int
    steps_done: int
    is_finished: bool
    steps: np.ndarray
    rewards: np.ndarray
    successes: np.ndarray | None
    method: str = ""

    @property
    def state(self) -> str:
        """In words."""
        return "finished" if self.is_finished else f"unfinished, {self.steps_done:,} of {self.total_steps:,} steps"


@dataclass(frozen=True)
class LeftOut:
    """
    :param folder: Folder of a run that says nothing
    :param reason: Why
    """

    folder: Path
    reason: str

    @property
    def algorithm(self) -> str:
        """As far as the folders say."""
        folder = self.folder.resolve()
        return folder.parents[1].name if SEED_NAME.fullmatch(folder.name) else folder.parent.name

    @property
    def task(self) -> str:
        """As far as the folders say."""
        folder = self.folder.resolve()
        if SEED_NAME.fullmatch(folder.name):
            return folder.parent.name
        match = RUN_NAME.fullmatch(folder.name)
        return folder.name if match is None else match["task"]


def read_runs(roots: list[Path]) -> tuple[list[TrainingRun], list[LeftOut]]:
    """
    :param roots: Folders with runs at any depth: the zoo's log folder, that of a suite, or a run itself
    :return: The runs, and what could not be read
    :raises FileNotFoundError: if there is no such folder, or no trace of a run below it
    """
    runs: list[TrainingRun] = []
    left_out: list[LeftOut] = []
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"There is no folder '{root}': pass the log folder of your runs, -f FOLDER.")
        found = False
        for folder in _run_folders(root):
            found = True
            # A folder may be named beside one that holds it
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                runs.append(_read_run(folder, root))
            except ValueError as error:
                left_out.append(LeftOut(folder, str(error)))
        if not found:
            raise FileNotFoundError(
                f"There are no runs in '{root}': expected folders such as {root}/qam/PointMaze_UMaze-v3_1, as "
                "sb3-qam train and sb3-qam benchmark write them."
            )
    return runs, left_out


def read_progress(model: Path) -> tuple[int, int]:
    """
    :param model: A saved model; nothing of it is unpickled
    :return: Steps that it has taken, and steps that its training was to take
    :raises ValueError: if it cannot be read
    """
    try:
        with zipfile.ZipFile(model) as file:
            attributes = json.loads(file.read("data"))
        return int(attributes["num_timesteps"]), int(attributes["_total_timesteps"])
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"the model {model.name} cannot be read: {error}") from error


def _run_folders(root: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """
    :param above: The folders that led here: a link may lead back
    :return: Folders of runs, also of those that got nowhere, in order
    """
    if root.resolve() in above:
        return
    above |= {root.resolve()}
    # The zoo makes TASK_1/TASK before anything else
    match = RUN_NAME.fullmatch(root.resolve().name)
    if match is not None and (root / match["task"]).is_dir():
        yield root
        return
    names = sorted(os.listdir(root), key=_in_order)
    folders = [root / name for name in names if (root / name).is_dir()]
    yield from (folder for each in folders for folder in _run_folders(each, above))
    # A run of a suite that has not come that far
    if not folders and OUTPUT in names:
        yield root


def _in_order(name: str) -> tuple[str, int]:
    """
    :return: So that run 2 comes before run 10
    """
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if number.isdigit() else (name, -1)


def _read_run(folder: Path, source: Path) -> TrainingRun:
    """
    :raises ValueError: if there is nothing to be seen
    """
    match = RUN_NAME.fullmatch(folder.resolve().name)
    if match is None or not (folder / match["task"]).is_dir():
        raise ValueError(f"training did not begin, see {OUTPUT} there")
    name = match["task"]
    args, config = (_read_settings(folder / name / file) for file in ("args.yml", "config.yml"))
    steps, rewards, successes = _read_evaluations(folder / "evaluations.npz")
    try:
        online_steps = int(float(args["n_timesteps"] if args["n_timesteps"] > 0 else config["n_timesteps"]))
        offline_steps = int(config.get("offline_steps", 0)) + int(config.get("bc_steps", 0))
        settings = {**config, "n_timesteps": online_steps}
        # On the command line they override the configuration
        settings |= {key: args[key] for key in ("env_kwargs", "eval_env_kwargs") if args.get(key)}
        algorithm, task, seed = str(args["algo"]), str(args["env"]), int(args["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}/args.yml and config.yml are not as RL Zoo writes them: {error!r}") from error
    steps_done, is_finished = int(steps[-1]), False
    if (folder / f"{name}.zip").is_file():
        steps_done, steps_to_do = read_progress(folder / f"{name}.zip")
        is_finished = steps_done >= steps_to_do
    return TrainingRun(
        folder=folder,
        source=source,
        algorithm=algorithm,
        task=task,
        seed=seed,
        settings=settings,
        goes_on_from=Path(args["trained_agent"]) if args.get("trained_agent") else None,
        offline_steps=offline_steps,
        total_steps=offline_steps + online_steps,
        steps_done=steps_done,
        is_finished=is_finished,
        steps=steps,
        rewards=rewards,
        successes=successes,
    )


class _PlainLoader(yaml.SafeLoader):
    """Reads what the zoo has written without making Python objects of it, so that no code of a file is run."""


def _plain(loader: yaml.SafeLoader, kind: str, node: yaml.Node) -> Any:
    """
    :param kind: Of the Python object
    :return: What it was made from
    """
    if isinstance(node, yaml.SequenceNode):
        arguments = loader.construct_sequence(node, deep=True)
        return dict(arguments[0]) if kind == "object/apply:collections.OrderedDict" else arguments
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    assert isinstance(node, yaml.ScalarNode)  # for mypy
    return f"{kind} {loader.construct_scalar(node)}".strip()


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


def _read_settings(path: Path) -> dict[str, Any]:
    """
    :raises ValueError: if there are none
    """
    if not path.is_file():
        raise ValueError(
            f"there is no {path.parent.name}/{path.name}: training did not begin, or this was a search for "
            "hyper-parameters"
        )
    try:
        settings = yaml.load(path.read_text(), Loader=_PlainLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path.parent.name}/{path.name} has no settings in it")
    return settings


def _read_evaluations(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """
    :return: Steps, mean returns and success rates, as a :class:`TrainingRun` has them
    :raises ValueError: if there are none, or they are not as SB3's ``EvalCallback`` writes them
    """
    if not path.is_file():
        raise ValueError("there are no evaluations yet: they come every --eval-freq steps, by default 25,000")
    try:
        with np.load(path) as file:
            arrays = {name: np.asarray(file[name], dtype=np.float64) for name in file.files}
        steps, rewards = arrays["timesteps"], arrays["results"].mean(axis=1)
        successes = arrays["successes"].mean(axis=1) if "successes" in arrays else None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    values = [rewards] if successes is None else [rewards, successes]
    if steps.size == 0 or any(each.shape != steps.shape or not np.isfinite(each).all() for each in values):
        raise ValueError(f"{path.name} is damaged: it has not one finite value for each of {steps.size} evaluations")
    if np.any(np.diff(steps) <= 0):
        raise ValueError(f"{path.name} is damaged: its steps do not increase")
    return steps, rewards, successes
