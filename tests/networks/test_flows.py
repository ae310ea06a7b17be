"""Flow matching and the integration of flows."""

import math
from typing import Any

import pytest
import torch as th
from torch import nn
from torch.nn.utils import prune

from sb3_qam import QAM, FlowPolicy
from sb3_qam.networks import VelocityField
from sb3_qam.networks.flows import FlowDivergence, check_ode_method, flow_matching_loss, integrate_flow
from sb3_qam.networks.layers import TanhGELU

METHODS = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"]
METHODS += ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver"]


def test_flow_matching_loss_is_the_weighted_mean_squared_error_of_the_velocity():
    actions, x0, t = th.randn(6, 2), th.randn(6, 2), th.rand(6, 1)
    weights = th.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    loss = flow_matching_loss(lambda x, time: x * time, actions, x0, t, weights)
    expected = 0.0
    for i in range(6):
        for d in range(2):
            x_t = (1 - t[i, 0]) * x0[i, d] + t[i, 0] * actions[i, d]
            expected += weights[i] * (x_t * t[i, 0] - (actions[i, d] - x0[i, d])) ** 2 / 2 / 6
    th.testing.assert_close(loss, th.as_tensor(expected))


def test_euler_makes_the_steps_of_the_paper():
    x0 = th.randn(5, 3)
    x = x0
    for k in range(7):
        x = x + (th.sin(x) + k / 7) / 7
    th.testing.assert_close(integrate_flow(lambda x, t: th.sin(x) + t, x0, flow_steps=7), x)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_torchdiffeq_solves_the_flow(method: str):
    # dx/dt = -x + t has the solution x(1) = x(0) / e + 1 / e
    x0 = th.randn(5, 3)
    exact = (x0 + 1) / math.e
    solution = integrate_flow(lambda x, t: -x + t, x0, flow_steps=10, method=method)
    th.testing.assert_close(solution, exact, rtol=0, atol=0.1 if method == "euler" else 5e-3)
    check_ode_method(method, None)


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")
def test_a_solver_of_scipy_that_gives_up_on_the_way_is_found():
    # dx/dt = 10 x^2 is infinite at t = 0.1
    with pytest.raises(FlowDivergence, match=r"'scipy_solver' does not reach the end of the flow \(2 of 11 steps\)"):
        integrate_flow(lambda x, t: 10 * x**2, th.ones(1, 1), 10, method="scipy_solver", options={"solver": "RK45"})


def test_a_limit_of_steps_that_is_too_low_is_named():
    with pytest.raises(FlowDivergence, match=r"max_num_steps exceeded \(5>=5\).* more steps in ode_options"):
        integrate_flow(lambda x, t: th.sin(99 * x), th.ones(1, 1), 1, method="bosh3", options={"max_num_steps": 5})


def test_tolerances_and_solver_options_reach_torchdiffeq():
    def evaluations(**options: float) -> int:
        calls = []
        integrate_flow(
            lambda x, t: (calls.append(t), th.sin(20 * x))[1], th.ones(1, 1), 1, method="dopri5", options=options
        )
        return len(calls)

    assert evaluations(rtol=1e-6, atol=1e-6) > evaluations(rtol=1e-1, atol=1e-1)
    # a fixed-step solver takes its own step size
    coarse = integrate_flow(lambda x, t: x, th.ones(1), 1, method="euler", options={"step_size": 0.5})
    assert coarse.item() == pytest.approx(1.5**2)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("eulr", None),
        ("", None),
        ("dopri5", {"step_t": "soon"}),
        ("euler", {"nonsense": 1}),
        ("dopri5", {"rtol": -1.0}),
        (None, None),
    ],
)
def test_what_torchdiffeq_cannot_use_is_refused_with_the_way_out(method: str, options: dict | None):
    with pytest.raises(ValueError, match=r"ode_method=.*euler"):
        check_ode_method(method, options)


class _PlusFive(nn.Sequential):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return super().forward(x) + 5.0


class _OwnNetwork(VelocityField):
    def _build(self, features_dim: int, action_dim: int, make_mlp: Any) -> None:
        self.mlp = _PlusFive(nn.Linear(features_dim + action_dim + 1, 16), TanhGELU(), nn.Linear(16, action_dim))


class _OwnForward(VelocityField):
    def forward(self, features: th.Tensor, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        return super().forward(features, x, t) + 5.0


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.linear(x).sin()


class _OwnModule(VelocityField):
    def _build(self, features_dim: int, action_dim: int, make_mlp: Any) -> None:
        self.mlp = _Block(features_dim + action_dim + 1, action_dim)


@pytest.mark.parametrize("field", [VelocityField, _OwnNetwork, _OwnForward, _OwnModule])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_velocity_of_ones_own_is_one_function(field: type[VelocityField], pruned: bool):
    """With a gradient, where autograd needs it, and without one, where it acts."""

    class Policy(FlowPolicy):
        def make_actor(self, network_class: Any, features_extractor: Any = None) -> Any:
            return super().make_actor(field if network_class is VelocityField else network_class, features_extractor)

    model = QAM(Policy, "Pendulum-v1", batch_size=8, learning_starts=10, policy_kwargs={"net_arch": [16]}).learn(14)
    flow = model.policy.policy_flow
    if pruned:
        linear = next(module for module in flow.mlp.modules() if isinstance(module, nn.Linear))
        prune.l1_unstructured(linear, "weight", amount=0.5)
    observations, x = th.randn(20, 3), th.randn(20, 1)
    with_gradient = flow.conditioned_on(observations)(x, 0.3)
    with th.no_grad():
        without, features = flow.conditioned_on(observations)(x, 0.3), flow.features(observations)
        th.testing.assert_close(without, with_gradient, rtol=1e-4, atol=1e-5)
        th.testing.assert_close(flow(features, x, 0.3), with_gradient, rtol=1e-4, atol=1e-5)
