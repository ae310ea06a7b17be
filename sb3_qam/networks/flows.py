"""Conditional flow matching and the sampling of flows, as pure functions of tensors.

x0 is noise, N(0, I), at flow time t = 0; x1 is an action at t = 1. Noise is always an argument.
"""

import warnings
from typing import Any

import torch as th
from torchdiffeq import odeint

from sb3_qam.networks.velocities import Velocity
from sb3_qam.utils.checks import check_in_range

# torchdiffeq's own tolerances (1e-7, 1e-9) are below what float32 can resolve.
DEFAULT_TOLERANCES = {"rtol": 1e-5, "atol": 1e-5}


def flow_matching_loss(
    velocity: Velocity,
    actions: th.Tensor,
    x0: th.Tensor,
    t: th.Tensor,
    weights: th.Tensor,
) -> th.Tensor:
    """
    Conditional flow matching (Lipman et al., arXiv 2210.02747) on the straight path from noise to action:
    E[ weight * mean_dims (v(x_t, t) - (a - x0))^2 ] with x_t = (1 - t) x0 + t a.

    :param velocity: The velocity being fitted
    :param actions: Actions a in [-1, 1], shape (batch, action_dim)
    :param x0: Standard normal noise, shape (batch, action_dim)
    :param t: Flow times, uniform in [0, 1], shape (batch, 1)
    :param weights: Weight of each sample, shape (batch,)
    :return: The loss, a scalar
    """
    x_t = (1 - t) * x0 + t * actions
    squared_error = (velocity(x_t, t) - (actions - x0)) ** 2
    return (weights * squared_error.mean(dim=-1)).mean()


def integrate_flow(
    velocity: Velocity,
    x0: th.Tensor,
    flow_steps: int,
    method: str = "euler",
    options: dict[str, Any] | None = None,
) -> th.Tensor:
    """
    Solve dx/dt = v(x, t) from t = 0 to t = 1 with torchdiffeq.

    Fixed-step methods make ``flow_steps`` equal steps; with ``method="euler"`` this is the paper's sampler, whose steps
    are made here: they are the same as torchdiffeq's, without its bookkeeping. Adaptive methods choose their own steps.

    :param velocity: The velocity of the flow
    :param x0: Noise, shape (..., action_dim)
    :param flow_steps: Number of steps of a fixed-step method
    :param method: Any method of ``torchdiffeq.odeint``
    :param options: ``rtol`` and ``atol`` (1e-5 by default), everything else goes to the solver
    :return: The solution at t = 1, same shape as ``x0``
    :raises ValueError: if torchdiffeq does not know the method
    """
    if method == "euler" and not options:
        return euler_steps(velocity, x0, flow_steps)
    solver_options = dict(options or {})
    tolerances = {name: solver_options.pop(name, default) for name, default in DEFAULT_TOLERANCES.items()}
    times = th.linspace(0, 1, flow_steps + 1, dtype=x0.dtype, device=x0.device)
    return odeint(lambda t, x: velocity(x, t), x0, times, method=method, options=solver_options, **tolerances)[-1]


def euler_steps(velocity: Velocity, x0: th.Tensor, flow_steps: int) -> th.Tensor:
    """
    :param velocity: The velocity of the flow
    :param x0: Noise, shape (..., action_dim)
    :param flow_steps: Number of steps
    :return: x at t = 1, same shape
    """
    x = x0
    for k in range(flow_steps):
        x = th.add(x, velocity(x, k / flow_steps), alpha=1 / flow_steps)
    return x


def check_ode_method(method: str, options: dict[str, Any] | None) -> None:
    """
    Refuse a method or an option that torchdiffeq does not take, by solving a tiny problem with them.

    :param method: Name of a torchdiffeq method
    :param options: As in :func:`integrate_flow`
    :raises ValueError: naming the method and torchdiffeq's own complaint
    """
    try:
        if not isinstance(method, str):
            raise TypeError("the method is a name")
        for name in DEFAULT_TOLERANCES:
            check_in_range(name, (options or {}).get(name, 1.0), 0, low_excluded=True)
        with warnings.catch_warnings():
            # Of an option that it does not know torchdiffeq only warns
            warnings.simplefilter("error")
            integrate_flow(lambda x, t: -x, th.ones(1, 1), flow_steps=4, method=method, options=options)
    except Exception as error:
        # torchdiffeq raises anything from ValueError to AssertionError here, depending on the solver
        raise ValueError(
            f"torchdiffeq cannot integrate with ode_method={method!r}, ode_options={options!r}: {error}. "
            "Use a fixed-step method such as 'euler', 'midpoint' or 'rk4', "
            "or an adaptive one such as 'dopri5' with ode_options={'rtol': 1e-4, 'atol': 1e-4}."
        ) from error
