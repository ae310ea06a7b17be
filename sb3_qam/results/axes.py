"""Where an evaluation stands on the x axis: the phases of all runs have to lie above each other."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sb3_qam.results.runs import TrainingRun


@dataclass(frozen=True)
class PhaseAxis:
    """
    An x axis with an offline and an online phase.

    :param offline_end: Where the offline phase ends, 0 if no run has one
    :param end: Where the online phase does
    """

    offline_end: float
    end: float

    @property
    def label(self) -> str:
        """What is on it."""
        raise NotImplementedError

    def place(self, run: TrainingRun) -> np.ndarray:
        """
        :param run: A run
        :return: Where its evaluations stand, shape (n_evaluations,)
        """
        raise NotImplementedError

    def tick(self, position: float) -> str:
        """
        :param position: A place on the axis
        :return: What is written there
        """
        raise NotImplementedError


class StepAxis(PhaseAxis):
    """
    Steps as in the logs. A run with a shorter offline phase, or none, is moved to the right, so that all runs go online
    at the same place.
    """

    @classmethod
    def of(cls, runs: Iterable[TrainingRun]) -> "StepAxis":
        """
        :param runs: What is drawn, one run or more
        :return: The axis for it
        """
        phases = [(run.offline_steps, run.total_steps - run.offline_steps) for run in runs]
        offline_end = max(offline for offline, _ in phases)
        return cls(offline_end, offline_end + max(online for _, online in phases))

    @property
    def label(self) -> str:
        if self.offline_end == 0:
            return "environment steps"
        return "gradient steps" if self.end == self.offline_end else "gradient steps, then environment steps"

    def place(self, run: TrainingRun) -> np.ndarray:
        return run.steps + (self.offline_end - run.offline_steps)

    def tick(self, position: float) -> str:
        for size, letter in ((1e6, "M"), (1e3, "k")):
            if abs(position) >= size:
                return f"{position / size:g}{letter}"
        return f"{position:g}"


class ShareAxis(PhaseAxis):
    """
    Shares of each phase, for runs whose phases have different lengths.
    """

    @classmethod
    def of(cls, runs: Iterable[TrainingRun]) -> "ShareAxis":
        """
        :param runs: What is drawn, one run or more
        :return: The axis for it
        """
        phases = [(run.offline_steps > 0, run.total_steps > run.offline_steps) for run in runs]
        offline_end = float(any(offline for offline, _ in phases))
        return cls(offline_end, offline_end + float(any(online for _, online in phases)))

    @property
    def label(self) -> str:
        return "share of the phase" if 0 < self.offline_end < self.end else "share of the training"

    def place(self, run: TrainingRun) -> np.ndarray:
        online = (run.steps - run.offline_steps) / max(run.total_steps - run.offline_steps, 1)
        offline = run.steps / max(run.offline_steps, 1) - 1
        return self.offline_end + np.where(run.steps <= run.offline_steps, offline, online)

    def tick(self, position: float) -> str:
        return f"{position - self.offline_end * (position > self.offline_end):.0%}"


def common_axis(runs: Iterable[TrainingRun]) -> PhaseAxis:
    """
    :param runs: Runs of several tasks
    :return: Steps, if the phases of all that have them have the same lengths, else shares
    """
    runs = list(runs)
    offline_lengths = {run.offline_steps for run in runs if run.offline_steps > 0}
    same_lengths = len(offline_lengths) <= 1 and len({run.total_steps - run.offline_steps for run in runs}) == 1
    return StepAxis.of(runs) if same_lengths else ShareAxis.of(runs)
