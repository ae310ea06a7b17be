"""How the policy flow is trained: each class is one variant of the steps of an update, by the argument ``adjoint``."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch as th

from sb3_qam.networks.flows import euler_steps
from sb3_qam.networks.velocities import Velocity, recorder
from sb3_qam.qam.adjoint_matching import (
    bridge_states,
    bridge_times,
    control_cost,
    flow_times,
    lean_adjoint,
    matching_loss,
    memoryless_path,
    memoryless_sigma,
    path_kl,
    scalar_adjoint,
    terminal_adjoint,
)
from sb3_qam.qam.noise import PathNoise


class Velocities(Protocol):
    """The flows that the policy is trained with, conditioned on the observations of a batch."""

    @property
    def policy(self) -> Velocity:
        """v_theta"""

    @property
    def behavior_target(self) -> Velocity:
        """v_beta, its Polyak average"""


class Critics(NamedTuple):
    """
    The critics, conditioned on the observations of a batch: functions from actions, shape (batch, A), to one value of
    each critic, shape (n_critics, batch). No gradient reaches their parameters.

    :param online: Q_i
    :param target: Q_i, their Polyak averages
    :param pessimism: rho
    """

    online: Callable[[th.Tensor], th.Tensor]
    target: Callable[[th.Tensor], th.Tensor]
    pessimism: float


class PolicyPath(NamedTuple):
    """
    Where the policy went for one batch; A is the action dimension, N the number of flow steps.

    :param states: x_k, where the velocities are matched, shape (N, batch, A)
    :param times: t_k, shape (N, 1, 1)
    :param action: Where the path ends, not clipped, shape (batch, A)
    :param policy_velocity: v_theta(x_k, t_k), with gradient, shape (N, batch, A)
    :param behavior_velocity: v_beta(x_k, t_k), same shape
    """

    states: th.Tensor
    times: th.Tensor
    action: th.Tensor
    policy_velocity: th.Tensor
    behavior_velocity: th.Tensor

    @property
    def sigma(self) -> th.Tensor:
        """Noise levels sigma_k, shape (N, 1, 1)"""
        return memoryless_sigma(self.times)

    def kl(self) -> th.Tensor:
        """
        :return: KL divergence of the policy's SDE from the behavior's, in nats, a scalar
        """
        return path_kl(self.policy_velocity, self.behavior_velocity, self.sigma)

    def shift(self) -> th.Tensor:
        """
        :return: Mean norm of v_theta - v_beta, a scalar
        """
        return (self.policy_velocity - self.behavior_velocity).norm(dim=-1).mean()


class LeanAdjoint:
    """QAM: the policy's memoryless SDE, and the lean adjoint along it (arXiv 2601.14234)."""

    def path(self, flows: Velocities, noise: PathNoise) -> PolicyPath:
        """
        :param flows: The flows
        :param noise: What the path is made from
        :return: The path; gradients reach v_theta at fixed states alone
        """
        # Along the rollout v_theta is evaluated once: what its gradients need is recorded
        policy_velocity, behavior_velocity = recorder(flows.policy, noise.x0), flows.behavior_target
        times = flow_times(len(noise.steps), noise.x0.device)
        with th.no_grad():
            path = memoryless_path(policy_velocity, behavior_velocity, *noise)
            # The last step followed the behavior
            policy_velocity(path[-2], times[-1])
            at_states = behavior_velocity(path[:-1], times)
        return PolicyPath(path[:-1], times, path[-1], policy_velocity.velocities(), at_states)

    def terminal(self, critics: Critics, path: PolicyPath, inverse_temperature: float) -> th.Tensor:
        """
        :param critics: The critics
        :param path: The path
        :param inverse_temperature: w
        :return: The terminal adjoint g_N, shape (batch, A)
        """
        return terminal_adjoint(lambda action: critics.target(action).mean(dim=0), path.action, inverse_temperature)

    @th.no_grad()
    def adjoints(self, flows: Velocities, path: PolicyPath, terminal: th.Tensor) -> th.Tensor:
        """
        :param flows: The flows
        :param path: The path
        :param terminal: g_N
        :return: g_k, shape (N, batch, A)
        """
        return lean_adjoint(flows.behavior_target, path.states, terminal)

    def loss(self, path: PolicyPath, adjoints: th.Tensor, scale_sigma: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
        """
        :param path: The path
        :param adjoints: g_k, shape (N, batch, A)
        :param scale_sigma: What a trust region makes of sigma
        :return: The matching loss, whose gradient reaches v_theta alone
        """
        return matching_loss(path.policy_velocity, path.behavior_velocity, scale_sigma(path.sigma), adjoints)

    def diagnostics(self, path: PolicyPath, adjoints: th.Tensor) -> dict[str, th.Tensor]:
        """
        :param path: The path
        :param adjoints: g_k, shape (N, batch, A)
        :return: Scalars for the log
        """
        return {"policy_shift": path.shift(), "adjoint_norm": adjoints.norm(dim=-1).mean()}


class ScalarAdjoint(LeanAdjoint):
    """SQAM: an action of the policy's flow, bridges to it from fresh noise, no Jacobian (arXiv 2610.10437)."""

    def path(self, flows: Velocities, noise: PathNoise) -> PolicyPath:
        policy_velocity = recorder(flows.policy, noise.x0)
        times = bridge_times(len(noise.steps), noise.x0.device)
        with th.no_grad():
            action = euler_steps(flows.policy, noise.x0, len(noise.steps))
            states = bridge_states(action, noise.steps)
            for x, t in zip(states, times, strict=True):
                policy_velocity(x, t)
            at_states = flows.behavior_target(states, times)
        return PolicyPath(states, times, action, policy_velocity.velocities(), at_states)

    @th.no_grad()
    def adjoints(self, flows: Velocities, path: PolicyPath, terminal: th.Tensor) -> th.Tensor:
        return scalar_adjoint(path.times, terminal)


class Backpropagation(LeanAdjoint):
    """
    Back-propagation through the same SDE ("BAM" in the ablation of arXiv 2601.14234): the cost of leaving the behavior
    minus w (mean_i Q_i - rho std_i Q_i) of the online critics at the end of the path.

    For comparison: it needs the memory of N steps, and its gradients can explode where those of matching do not.
    """

    def path(self, flows: Velocities, noise: PathNoise) -> PolicyPath:
        path = memoryless_path(flows.policy, flows.behavior_target, *noise)
        times = flow_times(len(noise.steps), noise.x0.device)
        return PolicyPath(
            path[:-1], times, path[-1], flows.policy(path[:-1], times), flows.behavior_target(path[:-1], times)
        )

    def terminal(self, critics: Critics, path: PolicyPath, inverse_temperature: float) -> th.Tensor:
        """
        :param critics: The critics
        :param path: The path
        :param inverse_temperature: w
        :return: The terminal cost, whose gradient is g_N, shape (batch,)
        """
        q_values = critics.online(path.action)
        return -inverse_temperature * (q_values.mean(dim=0) - critics.pessimism * q_values.std(dim=0, correction=0))

    def adjoints(self, flows: Velocities, path: PolicyPath, terminal: th.Tensor) -> th.Tensor:
        """
        :param flows: The flows
        :param path: The path
        :param terminal: The terminal cost
        :return: The same: autograd carries its gradient back along the path
        """
        return terminal

    def loss(self, path: PolicyPath, adjoints: th.Tensor, scale_sigma: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
        return control_cost(path.policy_velocity, path.behavior_velocity, path.sigma) + adjoints.mean()

    def diagnostics(self, path: PolicyPath, adjoints: th.Tensor) -> dict[str, th.Tensor]:
        cost = control_cost(path.policy_velocity, path.behavior_velocity, path.sigma)
        return {"policy_shift": path.shift(), "control_cost": cost}


# By the value of QAM's argument ``adjoint``
OBJECTIVES: dict[str, LeanAdjoint] = {"lean": LeanAdjoint(), "scalar": ScalarAdjoint(), "bptt": Backpropagation()}
