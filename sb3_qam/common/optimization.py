"""One optimizer step for the losses of all networks together, and their Polyak targets."""

from collections.abc import Sequence

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import get_parameters_by_name, polyak_update
from torch import nn

from sb3_qam.common.update_monitor import UpdateMonitor

# A Polyak target beside the network it follows
TargetPair = tuple[nn.Module, nn.Module]


class JointOptimization(OffPolicyAlgorithm):
    """
    Off-policy algorithms whose networks share one optimizer, ``policy.optimizer``: all losses are taken at the same
    parameters, gradients are clipped together, and one step follows.
    """

    _monitor: UpdateMonitor
    max_grad_norm: float
    target_update_interval: int

    def _remember_batch_norm_stats(self, pairs: Sequence[TargetPair]) -> None:
        """:param pairs: All targets, each beside its network: their running means and variances are copied"""
        self.batch_norm_stats, self.batch_norm_stats_target = [], []
        for target, source in pairs:
            self.batch_norm_stats += get_parameters_by_name(source, ["running_"])
            self.batch_norm_stats_target += get_parameters_by_name(target, ["running_"])

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

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "batch_norm_stats", "batch_norm_stats_target"]
