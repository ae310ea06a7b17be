"""
What is compared: success rates or returns, by task and over all of them, with intervals.

Point estimates and stratified bootstrap intervals over few runs are those of Agarwal et al. 2021, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", arXiv 2108.13264. A statistic takes one array of scores per task,
shape (..., n_runs), with the runs along ``axis``, and gives shape (...). Tasks may have different numbers of runs.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_qam.results.runs import LeftOut, TrainingRun
from sb3_qam.variants import VARIANTS

CONFIDENCE = 0.95
N_RESAMPLES = 2000
# Of resampled values that are in memory at once
BATCH_SIZE = 4_000_000
PUBLISHED_FILE = Path(__file__).with_name("published.csv")
PUBLISHED_SOURCE = "arXiv 2601.14234: mean over 12 seeds with 50 episodes each"
PUBLISHED_STEPS = "1M + 0.5M steps"


class Metric(NamedTuple):
    """
    What runs are compared by: its name on an axis, its values that are scores of 0 and 1 if these are the same for all
    tasks, and how values are written.
    """

    label: str
    bounds: tuple[float, float] | None
    number_format: str


METRICS = {"success": Metric("success rate", (0.0, 1.0), ".2f"), "reward": Metric("return", None, ".4g")}


class PublishedScore(NamedTuple):
    """
    Success rates in [0, 1] of a method: after a million offline updates, its standard error over the seeds, and after
    half a million environment steps more.
    """

    method: str
    offline: float
    standard_error: float
    online: float


@cache
def published_scores() -> dict[str, list[PublishedScore]]:
    """What has been published, by tasks, which have the names of their data."""
    by_task = defaultdict(list)
    with PUBLISHED_FILE.open() as file:
        for task, method, *percents in csv.reader(line for line in file if not line.startswith(("#", "task,"))):
            by_task[task].append(PublishedScore(method, *(float(each) / 100 for each in percents)))
    return dict(by_task)


def title_of(algorithm: str) -> str | None:
    """Name in the papers of one of our algorithms."""
    return VARIANTS[algorithm].title if algorithm in VARIANTS else None


class Estimate(NamedTuple):
    """
    A statistic, shape (...), and the ends of its 95% interval, ``None`` where a task has a single run, which says
    nothing about others.
    """

    value: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True)
class Task:
    """
    The runs on one task.

    :param name: Id of the environment
    :param metric_name: What is compared, one of METRICS
    :param bounds: Its values that are scores of 0 and 1
    :param runs: All runs, those that are not finished among them
    :param published: What has been published on the task and can be compared with what is shown
    """

    name: str
    metric_name: str
    bounds: tuple[float, float]
    runs: tuple[TrainingRun, ...]
    published: Sequence[PublishedScore] = ()

    @property
    def metric(self) -> Metric:
        """What is compared."""
        return METRICS[self.metric_name]

    def values(self, run: TrainingRun) -> np.ndarray:
        """The metric at each evaluation of a run, shape (n_evaluations,)."""
        return run.values[self.metric_name]

    def text(self, values: np.ndarray) -> str:
        """Mean of some runs' values and its interval in words, nothing if there are none."""
        if values.size == 0:
            return ""
        value, low, high = estimate([values], mean)
        interval = "" if low is None or high is None else f" [{self.number(low)}, {self.number(high)}]"
        return f"{self.number(value)}{interval}"

    def number(self, value: float | np.ndarray) -> str:
        """One value of the metric in words."""
        return format(float(value), self.metric.number_format)

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Values of the metric on the scale on which tasks are compared."""
        low, high = self.bounds
        return (values - low) / (high - low if high > low else 1.0)

    def finished(self, method: str) -> list[TrainingRun]:
        """The finished runs of a method, on which all statistics are."""
        return [run for run in self.runs if run.method == method and run.is_finished]

    def last(self, method: str) -> np.ndarray:
        """The metric at the last evaluation of each finished run of a method, shape (n_runs,)."""
        return np.array([self.values(run)[-1] for run in self.finished(method)])

    def after_offline(self, method: str) -> np.ndarray:
        """
        The metric at the last evaluation of the offline phase of each finished run of a method, shape (n_runs,); empty
        if one of them has none.
        """
        runs = self.finished(method)
        numbers = [np.searchsorted(run.steps, run.offline_steps, side="right") - 1 for run in runs]
        if min(numbers, default=-1) < 0:
            return np.array([])
        return np.array([self.values(run)[number] for run, number in zip(runs, numbers, strict=True)])


def make_tasks(
    runs: Iterable[TrainingRun], metric: str | None = None, with_published: bool = True
) -> tuple[list[Task], list[LeftOut]]:
    """
    :param runs: Runs with their methods
    :param metric: One of METRICS; by default success on tasks all of whose runs have recorded it, else the return,
        whose scores of 0 and 1 are the lowest and the highest one that any evaluation of the task shows
    :param with_published: Whether success rates are to be shown beside published ones
    :return: The tasks in the order of their names, and runs that have not recorded the metric
    """
    by_task = defaultdict(list)
    for run in runs:
        by_task[run.task].append(run)
    tasks, left_out = [], []
    for name, of_task in sorted(by_task.items()):
        has_success = all("success" in run.values for run in of_task)
        chosen = metric or ("success" if has_success else "reward")
        kept = [run for run in of_task if chosen in run.values]
        reason = f"{METRICS[chosen].label} was not recorded: the environment does not say is_success"
        left_out += [LeftOut(run.folder, reason) for run in of_task if chosen not in run.values]
        if kept:
            seen = np.concatenate([run.values[chosen] for run in kept])
            bounds = METRICS[chosen].bounds or (float(seen.min()), float(seen.max()))
            published = published_scores().get(name, []) if with_published and chosen == "success" else []
            tasks.append(Task(name, chosen, bounds, tuple(kept), published))
    return tasks, left_out


def methods_of(tasks: Iterable[Task]) -> list[str]:
    """All methods of some tasks, in the order of their names."""
    return sorted({run.method for task in tasks for run in task.runs})


def complete_methods(tasks: Iterable[Task]) -> list[str]:
    """The methods with finished runs on all of some tasks, which alone can be compared over all."""
    return [method for method in methods_of(tasks) if all(task.finished(method) for task in tasks)]


def iqm(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean: the mean of the middle half of all runs of all tasks."""
    from scipy.stats import trim_mean

    return trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis)


def mean(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over tasks of the mean over runs."""
    return np.mean([task.mean(axis=axis) for task in tasks], axis=0)


def median(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """Median over tasks of the mean over runs."""
    return np.median([task.mean(axis=axis) for task in tasks], axis=0)


def estimate(tasks: Sequence[np.ndarray], statistic: Callable[..., Any]) -> Estimate:
    """
    :param tasks: Scores, shape (..., n_runs) each. Leading dimensions, such as steps, are resampled together
    :param statistic: One of the above
    :return: Its value, and the percentile interval of a bootstrap that resamples the runs of each task. The same scores
        give the same interval
    """
    value = np.asarray(statistic(*tasks, axis=-1))
    if min(task.shape[-1] for task in tasks) < 2:
        return Estimate(value, None, None)
    from scipy.stats import bootstrap

    interval = bootstrap(
        tasks,
        statistic,
        n_resamples=N_RESAMPLES,
        batch=max(1, BATCH_SIZE // sum(task.size for task in tasks)),
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, interval.low, interval.high)


def performance_profile(tasks: Sequence[np.ndarray], thresholds: np.ndarray) -> Estimate:
    """Share of the runs, each task having the same weight, with a score above each threshold, shape (n_thresholds,)."""
    return estimate([(task > thresholds[:, None]).astype(np.float64) for task in tasks], mean)


def common_curve(
    positions: Sequence[np.ndarray], values: Sequence[np.ndarray], n_points: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """
    Interpolate curves linearly at common abscissae, which lie where all curves are known.

    :param positions: Where each curve was evaluated, increasing, shape (n_i,)
    :param values: What came out, shape (n_i,)
    :param n_points: How many points to give at most
    :return: The abscissae, shape (n,), and the curves there, shape (n, n_curves). n is 0 if there is no such place
    """
    start, end = max(each[0] for each in positions), min(each[-1] for each in positions)
    grid = np.unique(np.concatenate(positions))
    grid = grid[(grid >= start) & (grid <= end)]
    if len(grid) > n_points:
        grid = grid[np.linspace(0, len(grid) - 1, n_points).round().astype(int)]
    curves = [np.interp(grid, each, value) for each, value in zip(positions, values, strict=True)]
    return grid, np.stack(curves, axis=-1)
