"""The pure functions against closed forms and automatic differentiation."""

import pytest
import torch as th

from sb3_qam.networks.networks import TanhGELU
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
from sb3_qam.qam.policy_objectives import Backpropagation, PolicyProblem

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
    adjoints = lean_adjoint(lambda x, t: x @ matrix.T, th.randn(flow_steps + 1, BATCH, DIM), g_N)
    expected = g_N
    for k in reversed(range(flow_steps)):
        jacobian = 2 * matrix - th.eye(DIM) * flow_steps / (k + 1)
        expected = expected + expected @ jacobian / flow_steps
        th.testing.assert_close(adjoints[k], expected)


def test_lean_adjoint_is_back_propagation_through_the_behavior_drift():
    flow_steps, step = 4, 0.25
    path = th.randn(flow_steps + 1, BATCH, DIM)
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


def test_scalar_adjoint_is_the_lean_one_where_the_velocity_does_not_depend_on_x():
    flow_steps = 6
    path, g_N = th.randn(flow_steps + 1, BATCH, DIM), th.randn(BATCH, DIM)
    lean = lean_adjoint(lambda x, t: 0 * x + th.as_tensor(t), path, g_N)
    scalar = scalar_adjoint(nonlinear_velocity, path, g_N)
    th.testing.assert_close(scalar, lean, atol=1e-6, rtol=1e-5)
    for k in range(flow_steps):
        th.testing.assert_close(scalar[k], k / flow_steps * g_N)


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
    flow_steps, w = 5, 1.7
    net = th.nn.Sequential(th.nn.Linear(DIM + 1, 8), TanhGELU(), th.nn.Linear(8, DIM)).double()

    def v_theta(x: th.Tensor, t) -> th.Tensor:
        return net(th.cat([x, th.as_tensor(t, dtype=x.dtype).expand(*x.shape[:-1], 1)], dim=-1))

    def v_beta(x: th.Tensor, t) -> th.Tensor:
        return th.tanh(x) * (1 + th.as_tensor(t))

    def q_value(a: th.Tensor) -> th.Tensor:
        return -((a - 0.3) ** 2).sum(dim=-1)

    x0, noise = 0.3 * th.randn(BATCH, DIM).double(), 0.1 * th.randn(flow_steps, BATCH, DIM).double()
    problem = PolicyProblem(v_theta, v_beta, q_value, w, lambda sigma: sigma, x0, noise)
    backpropagated = th.autograd.grad(Backpropagation()(problem).loss, list(net.parameters()))

    # The full adjoint a_{k+1} = d cost-to-go / d x_{k+1}, step by step
    step, times = 1 / flow_steps, flow_times(flow_steps).double()
    sigma = memoryless_sigma(times)
    with th.no_grad():
        path = memoryless_path(v_theta, v_beta, x0, noise)

    def running_cost(x: th.Tensor, k: int) -> th.Tensor:
        return step / 2 * ((2 * (v_theta(x, times[k]) - v_beta(x, times[k])) / sigma[k]) ** 2).sum(dim=-1)

    def cost_to_go(x: th.Tensor, k: int) -> th.Tensor:
        if k == flow_steps:
            return -w * q_value(x.clamp(-1, 1))
        if k == flow_steps - 1:
            x_next = x + step * v_beta(x, times[k])
        else:
            x_next = x + step * (2 * v_theta(x, times[k]) - x / (times[k] + step)) + step**0.5 * sigma[k] * noise[k]
        return running_cost(x, k) + cost_to_go(x_next, k + 1)

    adjoints = th.zeros(flow_steps, BATCH, DIM).double()
    # the last step follows the behavior flow: the policy does not reach x_N by it
    for k in range(flow_steps - 1):
        x = path[k + 1].clone().requires_grad_()
        (adjoints[k],) = th.autograd.grad(cost_to_go(x, k + 1).sum(), x)
    loss = matching_loss(v_theta(path[:-1], times), v_beta(path[:-1], times), sigma, adjoints)
    for ours, expected in zip(backpropagated, th.autograd.grad(loss, list(net.parameters())), strict=True):
        th.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
