"""Which runs belong together: those that go on from each other, and those that differ by their seeds only."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qam.results.runs import LeftOut, TrainingRun, read_progress


def join_continued(runs: list[TrainingRun]) -> tuple[list[TrainingRun], list[LeftOut]]:
    """
    Take a run and the one that went on from its model (``-i MODEL.zip``) as one. The zoo begins to count again, so that
    the steps of the second one are moved behind those of the first.

    :param runs: As they were read
    :return: The runs, joined, and those whose beginning is not there
    """
    by_folder = {run.folder.resolve(): run for run in runs}
    whole: list[TrainingRun] = []
    left_out: list[LeftOut] = []
    continued: set[Path] = set()
    for run in runs:
        try:
            joined = _with_beginning(run, by_folder, continued)
        except ValueError as error:
            left_out.append(LeftOut(run.folder, str(error)))
        else:
            whole.append(joined)
    return [run for run in whole if run.folder.resolve() not in continued], left_out


def _with_beginning(run: TrainingRun, by_folder: dict[Path, TrainingRun], continued: set[Path]) -> TrainingRun:
    """
    :param by_folder: All runs by their folders
    :param continued: Takes the folders of the runs that this one went on from
    :raises ValueError: if one of them is not there, or is about something else
    """
    if run.goes_on_from is None:
        return run
    # A path from the working directory of that time means a neighbor, as a rule
    *_, algorithm, name, _ = ("", "", *run.goes_on_from.parts)
    places = [run.folder.resolve().parents[1] / algorithm / name, run.goes_on_from.parent]
    if run.goes_on_from.is_absolute():
        places.reverse()
    before = next((by_folder[place.resolve()] for place in places if place.resolve() in by_folder), None)
    if before is None or before.folder == run.folder:
        raise ValueError(f"it goes on from {run.goes_on_from}, whose run is not among those that were read")
    if (before.task, before.algorithm) != (run.task, run.algorithm):
        raise ValueError(f"it goes on from {run.goes_on_from}, a model of {before.algorithm} on {before.task}")
    steps_before = read_progress(before.folder / run.goes_on_from.name)[0]
    first = _with_beginning(before, by_folder, continued)
    continued.add(before.folder.resolve())
    # Those before the last model began to count anew as well
    start = first.steps_done - before.steps_done + steps_before
    kept = first.steps <= start
    successes = None
    if first.successes is not None and run.successes is not None:
        successes = np.concatenate([first.successes[kept], run.successes])
    online_steps = run.total_steps - run.offline_steps
    total_steps = max(start, first.offline_steps) + online_steps
    return replace(
        run,
        settings={**run.settings, "n_timesteps": total_steps - first.offline_steps},
        offline_steps=first.offline_steps,
        total_steps=total_steps,
        steps_done=start + run.steps_done,
        steps=np.concatenate([first.steps[kept], run.steps + start]),
        rewards=np.concatenate([first.rewards[kept], run.rewards]),
        successes=successes,
    )


def name_methods(runs: list[TrainingRun]) -> list[TrainingRun]:
    """
    Name each run's method: its algorithm, and, if the algorithm has been run on the task with several settings, those
    that differ. With several folders each is part of the name.

    :param runs: Runs
    :return: The same with their methods
    """
    n_sources = len({run.source for run in runs})
    settings: dict[tuple[Path, str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        settings[run.source, run.task, run.algorithm].append(run.settings)
    differing = {key: _differing_keys(each) for key, each in settings.items()}

    def name(run: TrainingRun) -> str:
        parts = [f"{run.source}: {run.algorithm}" if n_sources > 1 else run.algorithm]
        for key in differing[run.source, run.task, run.algorithm]:
            parts.append(f"{key}={run.settings[key]}" if key in run.settings else f"{key} not set")
        return ", ".join(parts)

    return [replace(run, method=name(run)) for run in runs]


def _differing_keys(settings: list[dict[str, Any]]) -> list[str]:
    keys = sorted({key for each in settings for key in each})
    return [key for key in keys if len({_identity(each.get(key, ...)) for each in settings}) > 1]


def _identity(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def drop_repetitions(runs: Iterable[TrainingRun]) -> tuple[list[TrainingRun], list[LeftOut]]:
    """
    Two runs with the same settings and the same seed are one sample, not two. The one that came furthest is kept, and
    of equal ones the last.

    :param runs: Runs with their methods
    :return: Those to keep, and the others
    """
    kept: dict[tuple[str, str, int], TrainingRun] = {}
    left_out: list[LeftOut] = []
    for run in runs:
        key = (run.task, run.method, run.seed)
        other = kept.get(key)
        if other is not None:
            further = (run.is_finished, run.steps_done) >= (other.is_finished, other.steps_done)
            other, run = (other, run) if further else (run, other)
            left_out.append(LeftOut(other.folder, f"the same settings and seed as {run.folder}"))
        kept[key] = run
    return list(kept.values()), left_out
