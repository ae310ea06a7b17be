"""What the policy flow is trained by: adjoint matching, or back-propagation through the SDE to compare it with."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_qam.networks.velocities import Velocity, recorder
from sb3_qam.qam.adjoint_matching import (
    flow_times,
    lean_adjoint,
    matching_loss,
    memoryless_path,
    memoryless_sigma,
    path_kl,
    scalar_adjoint,
    terminal_adjoint,
)

# ``adjoint(behavior_velocity, path, g_N)``: g_0 ... g_{N-1}
Adjoint = Callable[[Velocity, th.Tensor, th.Tensor], th.Tensor]


class PolicyProblem(NamedTuple):
    """
    What the policy flow is to solve for one batch; A is the action dimension, N the number of flow steps.

    :param policy_velocity: v_theta
    :param behavior_velocity: v_beta, its Polyak average
    :param q_value: Maps actions, shape (batch, A), to the mean of the target critics, shape (batch,)
    :param inverse_temperature: w
    :param scale_sigma: What a trust region makes of sigma in the matching loss
    :param x0: Where the SDE starts, shape (batch, A)
    :param noise: Noise of the SDE, shape (N, batch, A)
    """

    policy_velocity: Velocity
    behavior_velocity: Velocity
    q_value: Callable[[th.Tensor], th.Tensor]
    inverse_temperature: float
    scale_sigma: Callable[[th.Tensor], th.Tensor]
    x0: th.Tensor
    noise: th.Tensor


class PolicyLoss(NamedTuple):
    """
    :param loss: The loss, whose gradient reaches v_theta alone
    :param path_kl: KL divergence of the policy's SDE from the behavior's, in nats
    :param diagnostics: Other scalars for the log, by name
    """

    loss: th.Tensor
    path_kl: th.Tensor
    diagnostics: dict[str, th.Tensor]


class AdjointMatching:
    """
    Regression on the velocity that the adjoint asks for, along the policy's own memoryless SDE (arXiv 2409.08861).

    :param adjoint: Carries the critic's gradient back along the path
    """

    def __init__(self, adjoint: Adjoint) -> None:
        self.adjoint = adjoint

    @th.no_grad()
    def path_and_adjoints(self, problem: PolicyProblem) -> tuple[th.Tensor, th.Tensor]:
        """
        The policy's SDE and, back along it, the adjoint of w Q. No gradient reaches any parameter.

        :param problem: The problem
        :return: x_0 ... x_N, shape (N + 1, batch, A), and g_0 ... g_{N-1}, shape (N, batch, A)
        """
        path = memoryless_path(problem.policy_velocity, problem.behavior_velocity, problem.x0, problem.noise)
        g_N = terminal_adjoint(problem.q_value, path[-1], problem.inverse_temperature)
        return path, self.adjoint(problem.behavior_velocity, path, g_N)

    def __call__(self, problem: PolicyProblem) -> PolicyLoss:
        """
        :param problem: The problem
        :return: The matching loss, and what to log
        """
        # Where the path was rolled out, v_theta is known already; the last step followed the behavior
        recorded = recorder(problem.policy_velocity, problem.x0)
        path, adjoints = self.path_and_adjoints(problem._replace(policy_velocity=recorded))
        times = flow_times(len(problem.noise), path.device)
        sigma = memoryless_sigma(times)
        recorded(path[-2], times[-1])
        policy_velocity = recorded.velocities()
        behavior_velocity = problem.behavior_velocity(path[:-1], times)
        return PolicyLoss(
            matching_loss(policy_velocity, behavior_velocity, problem.scale_sigma(sigma), adjoints),
            path_kl(policy_velocity, behavior_velocity, sigma),
            {"adjoint_norm": adjoints.norm(dim=-1).mean(), **velocity_diagnostics(policy_velocity, behavior_velocity)},
        )


class Backpropagation:
    """
    Back-propagation through the steps of the same SDE ("BAM" in the ablation of arXiv 2601.14234): the divergence of
    the paths minus w Q at their end. By 2 / delta the loss has the scale of :func:`matching_loss`, and its gradient
    is that of matching with the full adjoint instead of the lean one.

    For comparison: it needs the memory of N steps, and its gradients can explode where those of matching do not.
    """

    def __call__(self, problem: PolicyProblem) -> PolicyLoss:
        """
        :param problem: The problem
        :return: The loss, and what to log
        """
        path = memoryless_path(problem.policy_velocity, problem.behavior_velocity, problem.x0, problem.noise)
        times = flow_times(len(problem.noise), path.device)
        policy_velocity = problem.policy_velocity(path[:-1], times)
        behavior_velocity = problem.behavior_velocity(path[:-1], times)
        kl = path_kl(policy_velocity, behavior_velocity, memoryless_sigma(times))
        value = problem.q_value(path[-1].clamp(-1, 1)).mean()
        loss = 2 * len(times) * (kl - problem.inverse_temperature * value)
        return PolicyLoss(loss, kl, velocity_diagnostics(policy_velocity, behavior_velocity))


def velocity_diagnostics(policy_velocity: th.Tensor, behavior_velocity: th.Tensor) -> dict[str, th.Tensor]:
    """
    :param policy_velocity: v_theta(x_k, t_k), shape (N, batch, A)
    :param behavior_velocity: v_beta(x_k, t_k), same shape
    :return: Mean norm of the difference
    """
    return {"policy_shift": (policy_velocity - behavior_velocity).norm(dim=-1).mean()}


LEAN = AdjointMatching(lean_adjoint)
# By the value of QAM's argument ``adjoint``
POLICY_OBJECTIVES: dict[str, AdjointMatching | Backpropagation] = {
    "lean": LEAN,
    "scalar": AdjointMatching(scalar_adjoint),
    "bptt": Backpropagation(),
}
