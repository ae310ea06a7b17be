"""What the updates report: checked for non-finite values and averaged for the logger, on the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

from sb3_qam.networks.flows import FlowDivergence

# On a GPU, reading a value back waits for the device: non-finite values are found at most this many updates late.
GPU_CHECK_INTERVAL = 100


UNCHANGED = "The parameters are those before this update."
USUAL_CAUSES = (
    "Usual causes: rewards or observations of a very large scale (normalize them), "
    "a learning rate or inverse_temperature that is too high."
)


class UpdateMonitor:
    """
    Collects the scalars of each update where they are, and reads them back only for a check or for the logger.

    :param check_interval: Number of updates between two checks: 1 finds a non-finite value in the very update
    """

    def __init__(self, check_interval: int) -> None:
        self.check_interval = check_interval
        self._names: list[str] = []
        self._held: dict[str, th.Tensor] | None = None
        self._reset()

    @classmethod
    def for_device(cls, device: th.device) -> "UpdateMonitor":
        """
        :param device: The device of the networks
        :return: A monitor that checks every update on a CPU and every 100 updates elsewhere
        """
        return cls(1 if device.type == "cpu" else GPU_CHECK_INTERVAL)

    def _reset(self) -> None:
        self._count = self._unchecked = self._first_update = 0
        self._sums: th.Tensor | None = None
        self._n_finite: th.Tensor | None = None

    def add(self, update: int, values: dict[str, th.Tensor]) -> None:
        """
        Report one update, before its optimizer step.

        :param update: Number of the update
        :param values: Scalars by name: those of another phase of training end what was being averaged
        :raises FloatingPointError: where a value of this update, or of one not yet read, is not finite
        """
        if self._held is not None:
            self._held.update({name: value.detach() for name, value in values.items()})
            return
        if self._names != list(values):
            self.check()
            self._reset()
        stacked = th.stack([value.detach() for value in values.values()])
        if self._sums is None or self._n_finite is None:
            self._names, self._first_update = list(values), update
            self._sums, self._n_finite = th.zeros_like(stacked), th.zeros_like(stacked, dtype=th.long)
        # A sum that is not finite stays so: counted are the updates before the first such value
        self._sums += stacked
        self._n_finite += th.isfinite(self._sums)
        self._count += 1
        self._unchecked += 1
        if self._unchecked >= self.check_interval:
            self.check()

    @contextmanager
    def hold(self) -> Iterator[dict[str, th.Tensor]]:
        """
        What is reported inside is neither looked at nor counted: the update is only being recorded.

        :return: A dict that takes the values reported
        """
        held: dict[str, th.Tensor] = {}
        self._held = held
        try:
            yield held
        finally:
            self._held = None

    @contextmanager
    def during(self, update: int) -> Iterator[None]:
        """
        :param update: Number of the update that is made inside
        :raises FloatingPointError: naming it where a flow diverges in it, or an earlier one that was not finite
        """
        try:
            yield
        except FlowDivergence as error:
            self.check()
            raise FloatingPointError(
                f"Training stopped: the flow diverged at update {update}. {UNCHANGED} {error} {USUAL_CAUSES}"
            ) from error

    def check(self) -> None:
        """:raises FloatingPointError: naming the values that are not finite and the first update that had one"""
        self._unchecked = 0
        if self._sums is None or self._n_finite is None or bool(th.isfinite(self._sums).all()):
            return
        n_finite = self._n_finite.tolist()
        fewest = min(n_finite)
        names = ", ".join(name for name, n in zip(self._names, n_finite, strict=True) if n == fewest)
        update, last = self._first_update + fewest, self._first_update + self._count - 1
        state = (
            UNCHANGED
            if update == last
            else f"The parameters have been updated {last - update} times since then: go back to a checkpoint."
        )
        self._reset()
        raise FloatingPointError(f"Training stopped: {names} not finite at update {update}. {state} {USUAL_CAUSES}")

    @property
    def has_values(self) -> bool:
        """Whether anything was added since the last read."""
        return self._sums is not None

    def read_means(self) -> dict[str, float]:
        """
        :return: The mean of each value since the last read; empty where nothing was added
        :raises FloatingPointError: as :meth:`check`
        """
        self.check()
        if self._sums is None:
            return {}
        means = dict(zip(self._names, (self._sums / self._count).tolist(), strict=True))
        self._reset()
        return means
