r"""Adjoint matching (Domingo-Enrich et al., arXiv 2409.08861) as QAM uses it (Li & Levine, arXiv 2601.14234).

First pure functions of tensors, then one class for each value of the argument ``adjoint``, which puts them together. No
policy, no environment, no logger, and noise comes in as an argument.

=====================  =========================================================================================
paper                  here
=====================  =========================================================================================
v_theta, v_beta        ``policy_velocity``, ``behavior_velocity``: functions of (x, t), the state being fixed
N, delta = 1/N         ``flow_steps``, ``step_size``
t_k = k delta          ``times``, shape (N, 1, 1)
sigma_k                ``sigma``, shape (N, 1, 1)
x_0 ... x_N            ``path``, shape (N + 1, batch, action_dim); ``states`` are those that matching is done at
g_0 ... g_{N-1}, g_N   ``adjoints``, shape (N, batch, action_dim), and ``g_N``
w                      ``inverse_temperature``
=====================  =========================================================================================
"""

from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_qam.networks.actors import ConditionedFlows
from sb3_qam.networks.critics import pessimistic_value
from sb3_qam.networks.flows import Velocity, euler_steps, recorder, vector_jacobian_product
from sb3_qam.qam.noise import PathNoise


def flow_times(flow_steps: int, device: th.device | None = None) -> th.Tensor:
    """
    :param flow_steps: Number of flow steps N
    :param device: Where to put the result
    :return: t_k = k / N for k = 0 ... N - 1, shape (N, 1, 1), to broadcast against a path
    """
    return th.arange(flow_steps, device=device).view(-1, 1, 1) / flow_steps


def memoryless_sigma(times: th.Tensor) -> th.Tensor:
    """
    The noise level that makes the end of the SDE independent of its beginning (arXiv 2409.08861, section 4.3),
    shifted by one step so that it stays finite at t = 0: sigma_k^2 = 2 (1 - t_k + delta) / (t_k + delta).

    :param times: All t_k (or tau_k), shape (N, 1, 1): their number says how long a step is
    :return: sigma_k, shape (N, 1, 1)
    """
    step_size = 1 / len(times)
    return th.sqrt(2 * (1 - times + step_size) / (times + step_size))


def memoryless_path(
    policy_velocity: Velocity, behavior_velocity: Velocity, x0: th.Tensor, noise: th.Tensor
) -> th.Tensor:
    """
    Roll the policy's memoryless SDE from noise to an action:
    x_{k+1} = x_k + delta (2 v_theta(x_k, t_k) - x_k / (t_k + delta)) + sqrt(delta) sigma_k eps_k.
    The last step follows the behavior flow without noise, x_N = x_{N-1} + delta v_beta(x_{N-1}, t_{N-1}).
    Differentiable; adjoint matching calls it under ``no_grad``.

    :param policy_velocity: v_theta
    :param behavior_velocity: v_beta, its Polyak average in training
    :param x0: Standard normal noise, shape (batch, action_dim)
    :param noise: eps_k, standard normal, shape (N, batch, action_dim); the last one is not used
    :return: x_0 ... x_N, shape (N + 1, batch, action_dim)
    """
    flow_steps = len(noise)
    step_size = 1 / flow_steps
    times = flow_times(flow_steps, x0.device)
    sigma = memoryless_sigma(times)
    path = [x0]
    for k in range(flow_steps - 1):
        x, t = path[-1], times[k]
        drift = 2 * policy_velocity(x, t) - x / (t + step_size)
        path.append(x + step_size * drift + step_size**0.5 * sigma[k] * noise[k])
    path.append(path[-1] + step_size * behavior_velocity(path[-1], times[-1]))
    return th.stack(path)


def terminal_adjoint(
    q_value: Callable[[th.Tensor], th.Tensor], action: th.Tensor, inverse_temperature: float
) -> th.Tensor:
    """
    Where the adjoint starts: g_N = -w grad_a Q(s, clip(a, -1, 1)) at a = x_N.

    :param q_value: Maps actions, shape (batch, action_dim), to one value each, shape (batch,)
    :param action: x_N, shape (batch, action_dim)
    :param inverse_temperature: w >= 0
    :return: g_N, shape (batch, action_dim)
    """
    with th.enable_grad():
        action = action.detach().requires_grad_()
        (gradient,) = th.autograd.grad(q_value(action.clamp(-1, 1)).sum(), action)
    return -inverse_temperature * gradient


def lean_adjoint(behavior_velocity: Velocity, states: th.Tensor, g_N: th.Tensor) -> th.Tensor:
    """
    Carry the critic's gradient back along the path through the behavior flow alone:
    g_k = g_{k+1} + delta J_k^T g_{k+1} with J_k = d/dx [2 v_beta(x, t_k + delta) - x / (t_k + delta)] at x_k.
    J_k is never formed; each step is one vector-Jacobian product.

    :param behavior_velocity: v_beta, its Polyak average in training
    :param states: x_0 ... x_{N-1}, shape (N, batch, action_dim)
    :param g_N: the terminal adjoint, shape (batch, action_dim)
    :return: g_0 ... g_{N-1}, shape (N, batch, action_dim)
    """
    flow_steps = len(states)
    step_size = 1 / flow_steps
    adjoint, adjoints = g_N, []
    for k in reversed(range(flow_steps)):
        t_next = (k + 1) / flow_steps
        of_velocity = vector_jacobian_product(behavior_velocity, states[k], t_next, adjoint)
        adjoint = adjoint + step_size * (2 * of_velocity - adjoint / t_next)
        adjoints.append(adjoint)
    return th.stack(adjoints[::-1])


def bridge_times(flow_steps: int, device: th.device | None = None) -> th.Tensor:
    """
    :param flow_steps: Number of flow steps N
    :param device: Where to put the result
    :return: tau_k = k / N for k = 1 ... N, shape (N, 1, 1)
    """
    return flow_times(flow_steps, device) + 1 / flow_steps


def bridge_states(action: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    States between fresh noise and an action of the policy (SQAM, arXiv 2610.10437):
    x_k = (1 - tau_k) eps_k + tau_k a, the last of which is the action itself.

    :param action: a, where the policy's flow ends, shape (batch, action_dim)
    :param noise: eps_k, standard normal, shape (N, batch, action_dim)
    :return: x_1 ... x_N, shape (N, batch, action_dim)
    """
    times = bridge_times(len(noise), noise.device)
    return (1 - times) * noise + times * action


def scalar_adjoint(times: th.Tensor, g_N: th.Tensor) -> th.Tensor:
    """
    The adjoint of SQAM (arXiv 2610.10437), without the velocity's Jacobian: g_k = tau_k g_N. It costs no
    vector-Jacobian product.

    :param times: tau_k, shape (N, 1, 1)
    :param g_N: the terminal adjoint, shape (batch, action_dim)
    :return: g_k, shape (N, batch, action_dim)
    """
    return times * g_N


def path_kl(policy_velocity: th.Tensor, behavior_velocity: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """
    KL divergence of the policy's memoryless SDE from the behavior's, by Girsanov's theorem:
    E[ sum_k (2 delta / sigma_k^2) || v_theta - v_beta ||^2 ], all taken at (x_k, t_k).

    :param policy_velocity: v_theta(x_k, t_k), shape (N, batch, action_dim)
    :param behavior_velocity: v_beta(x_k, t_k), same shape
    :param sigma: sigma_k, shape (N, 1, 1)
    :return: The divergence in nats, a scalar
    """
    step_size = 1 / len(sigma)
    weighted = 2 * step_size / sigma**2 * (policy_velocity - behavior_velocity) ** 2
    return weighted.sum(dim=(0, 2)).mean()


def control_cost(policy_velocity: th.Tensor, behavior_velocity: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """
    What back-propagation pays for leaving the behavior ("BAM" in the ablation of arXiv 2601.14234):
    E[ sum_{k<N-1} 2 || v_theta - v_beta ||^2 / sigma_k^2 ]. The last step follows the behavior anyway.

    :param policy_velocity: v_theta(x_k, t_k), shape (N, batch, action_dim)
    :param behavior_velocity: v_beta(x_k, t_k), same shape
    :param sigma: sigma_k, shape (N, 1, 1)
    :return: The cost, a scalar
    """
    weighted = 2 * (policy_velocity - behavior_velocity) ** 2 / sigma**2
    return weighted[:-1].sum(dim=(0, 2)).mean()


def matching_loss(
    policy_velocity: th.Tensor, behavior_velocity: th.Tensor, sigma: th.Tensor, adjoints: th.Tensor
) -> th.Tensor:
    """
    The regression whose optimum is pi proportional to pi_beta exp(w Q):
    E[ sum_k || 2 (v_theta - v_beta) / sigma_k + sigma_k g_k ||^2 ], all taken at (x_k, t_k).

    :param policy_velocity: v_theta(x_k, t_k), shape (N, batch, action_dim); the gradient flows here alone
    :param behavior_velocity: v_beta(x_k, t_k), same shape
    :param sigma: sigma_k, shape (N, 1, 1)
    :param adjoints: g_k, same shape as the velocities
    :return: The loss, a scalar
    """
    residual = 2 * (policy_velocity - behavior_velocity.detach()) / sigma + sigma * adjoints.detach()
    return (residual**2).sum(dim=(0, 2)).mean()


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
    :param times: t_k, of SQAM tau_k, shape (N, 1, 1)
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
        """:return: KL divergence of the policy's SDE from the behavior's, in nats, a scalar"""
        return path_kl(self.policy_velocity.detach(), self.behavior_velocity, self.sigma)

    def shift(self) -> th.Tensor:
        """:return: Mean norm of v_theta - v_beta, a scalar"""
        return (self.policy_velocity - self.behavior_velocity).norm(dim=-1).mean()


class AdjointMethod:
    """The steps of an update that train the policy flow."""

    def path(self, flows: ConditionedFlows, noise: PathNoise) -> PolicyPath:
        """
        :param flows: The flows that the policy is trained with, conditioned on the observations of a batch
        :param noise: What the path is made from
        :return: The path; gradients reach v_theta at fixed states alone
        """
        raise NotImplementedError

    def terminal(self, critics: Critics, path: PolicyPath, inverse_temperature: float) -> th.Tensor:
        """
        :param critics: The critics
        :param path: The path
        :param inverse_temperature: w
        :return: The terminal adjoint g_N, shape (batch, A)
        """
        return terminal_adjoint(lambda action: critics.target(action).mean(dim=0), path.action, inverse_temperature)

    def adjoints(self, flows: ConditionedFlows, path: PolicyPath, terminal: th.Tensor) -> th.Tensor:
        """
        :param flows: The flows
        :param path: The path
        :param terminal: g_N
        :return: g_k, shape (N, batch, A)
        """
        raise NotImplementedError

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


class LeanAdjoint(AdjointMethod):
    """QAM: the policy's memoryless SDE, and the lean adjoint along it (arXiv 2601.14234)."""

    def path(self, flows: ConditionedFlows, noise: PathNoise) -> PolicyPath:
        # Along the rollout v_theta is evaluated once: what its gradients need is recorded
        policy_velocity, behavior_velocity = recorder(flows.policy, noise.x0), flows.behavior_target
        times = flow_times(len(noise.steps), noise.x0.device)
        with th.no_grad():
            path = memoryless_path(policy_velocity, behavior_velocity, *noise)
            # The last step followed the behavior
            policy_velocity(path[-2], times[-1])
            at_states = behavior_velocity(path[:-1], times)
        return PolicyPath(path[:-1], times, path[-1], policy_velocity.velocities(), at_states)

    @th.no_grad()
    def adjoints(self, flows: ConditionedFlows, path: PolicyPath, terminal: th.Tensor) -> th.Tensor:
        return lean_adjoint(flows.behavior_target, path.states, terminal)


class ScalarAdjoint(AdjointMethod):
    """SQAM: an action of the policy's flow, bridges to it from fresh noise, no Jacobian (arXiv 2610.10437)."""

    def path(self, flows: ConditionedFlows, noise: PathNoise) -> PolicyPath:
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
    def adjoints(self, flows: ConditionedFlows, path: PolicyPath, terminal: th.Tensor) -> th.Tensor:
        return scalar_adjoint(path.times, terminal)


class Backpropagation(AdjointMethod):
    """
    Back-propagation through the same SDE ("BAM" in the ablation of arXiv 2601.14234): the cost of leaving the behavior
    minus w (mean_i Q_i - rho std_i Q_i) of the online critics at the end of the path.

    Unlike matching it takes the online critics, with pessimism, at an action that is not clipped, and its cost lacks
    the step size: w counts as w / N does there. For comparison: it needs the memory of N steps, and its gradients can
    explode where those of matching do not.
    """

    def path(self, flows: ConditionedFlows, noise: PathNoise) -> PolicyPath:
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
        return -inverse_temperature * pessimistic_value(q_values, critics.pessimism)

    def adjoints(self, flows: ConditionedFlows, path: PolicyPath, terminal: th.Tensor) -> th.Tensor:
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
ADJOINT_METHODS: dict[str, AdjointMethod] = {
    "lean": LeanAdjoint(),
    "scalar": ScalarAdjoint(),
    "bptt": Backpropagation(),
}
