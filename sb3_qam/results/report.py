"""From folders of runs to charts, a table and a page."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sb3_qam.results import figures
from sb3_qam.results.runs import LeftOut, TrainingRun, drop_repetitions, join_resumed, name_methods, read_runs
from sb3_qam.results.scores import PUBLISHED_SOURCE, Task, complete_methods, make_tasks, methods_of, title_of

PAGE = "index.html"
TEMPLATE = Path(__file__).with_name("page.html")
INTERVAL = "with the 95% interval of a stratified bootstrap."
# Of the charts, by the names of their files
CAPTIONS = {
    "learning_curves": "Mean over seeds with the 95% interval of a bootstrap, at the evaluations of training.",
    "aggregate": f"Over all runs of all tasks, {INTERVAL}",
    "sample_efficiency": f"Interquartile mean over all runs of all tasks, {INTERVAL}",
    "performance_profile": f"Share of the runs that end with more than a score τ, {INTERVAL}",
}


class Row(NamedTuple):
    """
    One method on one task, in words: how many runs are finished, and of how many; the steps of both phases; what the
    numbers are; after each phase the mean over the seeds and its interval; the published counterpart, if there is one.
    """

    task: str
    method: str
    runs: str
    steps: str
    metric: str
    offline: str
    last: str
    published: str


@dataclass(frozen=True)
class Report:
    """
    What runs have reached.

    :param tasks: The tasks with their runs
    :param left_out: Runs that are not among them, and why
    """

    tasks: list[Task]
    left_out: list[LeftOut]

    @property
    def rows(self) -> list[Row]:
        """The table: one row for each method on each task."""
        return [self._make_row(task, method) for task in self.tasks for method in methods_of([task])]

    def _make_row(self, task: Task, method: str) -> Row:
        runs = [run for run in task.runs if run.method == method]
        n_finished = len(task.finished(method))
        phases = {f"{run.offline_steps:,} + {run.total_steps - run.offline_steps:,}" for run in runs}
        published = [
            f"{score.offline:.2f} → {score.online:.2f}"
            for score in task.published
            if score.method == title_of(runs[0].algorithm)
        ]
        return Row(
            task=task.name,
            method=method,
            runs=str(len(runs)) if n_finished == len(runs) else f"{n_finished} of {len(runs)}",
            steps=" / ".join(sorted(phases)),
            metric=task.metric.label,
            offline=task.text(task.after_offline(method)),
            last=task.text(task.last(method)) or "not finished",
            published="".join(published),
        )

    def _repeats(self, methods: list[str]) -> bool:
        """:return: Whether a method has several finished runs: over a single one there is no more to see than it"""
        return any(sum(len(task.finished(method)) for task in self.tasks) > 1 for method in methods)

    @property
    def notes(self) -> list[str]:
        """What a reader should know about the charts."""
        complete = complete_methods(self.tasks)
        if not complete:
            return ["There are no charts over all tasks: no method has finished runs on each of them."]
        if not self._repeats(complete):
            return ["There are no charts over all runs, which need several of a method: other seeds or other tasks."]
        missing = [method for method in methods_of(self.tasks) if method not in complete]
        ranges = [
            f"{task.name} {task.number(task.bounds[0])} to {task.number(task.bounds[1])}"
            for task in self.tasks
            if task.metric.bounds is None
        ]
        notes = {
            "Not in the charts over all tasks, without finished runs on each of them": missing,
            "Normalized scores: 0 and 1 are these returns": ranges,
        }
        return [f"{note}: {'; '.join(names)}." for note, names in notes.items() if names]

    def write(self, output: Path) -> list[Path]:
        """
        :param output: Folder for the charts and the page; those of earlier calls are replaced
        :return: The files
        :raises OSError: if they cannot be written
        """
        from jinja2 import Environment

        output.mkdir(parents=True, exist_ok=True)
        charts = dict(self._write_charts(output))
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            tasks=self.tasks,
            methods=methods_of(self.tasks),
            runs=[(task, run) for task in self.tasks for run in task.runs],
            rows=self.rows,
            published={task.name: task.published for task in self.tasks if task.published},
            source=PUBLISHED_SOURCE,
            charts=[(*text, base64.b64encode(file.read_bytes()).decode()) for file, text in charts.items()],
            notes=self.notes,
            left_out=self.left_out,
        )
        (output / PAGE).write_text(page, encoding="utf-8")
        return [output / PAGE, *charts]

    def _write_charts(self, output: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
        """:return: The files of the charts, each with its title and caption"""
        import matplotlib

        captions = dict(CAPTIONS)
        if any(not run.is_finished for task in self.tasks for run in task.runs):
            captions["learning_curves"] += " Thin dotted lines are single runs that are not finished, and in no number."
        if any(len({run.offline_steps for run in task.runs}) > 1 for task in self.tasks):
            captions["learning_curves"] += (
                " Runs with a shorter offline phase begin further right: all go online at the same place."
            )
        methods, looks = complete_methods(self.tasks), figures.make_looks(methods_of(self.tasks))
        with matplotlib.rc_context(figures.STYLE):
            for name, caption in captions.items():
                file = output / f"{name}.png"
                file.unlink(missing_ok=True)
                # All charts but the first are over all runs
                if self._repeats(methods) or name == "learning_curves":
                    getattr(figures, f"draw_{name}")(self.tasks, methods, looks).savefig(file)
                    yield file, (name.replace("_", " ").capitalize(), caption)


def make_report(
    folders: Sequence[Path],
    metric: str | None = None,
    algorithms: Sequence[str] = (),
    tasks: Sequence[str] = (),
    with_published: bool = True,
) -> Report:
    """
    :param folders: Folders with runs at any depth
    :param metric: ``"success"`` or ``"reward"``; by default success where all runs of a task have recorded it
    :param algorithms: Only these, by default all
    :param tasks: Only these environments, by default all
    :param with_published: Whether to show what has been published on the tasks
    :return: What is to be shown
    :raises FileNotFoundError: if a folder is not there, or has no runs
    :raises ValueError: if there is nothing to show of them
    """

    def is_wanted(run: TrainingRun | LeftOut) -> bool:
        return (not algorithms or run.algorithm in algorithms) and (not tasks or run.task in tasks)

    runs, left_out = read_runs(list(folders))
    found = {(run.algorithm, run.task) for run in runs} | {(each.algorithm, each.task) for each in left_out}
    runs, left_out = list(filter(is_wanted, runs)), list(filter(is_wanted, left_out))
    if not runs and not left_out:
        there = ", ".join(f"{algorithm} on {task}" for algorithm, task in sorted(found))
        raise ValueError(f"No run is of {' or '.join([*algorithms, *tasks])}. There are: {there}.")
    runs, without_beginning = join_resumed(runs)
    runs, repetitions = drop_repetitions(name_methods(runs))
    of_tasks, without_metric = make_tasks(runs, metric, with_published)
    left_out += [*without_beginning, *repetitions, *without_metric]
    if not of_tasks:
        first, *others = left_out
        raise ValueError(
            f"There is nothing to show: {first.folder}: {first.reason}"
            + (f", and {len(others)} more runs that cannot be shown." if others else ".")
        )
    return Report(of_tasks, left_out)
