"""Callbacks that look into training, in the offline phase as in the online one, and leave it as it was without them."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import uuid
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, KVWriter, TensorBoardOutputFormat
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_qam.common.buffers import OfflineBuffer
from sb3_qam.common.evaluation import evaluation_mode
from sb3_qam.common.fitted_q_evaluation import fitted_q_evaluation
from sb3_qam.common.optimization import JointOptimization
from sb3_qam.common.policies import BaseFlowPolicy
from sb3_qam.datasets.sources import OfflineDataset
from sb3_qam.utils.atomic import atomic_write
from sb3_qam.utils.checks import check_one_of, check_positive_int
from sb3_qam.utils.nested import map_observations

if TYPE_CHECKING:
    # Which a plain installation does not have
    from matplotlib.figure import Figure as MatplotlibFigure

# In the model's own zip file, so that model and value are replaced in one step; load() leaves it alone
BEST_MODEL_RECORD = "best_model.json"


class PeriodicCallback(BaseCallback):
    """
    Calls :meth:`_report` every so many timesteps, and writes the log then, as SB3's ``EvalCallback`` does: what was
    measured is logged with the timestep it was measured at.

    :param frequency: Timesteps between two reports: gradient steps offline, environment steps online
    :param seed: Seed of the random numbers of the reports, which are not those of training
    :param verbose: Verbosity level: 0 for no output, 1 for info messages
    :raises ValueError: if ``seed`` is a negative integer
    """

    model: JointOptimization

    def __init__(self, frequency: int, seed: int = 0, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_positive_int("seed", seed, minimum=0)
        self.frequency = frequency
        self.seed = seed
        self._last_report = math.inf
        self._used_for: JointOptimization | None = None

    def _init_callback(self) -> None:
        if not isinstance(self.model, JointOptimization):
            raise TypeError(
                f"{type(self).__name__} looks into QAM, and the model is {type(self.model).__name__}: use it with QAM."
            )
        # SB3 calls this before each phase
        if self._used_for is not self.model:
            self._on_new_model()
            self._used_for = self.model

    def _on_new_model(self) -> None:
        """Get ready for a model that the callback has not been used with."""

    def _on_training_start(self) -> None:
        # The count may continue or start again
        self._last_report = min(self._last_report, self.model.num_timesteps)

    def _on_step(self) -> bool:
        if self.num_timesteps - self._last_report >= self.frequency:
            self._last_report = self.num_timesteps
            self._report()
            self.logger.dump(self.num_timesteps)
        return True

    def _report(self) -> None:
        """Record what there is to record."""
        raise NotImplementedError


class OfflineEvalCallback(PeriodicCallback):
    """
    Records under ``eval_offline/``, on held-out Minari episodes:

    - ``td_error``: mean squared error of the critics against their target, ``train/critic_loss`` of new data
    - ``data_value`` and ``policy_value``: mean of the critics at the actions of the data, and at those of the policy in
      the same states
    - ``bc_loss``: the flow-matching loss of the behavior flow, ``train/bc_loss`` of new data
    - ``fqe``, with ``fqe_steps`` > 0: :func:`~sb3_qam.fitted_q_evaluation` of deterministic actions on these episodes,
      ``fqe_low`` and ``fqe_high``, its interval, and ``fqe_halfway``, after half of these steps

    Transitions and noise are the same at each evaluation, so that differences come from training. While the
    behavior alone is trained (``objective="bc"``) there are ``bc_loss`` and ``fqe`` alone. With ``n_steps`` or
    ``chunk_size`` of h > 1 these are means over complete sequences, while the losses of training count those that an
    episode's end cuts short as 0: of episodes of T steps they are lower by the factor (T - h + 1) / T. Training is the
    same, bit by bit, with and without the callback. Rewards are transformed and observations normalized as in training.

    :param dataset: The episodes: id or folder of a Minari dataset, a dataset object, or a list of these, as
        ``offline_dataset`` of the model. ``dataset.filter_episodes`` and ``minari.split_dataset`` divide one
    :param eval_freq: Timesteps between two evaluations: gradient steps offline, environment steps online
    :param n_transitions: How many transitions to evaluate at most; chosen at random where there are more
    :param batch_size: Number of transitions that are evaluated together
    :param fqe_steps: Gradient steps of each fitted Q evaluation, 0 for none
    :param seed: Seed of the callback's own random numbers
    :param verbose: Verbosity level: 0 for no output, 1 for info messages
    :raises ValueError: if an argument is out of range; and, when training begins, if the dataset is unusable or does
        not fit the model
    :raises FileNotFoundError: when training begins, if the dataset is neither in the local Minari cache nor to be
        downloaded
    """

    def __init__(
        self,
        dataset: OfflineDataset,
        eval_freq: int = 1000,
        n_transitions: int = 4096,
        batch_size: int = 1024,
        seed: int = 0,
        verbose: int = 0,
        fqe_steps: int = 0,
    ) -> None:
        super().__init__(eval_freq, seed, verbose)
        check_positive_int("eval_freq", eval_freq)
        check_positive_int("n_transitions", n_transitions)
        check_positive_int("batch_size", batch_size)
        check_positive_int("fqe_steps", fqe_steps, minimum=0)
        self.dataset = dataset
        self.fqe_steps = fqe_steps
        self.n_transitions = n_transitions
        self.batch_size = batch_size
        self._buffer: OfflineBuffer | None = None

    def _on_new_model(self) -> None:
        self._buffer = self.model.make_offline_buffer(self.dataset)
        starts = self._buffer.complete_starts()
        # In order, because mapped files are read in that way
        self._rows = np.sort(np.random.default_rng(self.seed).permutation(starts)[: self.n_transitions])

    def _report(self) -> None:
        assert self._buffer is not None  # for mypy
        sums: dict[str, float] = defaultdict(float)
        self._buffer.gamma = self.model.gamma
        with evaluation_mode(self.model, self.seed):
            for start in range(0, len(self._rows), self.batch_size):
                rows = self._rows[start : start + self.batch_size]
                batch = self._buffer.batch_of(rows, env=self.model._vec_normalize_env)
                for name, mean in self.model.evaluate_batch(batch).items():
                    sums[name] += float(mean) * len(rows)
        for name, total in sums.items():
            self.logger.record(f"eval_offline/{name}", total / len(self._rows))
        if self.fqe_steps > 0:
            found = fitted_q_evaluation(self.model, self._buffer, self.fqe_steps, seed=self.seed)
            for name, value in vars(found).items():
                self.logger.record(f"eval_offline/fqe{'' if name == 'value' else f'_{name}'}", value)


class FlowDiagnosticsCallback(PeriodicCallback):
    """
    Records under ``flow/``, at states drawn from the data that training draws from:

    - ``adjoint_norm_k``: mean norm of the adjoint at flow step k, which is what that step learns from. With
      ``adjoint="bptt"``, which has none, the lean one
    - ``ensemble_disagreement``: standard deviation of the critics at the policy's actions
    - ``path_kl``: divergence of the policy's SDE from the behavior's, in nats per environment step
    - ``actions``, for TensorBoard alone, where there is matplotlib: actions of the clone and of the policy at a few
      states, which stay the same as long as the callback is used. Two action dimensions are a scatter plot, a single
      one is a histogram; of a chunk it is the first action, scaled to [-1, 1]

    While the behavior alone is trained (``objective="bc"``) there is only the picture of its actions. Training is
    the same, bit by bit, with and without the callback.

    :param log_freq: Timesteps between two reports: gradient steps offline, environment steps online
    :param n_states: Number of states that the scalars are averaged over
    :param n_figure_states: Number of states in the picture, 0 for none
    :param n_figure_actions: Number of actions drawn for each of them
    :param seed: Seed of the callback's own random numbers
    :param verbose: Verbosity level: 0 for no output, 1 for info messages
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        log_freq: int = 1000,
        n_states: int = 256,
        n_figure_states: int = 4,
        n_figure_actions: int = 256,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(log_freq, seed, verbose)
        check_positive_int("log_freq", log_freq)
        check_positive_int("n_states", n_states)
        check_positive_int("n_figure_states", n_figure_states, minimum=0)
        check_positive_int("n_figure_actions", n_figure_actions)
        self.n_states = n_states
        self.n_figure_states = n_figure_states
        self.n_figure_actions = n_figure_actions
        self._figure_states: PyTorchObs | None = None

    def _on_new_model(self) -> None:
        self._figure_states = None

    def _report(self) -> None:
        # Online there may be nothing to draw states from yet
        if not self.model.has_training_data:
            return
        # Other states each time, and the same again in a run that is repeated
        with evaluation_mode(self.model, self.seed + self.num_timesteps):
            for name, value in self.model.flow_diagnostics(self.n_states).items():
                self.logger.record(f"flow/{name}", float(value))
            has_flows = isinstance(self.model.policy, BaseFlowPolicy)
            if has_flows and self.n_figure_states > 0 and self._draws_figures():
                figure = Figure(draw_actions(*self._sample_actions()), close=True)
                self.logger.record("flow/actions", figure, exclude=("stdout", "log", "json", "csv"))

    def _draws_figures(self) -> bool:
        return importlib.util.find_spec("matplotlib") is not None and any(
            isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats
        )

    @th.no_grad()
    def _sample_actions(self) -> tuple[np.ndarray, np.ndarray]:
        """:return: First actions of the clone and of the policy, each of shape (states, actions, dimensions)"""
        if self._figure_states is None:
            self._figure_states = self.model.draw_batch(self.n_figure_states).observations
        policy: Any = self.model.policy
        n_actions = self.n_figure_actions
        observations = map_observations(lambda part: part.repeat_interleave(n_actions, dim=0), self._figure_states)
        noise = policy.draw_noise(self.n_figure_states * n_actions)
        clone = policy.clone_actions(observations, noise.x0[0])
        acting = policy.sample_actions(observations, noise)
        n_dims = get_action_dim(self.model.action_space)
        shape = (self.n_figure_states, n_actions, -1)
        first_clone, first_acting = (each[:, :n_dims].reshape(shape).cpu().numpy() for each in (clone, acting))
        return first_clone, first_acting


def draw_actions(clone: np.ndarray, policy: np.ndarray) -> MatplotlibFigure:
    """
    :param clone: Actions of the clone, shape (states, actions, dimensions)
    :param policy: Actions of the policy, same shape
    :return: A picture of each state, those of the clone in gray below those of the policy
    """
    from matplotlib.figure import Figure as MatplotlibFigure

    n_states, _, n_dims = clone.shape
    # Not made by pyplot, which would keep it
    figure = MatplotlibFigure(figsize=(3 * n_states, 3), layout="constrained")
    for number, axes in enumerate(figure.subplots(1, n_states, squeeze=False)[0]):
        for name, actions, color in (("bc", clone, "0.6"), ("policy", policy, "C1")):
            if n_dims == 1:
                axes.hist(actions[number, :, 0], bins=40, range=(-1, 1), color=color, alpha=0.6, label=name)
            else:
                axes.scatter(actions[number, :, 0], actions[number, :, 1], s=6, color=color, alpha=0.6, label=name)
                axes.set_ylim(-1.05, 1.05)
        axes.set_xlim(-1.05, 1.05)
        axes.set_title(f"state {number}")
    axes.legend(loc="upper right")
    return figure


class BestModelCallback(BaseCallback, KVWriter):
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
        check_one_of("mode", mode, ("max", "min"))
        self.monitor = monitor
        self.mode = mode
        path = Path(path)
        # As SB3 does
        self.path = path if path.suffix else path.with_suffix(".zip")
        self.best_value: float | None = None
        self._run_id: str | None = None
        self._seen: set[str] = set()

    def _on_training_start(self) -> None:
        # It is an output of the logger; each phase may have a logger of its own, and one of the user's stays
        if self not in self.logger.output_formats:
            self.logger.output_formats.append(self)
        model: Any = self.model
        # Saved with the model, and so with every checkpoint from here on
        model.run_id = getattr(model, "run_id", None) or uuid.uuid4().hex
        if self._run_id != model.run_id:
            self._run_id = model.run_id
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

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
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
        sign = 1 if self.mode == "max" else -1
        if math.isfinite(value) and (self.best_value is None or sign * value > sign * self.best_value):
            self._save(value)
            self.best_value = value
            if self.verbose >= 1:
                print(f"{self.monitor} = {value:.4g} is the best so far: saved the model to {self.path}")

    def close(self) -> None:
        """There is nothing to close."""

    def _save(self, value: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as unfinished:
            self.model.save(unfinished)
            with zipfile.ZipFile(unfinished, "a") as archive:
                archive.writestr(BEST_MODEL_RECORD, json.dumps({**self._what(), "value": value}))

    def _what(self) -> dict[str, str | None]:
        """:return: What a value has to be of to be compared with"""
        return {"monitor": self.monitor, "mode": self.mode, "run_id": self._run_id}

    def _recorded_value(self) -> float | None:
        """:return: The value of the model in the file, ``None`` if there is none that can be compared with"""
        try:
            with zipfile.ZipFile(self.path) as archive:
                record = json.loads(archive.read(BEST_MODEL_RECORD))
            value = record.pop("value")
        except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, AttributeError):
            # None yet, or not written by this callback
            return None
        if record != self._what():
            return None
        if self.verbose >= 1:
            print(f"{self.monitor} = {value:.4g} is the best so far, of the model in {self.path}")
        return value
