"""The HTML page, and the rows of its tables."""

import base64
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from sb3_qam.results import statistics
from sb3_qam.results.published import METHODS, SOURCE, published_of
from sb3_qam.results.runs import LeftOut
from sb3_qam.results.scores import Metric, Task, methods_of


@dataclass(frozen=True)
class Row:
    """
    One method on one task, in words.

    :param task: Id of the environment
    :param method: Name of the method
    :param runs: How many are finished, and of how many
    :param steps: Of the offline and of the online phase
    :param metric: What the numbers are
    :param offline: After the offline phase: mean over the seeds, and its interval
    :param last: At the end
    :param published: The published counterpart after each phase, if there is one
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
class Chart:
    """
    :param title: Its heading
    :param caption: What is seen on it
    :param png: The picture
    """

    title: str
    caption: str
    png: bytes

    @property
    def data(self) -> str:
        """The picture as part of a page."""
        return base64.b64encode(self.png).decode()


def make_rows(tasks: list[Task], with_published: bool) -> list[Row]:
    """
    :param tasks: Tasks
    :param with_published: Whether to say what has been published
    :return: One row for each method on each task
    """
    return [_make_row(task, method, with_published) for task in tasks for method in methods_of([task])]


def _make_row(task: Task, method: str, with_published: bool) -> Row:
    runs = [run for run in task.runs if run.method == method]
    finished = task.finished(method)
    phases = {f"{run.offline_steps:,} + {run.total_steps - run.offline_steps:,}" for run in runs}
    published = ""
    for score in published_of(task) if with_published else []:
        if score.method == METHODS.get(runs[0].algorithm):
            published = f"{score.offline:.2f} → {score.online:.2f}"
    return Row(
        task=task.name,
        method=method,
        runs=str(len(runs)) if len(finished) == len(runs) else f"{len(finished)} of {len(runs)}",
        steps=" / ".join(sorted(phases)),
        metric=task.metric.label,
        offline=_in_words(task.after_offline(method), task.metric),
        last=_in_words(task.last(method), task.metric) if finished else "not finished",
        published=published,
    )


def _in_words(values: np.ndarray, metric: Metric) -> str:
    """
    :param values: Of each run, shape (n,)
    :return: Mean and interval
    """
    if values.size == 0:
        return ""
    found = statistics.estimate([values], statistics.mean)
    if found.low is None or found.high is None:
        return metric.text(found.value)
    return f"{metric.text(found.value)} [{metric.text(found.low)}, {metric.text(found.high)}]"


def make_page(
    tasks: list[Task], charts: list[Chart], notes: list[str], left_out: list[LeftOut], with_published: bool
) -> str:
    """
    :param tasks: Tasks
    :param charts: Charts
    :param notes: What a reader should know about them
    :param left_out: Runs that are not on the page
    :param with_published: Whether to say what has been published
    :return: A page that needs nothing but itself
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("sb3_qam.results").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        tasks=tasks,
        methods=methods_of(tasks),
        runs=[(task, run) for task in tasks for run in task.runs],
        rows=make_rows(tasks, with_published),
        published={task.name: scores for task in tasks if with_published and (scores := published_of(task))},
        source=SOURCE,
        charts=charts,
        notes=notes,
        left_out=left_out,
    )
