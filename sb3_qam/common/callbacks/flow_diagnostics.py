"""What the flow and the critics do, as scalars and as pictures of the actions."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_qam.common.buffers import map_observations
from sb3_qam.common.callbacks.periodic import PeriodicCallback
from sb3_qam.utils.checks import check_positive_int

if TYPE_CHECKING:
    # Which a plain installation does not have
    from matplotlib.figure import Figure as MatplotlibFigure


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
        with self._aside(self.seed + self.num_timesteps):
            for name, value in self.model.flow_diagnostics(self.n_states).items():
                self.logger.record(f"flow/{name}", float(value))
            if self.n_figure_states > 0 and self._draws_figures():
                figure = Figure(draw_actions(*self._sample_actions()), close=True)
                self.logger.record("flow/actions", figure, exclude=("stdout", "log", "json", "csv"))

    def _draws_figures(self) -> bool:
        return importlib.util.find_spec("matplotlib") is not None and any(
            isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats
        )

    @th.no_grad()
    def _sample_actions(self) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: First actions of the clone and of the policy, each of shape (states, actions, dimensions)
        """
        if self._figure_states is None:
            self._figure_states = self.model.draw_batch(self.n_figure_states).observations
        policy: Any = self.model.policy
        n_actions = self.n_figure_actions
        observations = map_observations(lambda part: part.repeat_interleave(n_actions, dim=0), self._figure_states)
        noise = policy.draw_noise(self.n_figure_states * n_actions)
        clone = policy.flow_actions(policy.flows(observations).behavior, noise.x0[0])
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
