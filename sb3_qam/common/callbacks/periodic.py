"""Callbacks that look at the model every so often, and leave training as it would have been without them."""

from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.callbacks import BaseCallback

from sb3_qam.common.offline_to_online import OfflineToOnlineAlgorithm
from sb3_qam.utils.checks import check_positive_int
from sb3_qam.utils.random_state import forked_rng


class PeriodicCallback(BaseCallback):
    """
    Calls :meth:`_report` every so many timesteps, and writes the log then, as SB3's ``EvalCallback`` does: what was
    measured stands beside the timestep it was measured at.

    :param frequency: Timesteps between two reports: gradient steps offline, environment steps online
    :param seed: Seed of the random numbers of the reports, which are not those of training
    :param verbose: Verbosity level: 0 for no output, 1 for info messages
    :raises ValueError: if ``seed`` is a negative integer
    """

    model: OfflineToOnlineAlgorithm

    def __init__(self, frequency: int, seed: int = 0, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_positive_int("seed", seed, minimum=0)
        self.frequency = frequency
        self.seed = seed
        self._last_report: int | None = None
        self._used_for: OfflineToOnlineAlgorithm | None = None

    def _init_callback(self) -> None:
        if not isinstance(self.model, OfflineToOnlineAlgorithm):
            raise TypeError(
                f"{type(self).__name__} looks into QAM, and the model is {type(self.model).__name__}: use it with QAM."
            )
        # SB3 calls this before each phase
        if self._used_for is not self.model:
            self._on_new_model()
            self._used_for = self.model

    def _on_new_model(self) -> None:
        """
        Get ready for a model that the callback has not been used with.
        """

    def _on_training_start(self) -> None:
        # The count may go on, or begin anew
        if self._last_report is None or self._last_report > self.model.num_timesteps:
            self._last_report = self.model.num_timesteps

    def _on_step(self) -> bool:
        assert self._last_report is not None  # for mypy
        if self.num_timesteps - self._last_report >= self.frequency:
            self._last_report = self.num_timesteps
            self._report()
            self.logger.dump(self.num_timesteps)
        return True

    def _report(self) -> None:
        """
        Record what there is to record.
        """
        raise NotImplementedError

    @contextmanager
    def _aside(self, seed: int) -> Iterator[None]:
        """
        Inside, the policy is in evaluation mode and random numbers are the callback's own. Afterwards every module is
        in the mode it was in, and the generators are where they were.

        :param seed: Seed of the numbers inside
        """
        policy = self.model.policy
        modes = [(module, module.training) for module in policy.modules()]
        with forked_rng(seed, self.model.action_space, self.model.device):
            policy.set_training_mode(False)
            try:
                yield
            finally:
                for module, mode in modes:
                    module.training = mode
