"""
What is compared: success rates or returns, by task and over all of them, with intervals.

Point estimates and stratified bootstrap intervals over few runs are those of Agarwal et al. 2021, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", arXiv 2108.13264. A statistic takes one array per task, with the
runs of the task along ``axis``; their numbers may differ.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sb3_qam.results.runs import LeftOut, TrainingRun

CONFIDENCE = 0.95
N_RESAMPLES = 2000
# Of resampled values that are in memory at once
BATCH_SIZE = 4_000_000

Statistic: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Metric:
    """
    :param label: As on an axis
    :param bounds: The values that are scores of 0 and 1, if they are the same for all tasks
    :param number_format: How values are written
    """

    label: str
    bounds: tuple[float, float] | None
    number_format: str


METRICS = {"success": Metric("success rate", (0.0, 1.0), ".2f"), "reward": Metric("return", None, ".4g")}


@dataclass(frozen=True)
class Task:
    """
    The runs on one task.

    :param name: Id of the environment
    :param metric_name: What is compared, one of METRICS
    :param bounds: Its values that are scores of 0 and 1
    :param runs: All runs, those that are not finished among them
    """

    name: str
    metric_name: str
    bounds: tuple[float, float]
    runs: tuple[TrainingRun, ...]

    @property
    def metric(self) -> Metric:
        """What is compared."""
        return METRICS[self.metric_name]

    def values(self, run: TrainingRun) -> np.ndarray:
        """
        :param run: One of the task's
        :return: The metric at each evaluation, shape (n_evaluations,)
        """
        return run.values[self.metric_name]

    def text(self, values: np.ndarray) -> str:
        """
        :param values: The metric of each run, shape (n_runs,)
        :return: Its mean and interval in words, nothing if there are no runs
        """
        if values.size == 0:
            return ""
        found = estimate([values], mean)
        numbers = [format(float(each), self.metric.number_format) for each in found if each is not None]
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if len(numbers) == 3 else numbers[0]

    def scores(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: Of the metric
        :return: The same on the scale on which tasks are compared
        """
        low, high = self.bounds
        return (values - low) / (high - low if high > low else 1.0)

    def finished(self, method: str) -> list[TrainingRun]:
        """
        :param method: Name of a method
        :return: Its finished runs, on which all statistics are
        """
        return [run for run in self.runs if run.method == method and run.is_finished]

    def last(self, method: str) -> np.ndarray:
        """
        :param method: Name of a method
        :return: The metric at the last evaluation of each finished run, shape (n_runs,)
        """
        return np.array([self.values(run)[-1] for run in self.finished(method)])

    def after_offline(self, method: str) -> np.ndarray:
        """
        :param method: Name of a method
        :return: The metric at the last evaluation of the offline phase of each finished run, shape (n_runs,); empty if
            one of them has none
        """
        runs = self.finished(method)
        numbers = [np.searchsorted(run.steps, run.offline_steps, side="right") - 1 for run in runs]
        if min(numbers, default=-1) < 0:
            return np.array([])
        return np.array([self.values(run)[number] for run, number in zip(runs, numbers, strict=True)])


def make_tasks(
    runs: Iterable[TrainingRun], metric: str | None, reward_ranges: Mapping[str, tuple[float, float]]
) -> tuple[list[Task], list[LeftOut]]:
    """
    :param runs: Runs with their methods
    :param metric: One of METRICS; by default success on tasks all of whose runs have recorded it, else the return
    :param reward_ranges: Returns that are scores of 0 and 1, by tasks. Those of other tasks are the lowest and the
        highest one that any evaluation shows
    :return: The tasks in the order of their names, and runs that have not recorded the metric
    """
    by_task: dict[str, list[TrainingRun]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    tasks, left_out = [], []
    for name, of_task in sorted(by_task.items()):
        has_success = all("success" in run.values for run in of_task)
        chosen = metric or ("success" if has_success else "reward")
        kept = [run for run in of_task if chosen in run.values]
        reason = f"{METRICS[chosen].label} was not recorded: the environment does not say is_success"
        left_out += [LeftOut(run.folder, reason) for run in of_task if chosen not in run.values]
        if kept:
            seen = np.concatenate([run.values[chosen] for run in kept])
            bounds = METRICS[chosen].bounds or reward_ranges.get(name, (float(seen.min()), float(seen.max())))
            tasks.append(Task(name, chosen, bounds, tuple(kept)))
    return tasks, left_out


def methods_of(tasks: Iterable[Task]) -> list[str]:
    """
    :param tasks: Tasks
    :return: All methods, in the order of their names
    """
    return sorted({run.method for task in tasks for run in task.runs})


def complete_methods(tasks: Iterable[Task]) -> list[str]:
    """
    :param tasks: Tasks
    :return: The methods with finished runs on all of them, which alone can be compared over all
    """
    return [method for method in methods_of(tasks) if all(task.finished(method) for task in tasks)]


def iqm(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    Interquartile mean: the mean of the middle half of all runs of all tasks.

    :param tasks: Scores, shape (..., n_runs) each
    :param axis: That of the runs
    :return: Shape (...)
    """
    from scipy.stats import trim_mean

    return trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis)


def mean(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    Mean over tasks of the mean over runs.

    :param tasks: Scores, shape (..., n_runs) each
    :param axis: That of the runs
    :return: Shape (...)
    """
    return np.mean([task.mean(axis=axis) for task in tasks], axis=0)


def median(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    Median over tasks of the mean over runs.

    :param tasks: Scores, shape (..., n_runs) each
    :param axis: That of the runs
    :return: Shape (...)
    """
    return np.median([task.mean(axis=axis) for task in tasks], axis=0)


class Estimate(NamedTuple):
    """
    :param value: The statistic, shape (...)
    :param low: Lower end of its 95 % interval, or ``None`` if a task has a single run, which says nothing about others
    :param high: Upper end
    """

    value: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def estimate(tasks: Sequence[np.ndarray], statistic: Statistic) -> Estimate:
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
    """
    :param tasks: Scores, shape (n_runs,) each
    :param thresholds: Shape (n,)
    :return: Share of the runs, each task having the same weight, with a score above each threshold, shape (n,)
    """
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
