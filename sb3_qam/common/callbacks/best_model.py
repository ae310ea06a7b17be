"""Keeps the best model by what is logged, with or without an environment."""

import json
import math
import os
import uuid
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from sb3_qam.utils.atomic import atomic_write

MODES = ("max", "min")
# In the model's own zip file, so that model and value are replaced in one step; load() leaves it alone
RECORD = "best_model.json"


class LogListener(KVWriter):
    """
    An output of the logger that hands on what is written.

    :param listen: Takes the values by name
    """

    def __init__(self, listen: Callable[[dict[str, Any]], None]) -> None:
        self.listen = listen

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.listen(key_values)

    def close(self) -> None:
        """
        There is nothing to close.
        """


class BestModelCallback(BaseCallback):
    """
    Saves the model whenever a logged metric is better than ever before: ``eval_offline/td_error`` of
    :class:`OfflineEvalCallback`, which needs no environment, ``eval/mean_reward`` of SB3's ``EvalCallback``,
    ``rollout/ep_rew_mean``, ``train/bc_loss``, or any other. What is saved is the model as it is when the metric is
    written to the log.

    The value is part of the file, so that a resumed run knows it: a model that is loaded from a checkpoint or from the
    best model itself has to beat what was reached before, by the same metric and mode. A file of another run counts
    for nothing.

    :param monitor: Name of the metric, as it is in the log
    :param mode: ``"max"`` if larger is better, ``"min"`` if smaller is
    :param path: File of the model, as for ``model.save``. It is replaced as a whole: whoever reads it meanwhile,
        and whenever the process is killed, there is a complete model or none
    :param verbose: Verbosity level: 0 for no output, 1 for a line whenever the model is saved
    :raises ValueError: if ``mode`` is unknown; and in training, if the metric is not a number
    """

    def __init__(self, monitor: str, mode: str = "max", path: str | os.PathLike[str] = "best_model", verbose: int = 0):
        super().__init__(verbose)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}.")
        self.monitor = monitor
        self.mode = mode
        path = Path(path)
        # As SB3 does
        self.path = path if path.suffix else path.with_suffix(".zip")
        self.best_value: float | None = None
        self._run_id: str | None = None
        self._seen: set[str] = set()
        self._listener = LogListener(self._on_log)

    def _on_training_start(self) -> None:
        # Each phase may have a logger of its own; one of the user's stays
        if self._listener not in self.logger.output_formats:
            self.logger.output_formats.append(self._listener)
        # Saved with the model, and so with every checkpoint from here on
        if not hasattr(self.model, "run_id"):
            self.model.run_id = uuid.uuid4().hex  # type: ignore[attr-defined]
        if self._run_id != self.model.run_id:  # type: ignore[attr-defined]
            self._run_id = self.model.run_id  # type: ignore[attr-defined]
            self.best_value = self._recorded_value()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.best_value is None:
            logged = ", ".join(sorted(self._seen)) or "nothing"
            warnings.warn(
                f"BestModelCallback has saved no model: there was no finite '{self.monitor}' in the log so far "
                f"(logged: {logged})."
            )

    def _on_log(self, key_values: dict[str, Any]) -> None:
        self._seen.update(key_values)
        if self.monitor not in key_values:
            return
        try:
            value = float(key_values[self.monitor])
        except (TypeError, ValueError):
            raise ValueError(
                f"BestModelCallback compares numbers, and '{self.monitor}' is {key_values[self.monitor]!r}: "
                "choose another metric."
            ) from None
        if not math.isfinite(value):
            return
        sign = 1 if self.mode == "max" else -1
        if self.best_value is None or sign * value > sign * self.best_value:
            self._save(value)
            self.best_value = value
            if self.verbose >= 1:
                print(f"{self.monitor} = {value:.4g} is the best so far: saved the model to {self.path}")

    def _save(self, value: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as unfinished:
            self.model.save(unfinished)
            with zipfile.ZipFile(unfinished, "a") as archive:
                archive.writestr(RECORD, json.dumps({**self._what(), "value": value}))

    def _what(self) -> dict[str, str]:
        """
        :return: What a value has to be of to be compared with
        """
        return {"monitor": self.monitor, "mode": self.mode, "run_id": self.model.run_id}  # type: ignore[attr-defined]

    def _recorded_value(self) -> float | None:
        """
        :return: The value of the model in the file, ``None`` if there is none that can be compared with
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                record = json.loads(archive.read(RECORD))
            value = record.pop("value")
        except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, AttributeError):
            # None yet, or not written by this callback
            return None
        if record != self._what():
            return None
        if self.verbose >= 1:
            print(f"{self.monitor} = {value:.4g} is the best so far, of the model in {self.path}")
        return value
