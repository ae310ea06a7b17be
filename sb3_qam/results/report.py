"""From folders of runs to charts and a page."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sb3_qam.results import figures
from sb3_qam.results.methods import drop_repetitions, join_continued, name_methods
from sb3_qam.results.page import Chart, Row, make_page, make_rows
from sb3_qam.results.runs import LeftOut, read_runs
from sb3_qam.results.scores import Task, complete_methods, make_tasks, methods_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "index.html"
TITLES = {
    "learning_curves": "Learning curves",
    "aggregate": "All tasks together",
    "sample_efficiency": "Sample efficiency",
    "performance_profile": "Performance profile",
}
INTERVAL = "95 % interval of a stratified bootstrap"


@dataclass(frozen=True)
class Report:
    """
    What runs have come to.

    :param tasks: The tasks with their runs
    :param left_out: Runs that are not among them, and why
    :param with_published: Whether to show what has been published on the tasks
    """

    tasks: list[Task]
    left_out: list[LeftOut]
    with_published: bool

    @property
    def rows(self) -> list[Row]:
        """The table."""
        return make_rows(self.tasks, self.with_published)

    @property
    def notes(self) -> list[str]:
        """What a reader should know about the charts."""
        methods, complete = methods_of(self.tasks), complete_methods(self.tasks)
        missing = [method for method in methods if method not in complete]
        notes = []
        if missing and complete:
            notes.append(
                f"Not in the charts over all tasks, without finished runs on each of them: {'; '.join(missing)}."
            )
        if not complete:
            notes.append("There are no charts over all tasks: no method has finished runs on each of them.")
        ranges = [
            f"{task.name} {task.metric.text(task.bounds[0])} to {task.metric.text(task.bounds[1])}"
            for task in self.tasks
            if task.metric.bounds is None
        ]
        if ranges and complete:
            notes.append(f"Normalized scores: 0 and 1 are these returns: {'; '.join(ranges)}.")
        return notes

    def write(self, output: Path) -> list[Path]:
        """
        :param output: Folder for the charts and the page; those of earlier calls are replaced
        :return: The files
        :raises OSError: if they cannot be written
        """
        output.mkdir(parents=True, exist_ok=True)
        charts = self._make_charts()
        for name in TITLES:
            file = output / f"{name}.png"
            if name in charts:
                file.write_bytes(charts[name].png)
            else:
                file.unlink(missing_ok=True)
        page = make_page(self.tasks, list(charts.values()), self.notes, self.left_out, self.with_published)
        (output / PAGE).write_text(page, encoding="utf-8")
        return [output / PAGE, *(output / f"{name}.png" for name in charts)]

    def _make_charts(self) -> dict[str, Chart]:
        """
        :return: By the names of their files
        """
        looks = figures.make_looks(methods_of(self.tasks))
        curves = "Mean over seeds with the 95 % interval of a bootstrap, at the evaluations of training."
        if any(not run.is_finished for task in self.tasks for run in task.runs):
            curves += " Thin dotted lines are single runs that are not finished, and in no other number."
        if any(len({run.offline_steps for run in task.runs}) > 1 for task in self.tasks):
            curves += " Runs with a shorter offline phase begin further right: all go online at the same place."
        charts = {
            "learning_curves": (figures.draw_learning_curves(self.tasks, looks, self.with_published), curves),
        }
        methods = complete_methods(self.tasks)
        over_all: dict[str, tuple[Callable[..., Figure], str]] = {
            "aggregate": (figures.draw_aggregate, f"Over all runs of all tasks, with the {INTERVAL}."),
            "sample_efficiency": (
                figures.draw_sample_efficiency,
                f"Interquartile mean over all runs of all tasks, with the {INTERVAL}.",
            ),
            "performance_profile": (
                figures.draw_performance_profile,
                f"Share of the runs that end with more than a score τ, with the {INTERVAL}.",
            ),
        }
        if methods:
            charts |= {name: (draw(self.tasks, methods, looks), text) for name, (draw, text) in over_all.items()}
        return {name: Chart(TITLES[name], caption, _as_png(figure)) for name, (figure, caption) in charts.items()}


def _as_png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def make_report(
    folders: Sequence[Path],
    metric: str | None = None,
    algorithms: Sequence[str] = (),
    tasks: Sequence[str] = (),
    reward_ranges: Mapping[str, tuple[float, float]] | None = None,
    with_published: bool = True,
) -> Report:
    """
    :param folders: Folders with runs at any depth
    :param metric: ``"success"`` or ``"reward"``; by default success where all runs of a task have recorded it
    :param algorithms: Only these, by default all
    :param tasks: Only these environments, by default all
    :param reward_ranges: Returns that are scores of 0 and 1, by tasks; by default the range that is seen
    :param with_published: Whether to show what has been published on the tasks
    :return: What is to be shown
    :raises FileNotFoundError: if a folder is not there, or has no runs
    :raises ValueError: if there is nothing to show of them, or a range is of a task that is not there
    """
    runs, left_out = read_runs(list(folders))
    found = {(run.algorithm, run.task) for run in runs} | {(each.algorithm, each.task) for each in left_out}
    runs = [run for run in runs if _is_wanted(run.algorithm, algorithms) and _is_wanted(run.task, tasks)]
    left_out = [each for each in left_out if _is_wanted(each.algorithm, algorithms) and _is_wanted(each.task, tasks)]
    if not runs and not left_out:
        there = ", ".join(f"{algorithm} on {task}" for algorithm, task in sorted(found))
        raise ValueError(f"No run is of {' or '.join([*algorithms, *tasks])}. There are: {there}.")
    ranges_of_none = set(reward_ranges or {}) - {task for _, task in found}
    if ranges_of_none:
        raise ValueError(
            f"There is a reward range for {', '.join(sorted(ranges_of_none))}, and no run on it. There are: "
            f"{', '.join(sorted({task for _, task in found}))}."
        )
    runs, without_beginning = join_continued(runs)
    runs, repetitions = drop_repetitions(name_methods(runs))
    of_tasks, without_metric = make_tasks(runs, metric, reward_ranges or {})
    left_out += [*without_beginning, *repetitions, *without_metric]
    if not of_tasks:
        first, *others = left_out
        raise ValueError(
            f"There is nothing to show: {first.folder}: {first.reason}"
            + (f", and {len(others)} more runs that say nothing." if others else ".")
        )
    return Report(of_tasks, left_out, with_published)


def _is_wanted(name: str, wanted: Sequence[str]) -> bool:
    return not wanted or name in wanted
