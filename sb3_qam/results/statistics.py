"""
Point estimates and stratified bootstrap intervals over few runs, after Agarwal et al. 2021, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", arXiv 2108.13264.

A statistic takes one array per task, with the runs of the task along ``axis``; their numbers may differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

CONFIDENCE = 0.95
N_RESAMPLES = 2000
# Of resampled values that are in memory at once
BATCH_SIZE = 4_000_000

Statistic: TypeAlias = Callable[..., Any]


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


@dataclass(frozen=True)
class Estimate:
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
    :return: Its value, and the percentile interval of a bootstrap that draws the runs of each task anew. The same
        scores give the same interval
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
    Bring curves with different abscissae together. Between two evaluations a curve is a straight line; beyond its first
    and last one it is not known.

    :param positions: Where each curve was evaluated, increasing, shape (n_i,)
    :param values: What came out, shape (n_i,)
    :param n_points: How many points to give at most
    :return: The abscissae that all curves have, shape (n,), and the curves there, shape (n, n_curves). n is 0 if there
        is no such place
    """
    start, end = max(each[0] for each in positions), min(each[-1] for each in positions)
    grid = np.unique(np.concatenate(positions))
    grid = grid[(grid >= start) & (grid <= end)]
    if len(grid) > n_points:
        grid = grid[np.linspace(0, len(grid) - 1, n_points).round().astype(int)]
    curves = [np.interp(grid, each, value) for each, value in zip(positions, values, strict=True)]
    return grid, np.stack(curves, axis=-1)
