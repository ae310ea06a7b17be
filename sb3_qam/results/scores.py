"""What is compared: success rates or returns, task by task and over all of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sb3_qam.results.runs import LeftOut, TrainingRun


@dataclass(frozen=True)
class Metric:
    """
    :param name: As on the command line
    :param label: As on an axis
    :param of: Its values of a run, shape (n_evaluations,), or ``None`` if they were not recorded
    :param bounds: The values that are scores of 0 and 1, if they are the same for all tasks
    :param number_format: How values are written
    """

    name: str
    label: str
    of: Callable[[TrainingRun], np.ndarray | None]
    bounds: tuple[float, float] | None
    number_format: str

    def text(self, value: float | np.ndarray) -> str:
        """
        :param value: One value
        :return: As it is written
        """
        return format(float(value), self.number_format)


METRICS = {
    "success": Metric("success", "success rate", lambda run: run.successes, (0.0, 1.0), ".2f"),
    "reward": Metric("reward", "return", lambda run: run.rewards, None, ".4g"),
}


@dataclass(frozen=True)
class Task:
    """
    The runs on one task.

    :param name: Id of the environment
    :param metric: What is compared
    :param bounds: Its values that are scores of 0 and 1
    :param runs: All runs, those that are not finished among them
    """

    name: str
    metric: Metric
    bounds: tuple[float, float]
    runs: tuple[TrainingRun, ...]

    def values(self, run: TrainingRun) -> np.ndarray:
        """
        :param run: One of the task's
        :return: The metric at each evaluation, shape (n_evaluations,)
        """
        values = self.metric.of(run)
        assert values is not None  # or the run would not be here
        return values

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
        numbers = [np.searchsorted(run.steps, run.offline_steps, side="right") - 1 for run in self.finished(method)]
        if any(number < 0 for number in numbers):
            return np.array([])
        return np.array([self.values(run)[number] for run, number in zip(self.finished(method), numbers, strict=True)])


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
    for name in sorted(by_task):
        has_success = all(run.successes is not None for run in by_task[name])
        chosen = METRICS[metric or ("success" if has_success else "reward")]
        kept = [run for run in by_task[name] if chosen.of(run) is not None]
        left_out += [
            LeftOut(run.folder, f"{chosen.label} was not recorded: the environment does not say is_success")
            for run in by_task[name]
            if chosen.of(run) is None
        ]
        if kept:
            seen = np.concatenate([chosen.of(run) for run in kept])
            bounds = chosen.bounds or reward_ranges.get(name, (float(seen.min()), float(seen.max())))
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
