"""
The charts, which are drawn and saved with STYLE as Matplotlib's settings. Those over all tasks take the methods
that have finished runs on each of them.
"""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_qam.results.runs import TrainingRun
from sb3_qam.results.scores import (
    PUBLISHED_STEPS,
    Estimate,
    Task,
    common_curve,
    estimate,
    iqm,
    mean,
    median,
    performance_profile,
    title_of,
)

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
    # Names are names, and not formulas
    "text.parse_math": False,
}

Looks = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class PhaseAxis:
    """
    An x axis with an offline and an online phase. All runs go online at the same place: those with a shorter offline
    phase, or none, begin further right.

    :param offline_end: Where the offline phase ends, 0 if no run has one
    :param end: Where the online phase ends
    :param has_shares: Whether it has shares of each phase, for runs whose phases have different lengths, and not steps
    """

    offline_end: float
    end: float
    has_shares: bool = False

    @property
    def label(self) -> str:
        """What is on it."""
        if self.has_shares:
            return "share of the phase" if 0 < self.offline_end < self.end else "share of the training"
        if self.offline_end == 0:
            return "environment steps"
        return "gradient steps" if self.end == self.offline_end else "gradient steps, then environment steps"

    def place(self, run: TrainingRun) -> np.ndarray:
        """Where the evaluations of a run stand, shape (n_evaluations,)."""
        if not self.has_shares:
            return run.steps + (self.offline_end - run.offline_steps)
        online = (run.steps - run.offline_steps) / max(run.total_steps - run.offline_steps, 1)
        offline = run.steps / max(run.offline_steps, 1) - 1
        return self.offline_end + np.where(run.steps <= run.offline_steps, offline, online)

    def tick(self, position: float) -> str:
        """What is written at a place on the axis."""
        if self.has_shares:
            return f"{position - self.offline_end * (position > self.offline_end):.0%}"
        size, letter = next((each for each in ((1e6, "M"), (1e3, "k")) if abs(position) >= each[0]), (1, ""))
        return f"{position / size:g}{letter}"


def step_axis(runs: Iterable[TrainingRun]) -> PhaseAxis:
    """An axis of steps as in the logs, for one run or more."""
    phases = [(run.offline_steps, run.total_steps - run.offline_steps) for run in runs]
    offline_end = max(offline for offline, _ in phases)
    return PhaseAxis(offline_end, offline_end + max(online for _, online in phases))


def common_axis(runs: Iterable[TrainingRun]) -> PhaseAxis:
    """An axis of steps, if the phases of all runs that have them have the same lengths, else of shares."""
    runs = list(runs)
    offline = {run.offline_steps for run in runs if run.offline_steps > 0}
    online = {run.total_steps - run.offline_steps for run in runs}
    if len(offline) <= 1 and len(online) == 1:
        return step_axis(runs)
    return PhaseAxis(bool(offline), bool(offline) + any(online), has_shares=True)


def make_looks(methods: list[str]) -> Looks:
    """Color and line of each method, the same in all charts."""
    looks = [{"linestyle": line, "color": color} for line, color in product(LINES, COLORS)]
    return {method: looks[number % len(looks)] for number, method in enumerate(methods)}


def draw_learning_curves(tasks: list[Task], _: list[str], looks: Looks) -> "Figure":
    """Mean over seeds with its 95% interval, one panel per task. Each run that is not finished is a thin line."""
    n_columns = min(N_COLUMNS, len(tasks))
    figure, panels = _make_figure(-(-len(tasks) // n_columns), n_columns, (4.6, 3.3))
    for panel, task in zip(panels, tasks, strict=False):
        axis = step_axis(task.runs)
        _draw_phases(panel, axis)
        for method, look in looks.items():
            _draw_method(panel, axis, task, method, look)
        _draw_published(panel, axis, task, looks)
        panel.set_ylabel(task.metric.label)
        panel.set_title(textwrap.fill(task.name, 44), fontsize=10.5, pad=18)
        if task.metric.bounds is not None:
            panel.set_ylim(*_with_zero_and_one(task.metric.bounds))
    for panel in panels[len(tasks) :]:
        panel.remove()
    _add_legend(figure, panels[: len(tasks)])
    return figure


def draw_aggregate(tasks: list[Task], methods: list[str], looks: Looks) -> "Figure":
    """Interquartile mean, median and mean over all tasks with stratified bootstrap intervals, after each phase."""
    figure, panels = _make_figure(1, 3, (3.6, 0.7 * len(methods) + 0.3), sharey=True)
    is_online = any(run.total_steps > run.offline_steps for task in tasks for run in task.runs)
    drawn = {}
    for panel, (name, statistic) in zip(
        panels, {"interquartile mean": iqm, "median": median, "mean": mean}.items(), strict=True
    ):
        for row, method in enumerate(methods):
            offline = [task.scores(task.after_offline(method)) for task in tasks]
            last = [task.scores(task.last(method)) for task in tasks]
            has_offline = all(each.size for each in offline)
            apart = 0.14 * (has_offline and is_online)
            if is_online or not has_offline:
                drawn["at the end"] = GRAY
                _draw_interval(panel, row - apart, estimate(last, statistic), looks[method]["color"], None)
            if has_offline:
                drawn["after the offline phase"] = "white"
                _draw_interval(panel, row + apart, estimate(offline, statistic), looks[method]["color"], "white")
        panel.set_title(name, fontsize=10.5)
        panel.set(xlabel=score_label(tasks), xlim=_with_zero_and_one(panel.get_xlim()))
        panel.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(methods)), [textwrap.fill(method, 28) for method in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    for label, face in sorted(drawn.items()):
        panels[0].plot([], [], "o", color=GRAY, markerfacecolor=face, label=label)
    _add_legend(figure, panels[:1])
    return figure


def draw_sample_efficiency(tasks: list[Task], methods: list[str], looks: Looks) -> "Figure":
    """Interquartile mean over all tasks against steps, with stratified bootstrap intervals."""
    axis = common_axis(run for task in tasks for method in methods for run in task.finished(method))
    figure, (panel,) = _make_figure(1, 1, (6.2, 3.6))
    _draw_phases(panel, axis)
    for method in methods:
        runs = [(task, run) for task in tasks for run in task.finished(method)]
        positions, scores = common_curve(
            [axis.place(run) for _, run in runs], [task.scores(task.values(run)) for task, run in runs]
        )
        if positions.size > 0:
            ends = np.cumsum([len(task.finished(method)) for task in tasks])
            samples = np.split(scores, ends[:-1], axis=-1)
            _draw_curve(panel, positions, estimate(samples, iqm), method, looks[method])
    panel.set(ylabel=f"interquartile mean of\n{score_label(tasks)}", ylim=_with_zero_and_one(panel.get_ylim()))
    _add_legend(figure, [panel])
    return figure


def draw_performance_profile(tasks: list[Task], methods: list[str], looks: Looks) -> "Figure":
    """Share of the runs with a score above each threshold, at the end, with stratified bootstrap intervals."""
    scores = {method: [task.scores(task.last(method)) for task in tasks] for method in methods}
    seen = np.concatenate([each for of_tasks in scores.values() for each in of_tasks])
    thresholds = np.linspace(min(0.0, seen.min()), max(1.0, seen.max()), N_THRESHOLDS)
    figure, (panel,) = _make_figure(1, 1, (6.2, 3.6))
    for method in methods:
        _draw_curve(panel, thresholds, performance_profile(scores[method], thresholds), method, looks[method])
    panel.set(xlabel=f"{score_label(tasks)} τ", ylabel="share of the runs above τ", ylim=_with_zero_and_one((0, 1)))
    _add_legend(figure, [panel])
    return figure


def score_label(tasks: list[Task]) -> str:
    """What scores over all tasks are called."""
    return "success rate" if all(task.metric_name == "success" for task in tasks) else "normalized score"


def _make_figure(n_rows: int, n_columns: int, panel: tuple[float, float], **kwargs: Any) -> "tuple[Figure, list[Axes]]":
    """The size of a panel is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panel[0] * n_columns, panel[1] * n_rows + 0.9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return figure, list(figure.subplots(n_rows, n_columns, squeeze=False, **kwargs).flat)


def _draw_phases(panel: "Axes", axis: PhaseAxis) -> None:
    has_offline, has_online = axis.offline_end > 0, axis.end > axis.offline_end
    panel.set_xlim(-0.01 * axis.end, 1.03 * axis.end)
    panel.set_xlabel(axis.label)
    panel.xaxis.set_major_formatter(lambda position, _: axis.tick(position))
    panel.locator_params(axis="x", nbins=7)
    if has_offline:
        panel.axvspan(-axis.end, axis.offline_end, color="0.955", zorder=0)
    if has_offline and has_online:
        panel.axvline(axis.offline_end, color=GRAY, linewidth=1)
    for is_there, name, center in (
        (has_offline, "offline", axis.offline_end / 2),
        (has_online, "online", (axis.offline_end + axis.end) / 2),
    ):
        if is_there:
            place: dict[str, Any] = {"xycoords": panel.get_xaxis_transform(), "textcoords": "offset points"}
            panel.annotate(name, (center, 1.0), (0, 2), ha="center", va="bottom", color=GRAY, fontsize=9, **place)


def _draw_method(panel: "Axes", axis: PhaseAxis, task: Task, method: str, look: dict[str, Any]) -> None:
    finished = task.finished(method)
    if finished:
        positions, values = common_curve([axis.place(run) for run in finished], [task.values(run) for run in finished])
        if positions.size > 0:
            _draw_curve(panel, positions, estimate([values], mean), method, look)
    thin: dict[str, Any] = {"linewidth": 0.9, "marker": ".", "linestyle": (0, (1, 1.5))}
    for run in task.runs:
        if run.method == method and not run.is_finished:
            label = f"{method}: not finished"
            panel.plot(axis.place(run), task.values(run), color=look["color"], label=label, **thin)


def _draw_curve(panel: "Axes", positions: np.ndarray, curve: Estimate, method: str, look: dict[str, Any]) -> None:
    # A single evaluation would not be seen as a line
    marker = "o" if len(positions) <= 20 else None
    panel.plot(positions, curve.value, label=method, linewidth=1.8, marker=marker, markersize=3.5, **look)
    if curve.low is not None and curve.high is not None:
        panel.fill_between(positions, curve.low, curve.high, color=look["color"], alpha=0.2, linewidth=0)


def _draw_published(panel: "Axes", axis: PhaseAxis, task: Task, looks: Looks) -> None:
    """Where each phase ends, whatever its length here."""
    colors = {title_of(run.algorithm): looks[run.method]["color"] for run in reversed(task.runs)}
    diamond: dict[str, Any] = {"fmt": "D", "markersize": 6, "markerfacecolor": "white"}
    for number, score in enumerate(score for score in task.published if score.method in colors):
        label = f"{score.method}, published ({PUBLISHED_STEPS})"
        kwargs = {**diamond, "color": colors[score.method], "label": label}
        # Beside each other where they are equal
        shift = -0.02 * axis.end * number
        if axis.offline_end > 0:
            panel.errorbar([axis.offline_end + shift], [score.offline], [score.standard_error], **kwargs)
        if axis.end > axis.offline_end:
            panel.errorbar([axis.end + shift], [score.online], **kwargs)


def _draw_interval(panel: "Axes", row: float, found: Estimate, color: str, face: str | None) -> None:
    if found.low is not None and found.high is not None:
        panel.plot([found.low, found.high], [row, row], color=color, linewidth=11, alpha=0.3, solid_capstyle="butt")
    panel.plot([found.value], [row], "o", color=color, markerfacecolor=face or color, markersize=5)


def _with_zero_and_one(limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of an axis with scores, wide enough for both."""
    return min(limits[0], -0.03), max(limits[1], 1.05)


def _add_legend(figure: "Figure", panels: list["Axes"]) -> None:
    """One for all panels, below them."""
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        labels = [textwrap.fill(label, 60) for label in handles]
        # So many as fit beside each other, a letter being about 0.09 inches wide
        longest = max(len(line) for label in labels for line in label.splitlines())
        n_columns = int(max(1, min(len(labels), figure.get_size_inches()[0] // (0.085 * longest + 0.6))))
        figure.legend(handles.values(), labels, loc="outside lower center", ncols=n_columns, fontsize=9)
