"""The charts."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_qam.results import statistics
from sb3_qam.results.axes import PhaseAxis, StepAxis, common_axis
from sb3_qam.results.published import METHODS, OFFLINE_STEPS, ONLINE_STEPS, published_of
from sb3_qam.results.scores import Task
from sb3_qam.results.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's, without black and yellow: told apart by everybody, also on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "--", "-.", ":")
GRAY = "#555555"
N_COLUMNS = 3
N_THRESHOLDS = 201
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 110,
}

Looks = Mapping[str, dict[str, Any]]


def make_looks(methods: list[str]) -> Looks:
    """
    :param methods: Names of methods
    :return: Color and line of each, the same in all charts
    """
    looks = [{"linestyle": line, "color": color} for line, color in product(LINES, COLORS)]
    return {method: looks[number % len(looks)] for number, method in enumerate(methods)}


def draw_learning_curves(tasks: list[Task], looks: Looks, with_published: bool) -> "Figure":
    """
    Mean over seeds with its 95 % interval, one panel per task. Runs that are not finished are thin lines of their own.

    :param tasks: Tasks
    :param looks: Of the methods
    :param with_published: Whether to draw what has been published on the tasks
    :return: The chart
    """
    n_columns = min(N_COLUMNS, len(tasks))
    n_rows = -(-len(tasks) // n_columns)
    with _figure(n_rows, n_columns, panel=(4.6, 3.3)) as (figure, grid):
        for panel, task in zip(grid.flat, tasks, strict=False):
            axis = StepAxis.of(task.runs)
            _draw_phases(panel, axis)
            for method, look in looks.items():
                _draw_method(panel, axis, task, method, look)
            if with_published:
                _draw_published(panel, axis, task, looks)
            panel.set_ylabel(task.metric.label)
            panel.set_title(textwrap.fill(task.name.replace("$", r"\$"), 44), fontsize=10.5, pad=18)
            if task.metric.bounds is not None:
                panel.set_ylim(*_with_zero_and_one(task.metric.bounds))
        for panel in grid.flat[len(tasks) :]:
            panel.remove()
        _add_legend(figure, list(grid.flat[: len(tasks)]))
    return figure


def draw_aggregate(tasks: list[Task], methods: list[str], looks: Looks) -> "Figure":
    """
    Interquartile mean, median and mean over all tasks with stratified bootstrap intervals, after each phase.

    :param tasks: Tasks
    :param methods: Those with finished runs on all of them
    :param looks: Of the methods
    :return: The chart
    """
    names = {"interquartile mean": statistics.iqm, "median": statistics.median, "mean": statistics.mean}
    height = 0.7 * len(methods) + 0.3
    drawn: set[bool] = set()
    with _figure(1, len(names), panel=(3.6, height), sharey=True) as (figure, grid):
        for panel, (name, statistic) in zip(grid.flat, names.items(), strict=True):
            for row, method in enumerate(methods):
                color = looks[method]["color"]
                last = [task.scores(task.last(method)) for task in tasks]
                offline = [task.scores(task.after_offline(method)) for task in tasks]
                has_offline = all(each.size for each in offline)
                has_online = any(run.total_steps > run.offline_steps for t in tasks for run in t.finished(method))
                apart = 0.14 * (has_offline and has_online)
                phases = [(row - apart, last, True)] * has_online + [(row + apart, offline, False)] * has_offline
                for place, scores, is_filled in phases:
                    _draw_interval(panel, place, statistics.estimate(scores, statistic), color, is_filled)
                    drawn.add(is_filled)
            panel.set_title(name, fontsize=10.5)
            panel.set(xlabel=score_label(tasks), xlim=_with_zero_and_one(panel.get_xlim()))
            panel.grid(axis="y", visible=False)
        first = grid.flat[0]
        first.set_yticks(range(len(methods)), [textwrap.fill(method, 28) for method in methods])
        first.set_ylim(len(methods) - 0.5, -0.5)
        for label, is_filled in (("after the offline phase", False), ("at the end", True)):
            if is_filled in drawn:
                face = GRAY if is_filled else "white"
                first.plot([], [], "o", color=GRAY, markerfacecolor=face, label=label)
        _add_legend(figure, [first])
    return figure


def draw_sample_efficiency(tasks: list[Task], methods: list[str], looks: Looks) -> "Figure":
    """
    Interquartile mean over all tasks against steps, with stratified bootstrap intervals.

    :param tasks: Tasks
    :param methods: Those with finished runs on all of them
    :param looks: Of the methods
    :return: The chart
    """
    axis = common_axis(run for task in tasks for method in methods for run in task.finished(method))
    with _figure(1, 1, panel=(6.2, 3.6)) as (figure, grid):
        panel = grid.flat[0]
        _draw_phases(panel, axis)
        for method in methods:
            runs = [(task, run) for task in tasks for run in task.finished(method)]
            positions, scores = statistics.common_curve(
                [axis.place(run) for _, run in runs], [task.scores(task.values(run)) for task, run in runs]
            )
            if positions.size == 0:
                continue
            ends = np.cumsum([len(task.finished(method)) for task in tasks])
            samples = np.split(scores, ends[:-1], axis=-1)
            _draw_curve(panel, positions, statistics.estimate(samples, statistics.iqm), method, looks[method])
        panel.set(ylabel=f"interquartile mean of\n{score_label(tasks)}", ylim=_with_zero_and_one(panel.get_ylim()))
        _add_legend(figure, [panel])
    return figure


def draw_performance_profile(tasks: list[Task], methods: list[str], looks: Looks) -> "Figure":
    """
    Share of the runs with a score above each threshold, at the end, with stratified bootstrap intervals.

    :param tasks: Tasks
    :param methods: Those with finished runs on all of them
    :param looks: Of the methods
    :return: The chart
    """
    scores = {method: [task.scores(task.last(method)) for task in tasks] for method in methods}
    seen = np.concatenate([each for of_tasks in scores.values() for each in of_tasks])
    thresholds = np.linspace(min(0.0, seen.min()), max(1.0, seen.max()), N_THRESHOLDS)
    with _figure(1, 1, panel=(6.2, 3.6)) as (figure, grid):
        panel = grid.flat[0]
        for method in methods:
            profile = statistics.performance_profile(scores[method], thresholds)
            _draw_curve(panel, thresholds, profile, method, looks[method])
        panel.set(xlabel=f"{score_label(tasks)} τ", ylabel="share of the runs above τ", ylim=_with_zero_and_one((0, 1)))
        _add_legend(figure, [panel])
    return figure


def score_label(tasks: list[Task]) -> str:
    """
    :param tasks: Tasks
    :return: What scores over all of them are called
    """
    return "success rate" if all(task.metric.name == "success" for task in tasks) else "normalized score"


@contextmanager
def _figure(
    n_rows: int, n_columns: int, panel: tuple[float, float], **kwargs: Any
) -> "Iterator[tuple[Figure, np.ndarray]]":
    """
    :param panel: Width and height of each panel, in inches
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(panel[0] * n_columns, panel[1] * n_rows + 0.9), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
        yield figure, figure.subplots(n_rows, n_columns, squeeze=False, **kwargs)


def _draw_phases(panel: "Axes", axis: PhaseAxis) -> None:
    has_offline, has_online = axis.offline_end > 0, axis.end > axis.offline_end
    panel.set_xlim(-0.01 * axis.end, 1.03 * axis.end)
    panel.set_xlabel(axis.label)
    panel.xaxis.set_major_formatter(lambda position, _: axis.tick(position))
    panel.locator_params(axis="x", nbins=7)
    names = []
    if has_offline:
        panel.axvspan(-axis.end, axis.offline_end, color="0.955", zorder=0)
        names.append(("offline", axis.offline_end / 2))
    if has_offline and has_online:
        panel.axvline(axis.offline_end, color=GRAY, linewidth=1)
    if has_online:
        names.append(("online", (axis.offline_end + axis.end) / 2))
    for name, position in names:
        panel.annotate(
            name,
            (position, 1.0),
            (0, 2),
            xycoords=panel.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=GRAY,
            fontsize=9,
        )


def _draw_method(panel: "Axes", axis: PhaseAxis, task: Task, method: str, look: dict[str, Any]) -> None:
    finished = task.finished(method)
    if finished:
        positions, values = statistics.common_curve(
            [axis.place(run) for run in finished], [task.values(run) for run in finished]
        )
        if positions.size > 0:
            _draw_curve(panel, positions, statistics.estimate([values], statistics.mean), method, look)
    for run in task.runs:
        if run.method == method and not run.is_finished:
            panel.plot(
                axis.place(run),
                task.values(run),
                color=look["color"],
                linewidth=0.9,
                marker=".",
                linestyle=(0, (1, 1.5)),
                label=f"{method}: not finished",
            )


def _draw_curve(panel: "Axes", positions: np.ndarray, curve: Estimate, method: str, look: dict[str, Any]) -> None:
    # A single evaluation would not be seen as a line
    marker = "o" if len(positions) <= 20 else None
    panel.plot(positions, curve.value, label=method, linewidth=1.8, marker=marker, markersize=3.5, **look)
    if curve.low is not None and curve.high is not None:
        panel.fill_between(positions, curve.low, curve.high, color=look["color"], alpha=0.2, linewidth=0)


def _draw_published(panel: "Axes", axis: StepAxis, task: Task, looks: Looks) -> None:
    """
    Where each phase ends, whatever its length here.
    """
    colors = {METHODS.get(run.algorithm): looks[run.method]["color"] for run in reversed(task.runs)}
    scores = [score for score in published_of(task) if score.method in colors]
    for number, score in enumerate(scores):
        kwargs: dict[str, Any] = {
            "fmt": "D",
            "markersize": 6,
            "markerfacecolor": "white",
            "color": colors[score.method],
        }
        kwargs["label"] = f"{score.method}, published ({OFFLINE_STEPS / 1e6:g}M + {ONLINE_STEPS / 1e6:g}M steps)"
        # Beside each other where they are equal
        shift = -0.02 * axis.end * number
        if axis.offline_end > 0:
            panel.errorbar([axis.offline_end + shift], [score.offline], [score.standard_error], **kwargs)
        if axis.end > axis.offline_end:
            panel.errorbar([axis.end + shift], [score.online], **kwargs)


def _draw_interval(panel: "Axes", row: float, found: Estimate, color: str, is_filled: bool) -> None:
    if found.low is not None and found.high is not None:
        panel.plot([found.low, found.high], [row, row], color=color, linewidth=11, alpha=0.3, solid_capstyle="butt")
    face = color if is_filled else "white"
    panel.plot([found.value], [row], "o", color=color, markerfacecolor=face, markersize=5)


def _with_zero_and_one(limits: tuple[float, float]) -> tuple[float, float]:
    """
    :param limits: Of an axis with scores
    :return: The same, or wider
    """
    return min(limits[0], -0.03), max(limits[1], 1.05)


def _add_legend(figure: "Figure", panels: list["Axes"]) -> None:
    """
    One for all panels, below them.
    """
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        width = figure.get_size_inches()[0]
        labels = [textwrap.fill(label, 60) for label in handles]
        # So many as fit beside each other, a letter being about 0.09 inches wide
        longest = max(len(line) for label in labels for line in label.splitlines())
        n_columns = int(max(1, min(len(labels), width // (0.085 * longest + 0.6))))
        figure.legend(handles.values(), labels, loc="outside lower center", ncols=n_columns, fontsize=9)
