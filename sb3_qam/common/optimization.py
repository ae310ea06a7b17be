"""One optimizer step for the losses of all networks together, and their Polyak targets."""

import math
from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from torch import nn

from sb3_qam.common.buffers import TransitionBatch, n_rows
from sb3_qam.common.offline_to_online import OfflineToOnlineAlgorithm
from sb3_qam.common.policies import OfflineToOnlinePolicy, TargetPair
from sb3_qam.networks.critics import CriticEnsemble
from sb3_qam.utils.checks import check_in_range, check_positive_int


class JointOptimization(OfflineToOnlineAlgorithm):
    """
    Offline-to-online algorithms whose networks share one optimizer, ``policy.optimizer``: all losses are taken at the
    same parameters, gradients are clipped together, and one step follows.

    A subclass draws the random numbers of an update in :meth:`_sample_noise`, and takes its losses in :meth:`_update`,
    which ends with :meth:`_optimize`. It has :meth:`bc_loss` and :meth:`td_target`, which callbacks ask for as well.
    Further arguments are those of :class:`~sb3_qam.common.offline_to_online.OfflineToOnlineAlgorithm`.

    :param target_update_interval: update the target networks every ``target_update_interval`` gradient steps, counted
        over the whole training and not within one call of ``train()``
    :param pessimism: rho >= 0, how many standard deviations of the critics are taken off a value
    :param max_grad_norm: The maximum norm of the gradient of all networks together, ``math.inf`` for no clipping
    """

    policy: OfflineToOnlinePolicy
    critic: CriticEnsemble
    critic_target: CriticEnsemble

    def __init__(
        self,
        *args: Any,
        target_update_interval: int = 1,
        pessimism: float = 0.5,
        max_grad_norm: float = math.inf,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.target_update_interval = target_update_interval
        self.pessimism = pessimism
        self.max_grad_norm = max_grad_norm

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_positive_int("target_update_interval", self.target_update_interval)
        check_in_range("pessimism", self.pessimism, 0)
        if self.max_grad_norm != math.inf:
            check_in_range("max_grad_norm", self.max_grad_norm, 0, low_excluded=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._create_aliases()
        # Running means and variances, which the targets copy
        self.batch_norm_stats, self.batch_norm_stats_target = [], []
        for target, source in self.policy.target_pairs():
            self.batch_norm_stats += get_parameters_by_name(source, ["running_"])
            self.batch_norm_stats_target += get_parameters_by_name(target, ["running_"])

    def _create_aliases(self) -> None:
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target

    def _set_objective(self, objective: str) -> None:
        super()._set_objective(objective)
        self.policy.set_objective(objective)

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Update the networks ``gradient_steps`` times.

        :param gradient_steps: Number of updates
        :param batch_size: Number of samples of each update
        :raises FloatingPointError: if a loss is not finite; on a CPU no parameter has been changed by it
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        # Update learning rate according to lr schedule
        self._update_learning_rate(self.policy.optimizer)
        update = {"full": self._update, "bc": self._update_bc}[self._objective]
        for _ in range(gradient_steps):
            with self._monitor.during(self._n_updates + 1):
                update(self._sample_batch(batch_size), self._sample_noise(batch_size))
            self._n_updates += 1
        # The losses follow in dump_logs(): reading them here would make every update wait for a GPU
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _sample_noise(self, batch_size: int) -> Any:
        """
        :param batch_size: Number of samples of the update
        :return: Every random draw of one update
        """
        raise NotImplementedError

    def _update(self, batch: TransitionBatch, noise: Any) -> None:
        """
        One update of all networks.

        :param batch: What to learn from
        :param noise: Every random draw
        """
        raise NotImplementedError

    def _update_bc(self, batch: TransitionBatch, noise: Any) -> None:
        """
        One update of the behavior alone.

        :param batch: What to learn from
        :param noise: Every random draw
        """
        targets = [pair for pair in self.policy.target_pairs() if pair[1] is self.policy.behavior]
        self._optimize({"bc_loss": self.bc_loss(batch, noise)}, {}, targets)

    def bc_loss(self, batch: TransitionBatch, noise: Any) -> th.Tensor:
        """
        :param batch: A batch
        :param noise: Noise of its update
        :return: The loss that clones its actions, shape ()
        """
        raise NotImplementedError

    def td_target(self, batch: TransitionBatch, noise: Any) -> th.Tensor:
        """
        :param batch: A batch
        :param noise: Noise of its update
        :return: What the critics are regressed on, without gradient, shape (batch,)
        """
        raise NotImplementedError

    def _optimize(
        self, losses: dict[str, th.Tensor], reported: dict[str, th.Tensor], targets: Sequence[TargetPair]
    ) -> None:
        """
        One step with the gradients of all losses, clipped together.

        :param losses: The losses by name, means over the batch
        :param reported: Other scalars for the log, by name
        :param targets: The Polyak targets of what is trained, each beside its network
        :raises FloatingPointError: if a loss is not finite; on a CPU nothing has been changed then
        """
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        grad_norm = self._clip_gradients()
        self._monitor.add(self._n_updates + 1, {**losses, **reported, "grad_norm": grad_norm})

        # Before the step, as the published implementation does: the targets lag by one update more
        if self._targets_are_due():
            for target, source in targets:
                polyak_update(source.parameters(), target.parameters(), self.tau)
            # Copy running stats, see https://github.com/DLR-RM/stable-baselines3/issues/996
            polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)
        optimizer.step()

    def _targets_are_due(self) -> bool:
        return self._n_updates % self.target_update_interval == 0

    def _clip_gradients(self) -> th.Tensor:
        """:return: The norm of the gradients of all networks together, before clipping"""
        parameters = [parameter for group in self.policy.optimizer.param_groups for parameter in group["params"]]
        # On a CPU PyTorch would go through them one by one by default
        foreach = True if self.device.type == "cpu" else None
        return nn.utils.clip_grad_norm_(parameters, self.max_grad_norm, foreach=foreach)

    def _policy_values(self, observations: PyTorchObs, noise: Any) -> th.Tensor:
        """
        :param observations: A batch of observations
        :param noise: Noise of an update that the actions are to be made from; here they are drawn, as in acting
        :return: Q_i(s, a) of the policy's actions, shape (n_critics, batch)
        """
        return self.critic(self.critic.features(observations), self.policy(observations))

    @th.no_grad()
    def flow_diagnostics(self, n_states: int) -> dict[str, th.Tensor]:
        """
        What :class:`sb3_qam.common.callbacks.FlowDiagnosticsCallback` records.

        :param n_states: Number of states to draw
        :return: Scalars by name; none where the policy is not being trained
        """
        if self._objective == "bc":
            return {}
        q_values = self._policy_values(self.draw_batch(n_states).observations, None)
        return {"ensemble_disagreement": q_values.std(dim=0, correction=0).mean()}

    @th.no_grad()
    def evaluate_batch(self, batch: TransitionBatch) -> dict[str, th.Tensor]:
        """
        What :class:`sb3_qam.common.callbacks.OfflineEvalCallback` records.

        :param batch: Transitions that need not be those of training, none of them invalid
        :return: Scalars by name, each a mean over the batch; only those of what is being trained
        """
        noise = self._sample_noise(n_rows(batch.observations))
        metrics = {"bc_loss": self.bc_loss(batch, noise)}
        if self._objective == "full":
            q_values = self.critic(self.critic.features(batch.observations), batch.actions)
            metrics["td_error"] = ((q_values - self.td_target(batch, noise)) ** 2).mean()
            metrics["data_value"] = q_values.mean()
            metrics["policy_value"] = self._policy_values(batch.observations, noise).mean()
        return metrics

    def _excluded_save_params(self) -> list[str]:
        aliases = ("actor", "actor_target", "critic", "critic_target")
        return [*super()._excluded_save_params(), *aliases, "batch_norm_stats", "batch_norm_stats_target"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
