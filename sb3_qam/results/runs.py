"""Runs as RL Zoo leaves them: settings, evaluations, how far they came, and which of them belong together."""

import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_qam.suite import OUTPUT, read_progress
from sb3_qam.utils.plain_yaml import read_yaml

# As the zoo names the folder of a run: task, number, and an id with --uuid
RUN_NAME = re.compile(r"(?P<task>.+)_(?P<number>\d+)(_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?")
# As a suite does: ALGORITHM/TASK/seed_NUMBER
SEED_NAME = re.compile(r"seed_\d+")
# What is more comes from a damaged file
MAX_STEPS, MAX_VALUE, MAX_BYTES, MAX_NAME = 2**53, 1e38, 2**28, 200


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """
    One run that has been evaluated at least once. Its steps are on the axis of the logs: gradient steps of the offline
    phase first, environment steps after them.

    :param folder: Where the zoo has put it, ``logs/ALGO/TASK_1``
    :param source: Which of the folders that were read it was found in
    :param algorithm: Name of the algorithm
    :param task: Id of the environment
    :param seed: Seed of the run
    :param settings: What was configured: runs that differ in it are runs of different methods
    :param resumed_from: The model from which it resumed training, if it did
    :param offline_steps: Gradient steps before the first environment step
    :param total_steps: Steps of both phases that it was to take
    :param steps_done: How many it has taken, as far as known
    :param is_finished: Whether it has taken all of them
    :param steps: When it was evaluated, shape (n,), increasing
    :param values: What came out by metric, shape (n,) each: mean return as ``reward`` and, where it was recorded, the
        success rate in [0, 1] as ``success``
    :param method: Name under which runs that differ by their seeds only are taken together
    """

    folder: Path
    source: Path
    algorithm: str
    task: str
    seed: int
    settings: dict[str, Any]
    resumed_from: Path | None
    offline_steps: int
    total_steps: int
    steps_done: int
    is_finished: bool
    steps: np.ndarray
    values: dict[str, np.ndarray]
    method: str = ""

    @property
    def state(self) -> str:
        """In words."""
        return "finished" if self.is_finished else f"unfinished, {self.steps_done:,} of {self.total_steps:,} steps"


class LeftOut(NamedTuple):
    """A run that is not shown, and why; its algorithm and task as far as the folders say."""

    folder: Path
    reason: str

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        parent = self.folder.resolve().parent
        return parent.parent.name if SEED_NAME.fullmatch(self.folder.name) else parent.name

    @property
    def task(self) -> str:
        """Id of the environment."""
        folder = self.folder.resolve()
        match = RUN_NAME.fullmatch(folder.name)
        return folder.parent.name if SEED_NAME.fullmatch(folder.name) else match["task"] if match else folder.name


def settings_folder(folder: Path) -> Path | None:
    """Where the zoo has put the settings, ``TASK_1/TASK``, if the folder is that of a run."""
    match = RUN_NAME.fullmatch(folder.resolve().name)
    return folder / match["task"] if match and (folder / match["task"]).is_dir() else None


def read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param folder: Where the zoo has put the settings
    :return: The arguments of the command, and the configuration
    :raises ValueError: if they are not there, or cannot be read
    """
    args, config = folder / "args.yml", folder / "config.yml"
    for file in (args, config):
        if not file.is_file():
            raise ValueError(f"there is no {folder.name}/{file.name}: training did not begin, or this was a search")
    return read_yaml(args), read_yaml(config)


def read_runs(roots: list[Path]) -> tuple[list[TrainingRun], list[LeftOut]]:
    """
    :param roots: Folders with runs at any depth: the zoo's log folder, that of a suite, or a run itself
    :return: The runs, and what could not be read
    :raises FileNotFoundError: if there is no such folder, or no trace of a run below it
    """
    runs, left_out, seen = list[TrainingRun](), list[LeftOut](), set[Path]()
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"There is no folder '{root}': pass the log folder of your runs, -f FOLDER.")
        folders = list(_run_folders(root))
        if not folders:
            raise FileNotFoundError(
                f"There are no runs in '{root}': expected folders such as {root}/qam/PointMaze_UMaze-v3_1, as "
                "sb3-qam train and sb3-qam benchmark write them."
            )
        # A folder may be named beside one that holds it
        for folder in (each for each in folders if each.resolve() not in seen):
            seen.add(folder.resolve())
            try:
                runs.append(_read_run(folder, root))
            except Exception as error:
                # Damaged files raise whatever they like, and the other runs are still to be seen
                left_out.append(LeftOut(folder, str(error) or repr(error)))
    return runs, left_out


def _run_folders(root: Path) -> Iterator[Path]:
    """Folders of runs, also of those that got nowhere, in order."""
    for name, folders, files in os.walk(root):
        if settings_folder(Path(name)) is not None:
            yield Path(name)
            folders.clear()
        elif not folders and OUTPUT in files:
            # A run of a suite that has not come that far
            yield Path(name)
        # Run 2 before run 10
        folders.sort(key=lambda each: (each.rstrip("0123456789"), len(each), each))


def _read_run(folder: Path, source: Path) -> TrainingRun:
    """:raises ValueError: if there is nothing to be seen"""
    settings = settings_folder(folder)
    if settings is None:
        raise ValueError(f"training did not begin, see {OUTPUT} there")
    args, config = read_settings(settings)
    steps, values = _read_evaluations(folder / "evaluations.npz")
    try:
        online_steps = int(float(args["n_timesteps"] if args["n_timesteps"] > 0 else config["n_timesteps"]))
        offline_steps = int(config.get("offline_steps", 0)) + int(config.get("bc_steps", 0))
        algorithm, task, seed = str(args["algo"]), str(args["env"]), int(args["seed"])
        is_plausible = min(online_steps, offline_steps) >= 0 and online_steps + offline_steps <= MAX_STEPS
        if not is_plausible or max(len(algorithm), len(task)) > MAX_NAME:
            raise ValueError(f"{online_steps:.3g} steps after {offline_steps:.3g} offline, task '{task[:MAX_NAME]}'")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{settings.name}/args.yml and config.yml are not as RL Zoo writes them: {error!r}") from error
    # On the command line they override the configuration
    given = {key: args[key] for key in ("env_kwargs", "eval_env_kwargs") if args.get(key)}
    steps_done, is_finished = int(steps.max(initial=0)), False
    if (folder / f"{settings.name}.zip").is_file():
        steps_done, steps_to_do = read_progress(folder / f"{settings.name}.zip")
        is_finished = steps_done >= steps_to_do
    return TrainingRun(
        folder=folder,
        source=source,
        algorithm=algorithm,
        task=task,
        seed=seed,
        settings={**{str(key): value for key, value in config.items()}, "n_timesteps": online_steps, **given},
        resumed_from=Path(args["trained_agent"]) if args.get("trained_agent") else None,
        offline_steps=offline_steps,
        total_steps=offline_steps + online_steps,
        steps_done=steps_done,
        is_finished=is_finished,
        steps=steps,
        values=values,
    )


def _read_evaluations(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """
    :return: Steps and values, as a :class:`TrainingRun` has them; none if there are no evaluations yet
    :raises ValueError: if they are not as SB3's ``EvalCallback`` writes them
    """
    if not path.is_file():
        return np.empty(0), {}
    try:
        with np.load(path) as file:
            if sum(each.file_size for each in file.zip.infolist()) > MAX_BYTES:
                raise ValueError("it takes more than 256 MiB")
            steps = np.asarray(file["timesteps"], dtype=np.float64)
            arrays = {"reward": file["results"], **({"success": file["successes"]} if "successes" in file else {})}
        values = {name: np.asarray(array, dtype=np.float64).mean(axis=1) for name, array in arrays.items()}
    except Exception as error:
        # NumPy and zipfile have a dozen kinds of them for damaged files
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if steps.size == 0 or not all(
        each.shape == steps.shape and np.all(abs(each) < MAX_VALUE) for each in values.values()
    ):
        raise ValueError(f"{path.name} is damaged: it has not one finite value for each of {steps.size} evaluations")
    if not np.all(np.diff(steps, prepend=-1.0) > 0) or not steps[-1] <= MAX_STEPS:
        raise ValueError(f"{path.name} is damaged: its steps do not increase")
    return steps, values


def join_resumed(runs: list[TrainingRun]) -> tuple[list[TrainingRun], list[LeftOut]]:
    """
    Take a run and the one that resumed from its model (``-i MODEL.zip``) as one. The zoo begins to count again, so the
    steps of the second one are moved behind those of the first. Runs whose beginning is not there are left out, and so
    are those without evaluations.
    """
    by_folder = {run.folder.resolve(): run for run in runs}
    whole, left_out, resumed = list[TrainingRun](), list[LeftOut](), set[Path]()
    for run in runs:
        try:
            *before, _ = chain = _chain_to(run, by_folder)
            whole.append(_join(chain))
            resumed.update(each.folder for each in before)
        except ValueError as error:
            left_out.append(LeftOut(run.folder, str(error)))
    whole = [run for run in whole if run.folder not in resumed]
    reason = "there are no evaluations yet: they come every --eval-freq steps, by default 25,000"
    left_out += [LeftOut(run.folder, reason) for run in whole if run.steps.size == 0]
    return [run for run in whole if run.steps.size > 0], left_out


def _chain_to(run: TrainingRun, by_folder: dict[Path, TrainingRun]) -> list[TrainingRun]:
    """
    :return: The run that began, those that resumed from one another, and the run
    :raises ValueError: if one of them is not there, or is about something else
    """
    chain = [run]
    while (model := chain[0].resumed_from) is not None:
        # A path from the working directory of that time means a neighbor, as a rule
        *_, algorithm, name, _ = ("", "", *model.parts)
        places = [chain[0].folder.resolve().parents[1] / algorithm / name, model.parent]
        if model.is_absolute():
            places.reverse()
        found = (by_folder[place.resolve()] for place in places if place.resolve() in by_folder)
        # In a suite the neighbor of that name is the run itself
        before = next((each for each in found if each not in chain), None)
        if before is None:
            raise ValueError(
                f"it resumed from {model}, whose run is not among those that were read: give its folder too, -f FOLDER"
            )
        if (before.task, before.algorithm) != (run.task, run.algorithm):
            raise ValueError(f"it resumed from {model}, a model of {before.algorithm} on {before.task}")
        chain.insert(0, before)
    return chain


def _join(chain: list[TrainingRun]) -> TrainingRun:
    whole, start = chain[0], 0
    for before, run in pairwise(chain):
        assert run.resumed_from is not None  # for mypy
        start += read_progress(before.folder / run.resumed_from.name)[0]
        kept = whole.steps <= start
        # What one of them has not evaluated at all is what the other has
        parts = [part for part in ({n: v[kept] for n, v in whole.values.items()}, run.values) if len(part) > 0]
        total_steps = max(start, whole.offline_steps) + run.total_steps - run.offline_steps
        whole = replace(
            run,
            settings={**run.settings, "n_timesteps": total_steps - whole.offline_steps},
            offline_steps=whole.offline_steps,
            total_steps=total_steps,
            steps_done=start + run.steps_done,
            steps=np.concatenate([whole.steps[kept], run.steps + start]),
            values={
                name: np.concatenate([part[name] for part in parts])
                for name in parts[0]
                if all(name in part for part in parts)
            }
            if parts
            else {},
        )
    return whole


def name_methods(runs: list[TrainingRun]) -> list[TrainingRun]:
    """
    Name each run's method: its algorithm, and, if the algorithm has been run on the task with several settings, those
    that differ. With several folders each is part of the name.
    """
    n_sources = len({run.source for run in runs})
    keys = sorted({key for run in runs for key in run.settings})
    texts: dict[Any, set[str]] = defaultdict(set)
    for run, key in product(runs, keys):
        texts[run.source, run.task, run.algorithm, key].add(_text(run, key))

    def name(run: TrainingRun) -> str:
        algorithm = f"{run.source}: {run.algorithm}" if n_sources > 1 else run.algorithm
        differing = (key for key in keys if len(texts[run.source, run.task, run.algorithm, key]) > 1)
        return ", ".join([algorithm, *(_text(run, key) for key in differing)])

    return [replace(run, method=name(run)) for run in runs]


def _text(run: TrainingRun, key: str) -> str:
    """The setting in words, which differ for other values."""
    if key not in run.settings:
        return f"{key} not set"
    value = run.settings[key]
    # 3 and 3.0 are the same setting
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return f"{key}={text}" if len(text) <= MAX_NAME else f"{key}={text[:40]}... ({zlib.crc32(text.encode()):x})"


def drop_repetitions(runs: Iterable[TrainingRun]) -> tuple[list[TrainingRun], list[LeftOut]]:
    """
    Two runs with the same method and the same seed are one sample, not two. The one that came furthest is kept, and of
    equal ones the last.
    """
    kept, left_out = dict[Any, TrainingRun](), list[LeftOut]()
    for run in runs:
        key = (run.task, run.method, run.seed)
        other = kept.get(key, run)
        best = max(run, other, key=lambda each: (each.is_finished, each.steps_done))
        left_out += [
            LeftOut(each.folder, f"the same settings and seed as {best.folder}")
            for each in {run, other}
            if each is not best
        ]
        kept[key] = best
    return list(kept.values()), left_out
