"""Flow matching and the integration of flows."""

import math

import pytest
import torch as th

from sb3_qam.networks.flows import FlowDivergence, check_ode_method, flow_matching_loss, integrate_flow

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
