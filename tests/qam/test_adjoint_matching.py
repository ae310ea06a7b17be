"""The pure functions against closed forms and automatic differentiation."""

from types import SimpleNamespace

import pytest
import torch as th

from sb3_qam.networks.layers import TanhGELU
from sb3_qam.qam.adjoint_matching import (
    Backpropagation,
    Critics,
    ScalarAdjoint,
    bridge_times,
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

BATCH, DIM = 4, 3


def nonlinear_velocity(x: th.Tensor, t) -> th.Tensor:
    return th.tanh(x @ th.tensor([[0.5, -1.0, 0.2], [0.3, 0.1, -0.7], [-0.2, 0.9, 0.4]])) * (1 + th.as_tensor(t))


@pytest.mark.parametrize("flow_steps", [1, 2, 5, 10])
def test_times_and_noise_level_follow_the_design(flow_steps: int):
    times = flow_times(flow_steps)
    sigma = memoryless_sigma(times)
    assert times.shape == sigma.shape == (flow_steps, 1, 1)
    for k in range(flow_steps):
        t, step = k / flow_steps, 1 / flow_steps
        assert times[k].item() == pytest.approx(t)
        assert sigma[k].item() ** 2 == pytest.approx(2 * (1 - t + step) / (t + step), rel=1e-5)


def test_path_takes_each_step_of_the_sde_and_the_last_one_without_noise():
    flow_steps, step = 4, 0.25
    x0, noise = th.randn(BATCH, DIM), th.randn(flow_steps, BATCH, DIM)
    path = memoryless_path(nonlinear_velocity, lambda x, t: -x, x0, noise)
    assert path.shape == (flow_steps + 1, BATCH, DIM)
    th.testing.assert_close(path[0], x0)
    for k in range(flow_steps - 1):
        t = k * step
        variance = 2 * (1 - t + step) / (t + step)
        mean = path[k] + step * (2 * nonlinear_velocity(path[k], t) - path[k] / (t + step))
        th.testing.assert_close(path[k + 1], mean + (step * variance) ** 0.5 * noise[k])
    th.testing.assert_close(path[-1], path[-2] * (1 - step))


def test_last_noise_is_not_used():
    noise = th.randn(3, BATCH, DIM)
    x0 = th.randn(BATCH, DIM)
    other = noise.clone()
    other[-1] += 100
    paths = [memoryless_path(nonlinear_velocity, nonlinear_velocity, x0, each) for each in (noise, other)]
    th.testing.assert_close(*paths, rtol=0, atol=0)


def test_terminal_adjoint_is_the_scaled_negative_gradient_inside_the_bounds_and_zero_outside():
    action = th.tensor([[0.5, -0.2], [1.7, 0.3], [-3.0, -1.2]])
    adjoint = terminal_adjoint(lambda a: (a**2).sum(dim=-1), action, inverse_temperature=2.0)
    inside = (action.abs() <= 1).float()
    th.testing.assert_close(adjoint, -2.0 * 2 * action * inside)


def test_lean_adjoint_of_a_linear_flow_has_a_closed_form():
    # v(x, t) = A x, so J_k = 2 A - I / (t_k + delta) everywhere
    flow_steps = 5
    matrix = th.randn(DIM, DIM)
    g_N = th.randn(BATCH, DIM)
    adjoints = lean_adjoint(lambda x, t: x @ matrix.T, th.randn(flow_steps, BATCH, DIM), g_N)
    expected = g_N
    for k in reversed(range(flow_steps)):
        jacobian = 2 * matrix - th.eye(DIM) * flow_steps / (k + 1)
        expected = expected + expected @ jacobian / flow_steps
        th.testing.assert_close(adjoints[k], expected)


def test_lean_adjoint_is_back_propagation_through_the_behavior_drift():
    flow_steps, step = 4, 0.25
    path = th.randn(flow_steps, BATCH, DIM)
    g_N = th.randn(BATCH, DIM)
    adjoints = lean_adjoint(nonlinear_velocity, path, g_N)
    adjoint = g_N
    for k in reversed(range(flow_steps)):
        x = path[k].clone().requires_grad_()
        t = (k + 1) * step
        x_next = x + step * (2 * nonlinear_velocity(x, t) - x / t)
        (adjoint,) = th.autograd.grad(x_next, x, grad_outputs=adjoint)
        th.testing.assert_close(adjoints[k], adjoint)


def test_matching_loss_is_zero_at_the_velocity_the_adjoint_asks_for():
    flow_steps = 5
    behavior, adjoints = th.randn(2, flow_steps, BATCH, DIM)
    sigma = memoryless_sigma(flow_times(flow_steps))
    optimum = behavior - sigma**2 * adjoints / 2
    assert matching_loss(optimum, behavior, sigma, adjoints).item() == pytest.approx(0, abs=1e-8)
    shifted = optimum + sigma / 2
    # each residual is then 1: one for every flow step and dimension
    assert matching_loss(shifted, behavior, sigma, adjoints).item() == pytest.approx(flow_steps * DIM, rel=1e-4)


def test_matching_loss_has_a_gradient_for_the_policy_alone():
    tensors = [th.randn(5, BATCH, DIM, requires_grad=True) for _ in range(3)]
    policy, behavior, adjoints = tensors
    matching_loss(policy, behavior, memoryless_sigma(flow_times(5)), adjoints).backward()
    assert policy.grad is not None
    assert behavior.grad is None
    assert adjoints.grad is None


def test_bridges_lead_from_fresh_noise_to_the_action_that_the_flow_makes():
    flow_steps = 6
    flows = SimpleNamespace(policy=nonlinear_velocity, behavior_target=lambda x, t: -x)
    noise = PathNoise(th.randn(BATCH, DIM), th.randn(flow_steps, BATCH, DIM))
    path = ScalarAdjoint().path(flows, noise)
    action = noise.x0
    for k in range(flow_steps):
        action = action + nonlinear_velocity(action, k / flow_steps) / flow_steps
    th.testing.assert_close(path.action, action)
    for k in range(1, flow_steps + 1):
        tau = k / flow_steps
        th.testing.assert_close(path.states[k - 1], (1 - tau) * noise.steps[k - 1] + tau * action)
        th.testing.assert_close(path.policy_velocity[k - 1], nonlinear_velocity(path.states[k - 1], tau))
        variance = 2 * (1 - tau + 1 / flow_steps) / (tau + 1 / flow_steps)
        assert path.sigma[k - 1].item() ** 2 == pytest.approx(variance, rel=1e-5)
    th.testing.assert_close(path.states[-1], action)


def test_scalar_adjoint_is_the_terminal_one_times_the_flow_time():
    g_N = th.randn(BATCH, DIM)
    adjoints = scalar_adjoint(bridge_times(4), g_N)
    for k, share in enumerate([0.25, 0.5, 0.75, 1.0]):
        th.testing.assert_close(adjoints[k], share * g_N)


def test_path_kl_is_the_divergence_between_the_gaussian_steps():
    flow_steps = 4
    policy, behavior = th.randn(2, flow_steps, BATCH, DIM)
    sigma = memoryless_sigma(flow_times(flow_steps))
    step = 1 / flow_steps
    expected = th.zeros(BATCH)
    for k in range(flow_steps):
        # one step of either SDE from the same x: N(x + step * 2 v + ..., step * sigma^2)
        scale = (step**0.5 * sigma[k]).expand(BATCH, DIM)
        steps = [th.distributions.Normal(step * 2 * velocity[k], scale) for velocity in (policy, behavior)]
        expected += th.distributions.kl_divergence(*steps).sum(dim=1)
    th.testing.assert_close(path_kl(policy, behavior, sigma), expected.mean())


def test_back_propagation_gives_the_gradient_of_matching_with_the_full_adjoint():
    """Its loss is N (KL - w / N Q), half of what matching with the full adjoint of w / N Q has."""
    flow_steps, w = 5, 1.7
    net = th.nn.Sequential(th.nn.Linear(DIM + 1, 8), TanhGELU(), th.nn.Linear(8, DIM)).double()

    def v_theta(x: th.Tensor, t) -> th.Tensor:
        return net(th.cat([x, th.as_tensor(t, dtype=x.dtype).expand(*x.shape[:-1], 1)], dim=-1))

    def v_beta(x: th.Tensor, t) -> th.Tensor:
        return th.tanh(x) * (1 + th.as_tensor(t))

    def q_value(a: th.Tensor) -> th.Tensor:
        return -((a - 0.3) ** 2).sum(dim=-1)

    x0, noise = 0.3 * th.randn(BATCH, DIM).double(), 0.1 * th.randn(flow_steps, BATCH, DIM).double()
    flows, objective = SimpleNamespace(policy=v_theta, behavior_target=v_beta), Backpropagation()
    critics = Critics(lambda a: q_value(a)[None], lambda a: th.full((1, len(a)), th.nan), pessimism=0.5)
    its_path = objective.path(flows, PathNoise(x0, noise))
    cost = objective.adjoints(flows, its_path, objective.terminal(critics, its_path, w))
    backpropagated = th.autograd.grad(objective.loss(its_path, cost, lambda sigma: sigma), list(net.parameters()))

    # The full adjoint a_{k+1} = d cost-to-go / d x_{k+1}, step by step
    step, times = 1 / flow_steps, flow_times(flow_steps).double()
    sigma = memoryless_sigma(times)
    with th.no_grad():
        path = memoryless_path(v_theta, v_beta, x0, noise)

    def running_cost(x: th.Tensor, k: int) -> th.Tensor:
        return step / 2 * ((2 * (v_theta(x, times[k]) - v_beta(x, times[k])) / sigma[k]) ** 2).sum(dim=-1)

    def cost_to_go(x: th.Tensor, k: int) -> th.Tensor:
        if k == flow_steps:
            return -w / flow_steps * q_value(x)
        if k == flow_steps - 1:
            # follows the behavior flow, and costs nothing
            return cost_to_go(x + step * v_beta(x, times[k]), k + 1)
        x_next = x + step * (2 * v_theta(x, times[k]) - x / (times[k] + step)) + step**0.5 * sigma[k] * noise[k]
        return running_cost(x, k) + cost_to_go(x_next, k + 1)

    adjoints = th.zeros(flow_steps - 1, BATCH, DIM).double()
    for k in range(flow_steps - 1):
        x = path[k + 1].clone().requires_grad_()
        (adjoints[k],) = th.autograd.grad(cost_to_go(x, k + 1).sum(), x)
    states, times = path[:-2], times[:-1]
    loss = matching_loss(v_theta(states, times), v_beta(states, times), sigma[:-1], adjoints) / 2
    for ours, expected in zip(backpropagated, th.autograd.grad(loss, list(net.parameters())), strict=True):
        th.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
