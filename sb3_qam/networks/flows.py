"""Flows: velocities conditioned on observations, conditional flow matching, and the way from noise to an action.

x0 is noise, N(0, I), at flow time t = 0; x1 is an action at t = 1. Noise is always an argument.
"""

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch as th
from torchdiffeq import odeint

from sb3_qam.networks.cpu_kernels import ConditionedKernel, RecordingKernel
from sb3_qam.networks.mlp import MLP
from sb3_qam.utils.checks import check_in_range

# torchdiffeq's own tolerances (1e-7, 1e-9) are below what float32 can resolve.
DEFAULT_TOLERANCES = {"rtol": 1e-5, "atol": 1e-5}
_DIVERGED = (
    "ode_method={!r} does not reach the end of the flow ({}), whose velocities are too large or not finite. Go back to "
    "a checkpoint, or allow larger errors and more steps in ode_options."
)
# ``velocity(x, t)``: x of shape (..., action_dim), t a number or a tensor that broadcasts against (..., 1)
Velocity = Callable[[th.Tensor, th.Tensor | float], th.Tensor]


def as_tensor_beside(x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
    """
    :param x: Points
    :param t: Flow time
    :return: t as a tensor of the same type and device, without a copy from the host
    """
    return t.to(x) if isinstance(t, th.Tensor) else x.new_full((1, 1), t)


def broadcast_features(features: th.Tensor, like: th.Tensor) -> th.Tensor:
    """
    :param features: Features of the observations, must broadcast against (..., features_dim)
    :param like: What they are to stand beside, shape (..., any)
    :return: shape (..., features_dim)
    """
    return features.expand(*like.shape[:-1], -1)


class FlowDivergence(FloatingPointError):
    """A solver that chooses its own steps has found no way to the end of a flow."""


class ConditionedVelocity:
    """
    The velocity v(s, x, t) of a network, conditioned on states s.

    :param mlp: The network, a function of features, x and t side by side
    :param features: Features of the states, shape (batch, features_dim)
    """

    def __init__(self, mlp: MLP, features: th.Tensor) -> None:
        self.mlp = mlp
        self.features = features

    @cached_property
    def kernel(self) -> ConditionedKernel | None:
        """The fast evaluation of this velocity on a CPU, where there is one."""
        # A subclass may compute something else
        return ConditionedKernel.of(self.mlp, self.features) if type(self.mlp) is MLP else None

    def __call__(self, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        """
        :param x: Points on the way from noise to action, shape (..., batch, action_dim)
        :param t: Flow time in [0, 1], a number or a tensor that broadcasts against (..., 1)
        :return: The velocity dx/dt, same shape as x
        """
        if not th.is_grad_enabled() and self.kernel is not None:
            velocity = self.kernel(x, t)
            if velocity is not None:
                return velocity
        time = as_tensor_beside(x, t).expand(*x.shape[:-1], 1)
        return self.mlp(th.cat([broadcast_features(self.features, x), x, time], dim=-1))


def kernel_of(velocity: Velocity, x: th.Tensor) -> ConditionedKernel | None:
    """
    :param velocity: Any velocity
    :param x: Where it will be evaluated, shape (batch, action_dim)
    :return: Its fast evaluation, where there is one for these points
    """
    kernel = velocity.kernel if isinstance(velocity, ConditionedVelocity) else None
    return kernel if kernel is not None and kernel.takes(x) else None


def vector_jacobian_product(velocity: Velocity, x: th.Tensor, t: float, cotangent: th.Tensor) -> th.Tensor:
    """
    :param velocity: v
    :param x: Points, shape (batch, action_dim)
    :param t: Flow time
    :param cotangent: A vector for each point, same shape
    :return: cotangent^T dv/dx, same shape
    """
    kernel = kernel_of(velocity, x)
    if kernel is not None:
        return kernel.vector_jacobian_product(x, t, cotangent)
    with th.enable_grad():
        x = x.detach().requires_grad_()
        (product,) = th.autograd.grad(velocity(x, t), x, grad_outputs=cotangent)
    return product


class Recorder:
    """
    Evaluates a velocity without gradient, and afterwards gives all that it gave with gradient.

    :param velocity: The velocity
    """

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity
        self._points: list[tuple[th.Tensor, th.Tensor]] = []

    @th.no_grad()
    def __call__(self, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        """
        :param x: Points, shape (batch, action_dim)
        :param t: Flow time
        :return: The velocity, same shape
        """
        self._points.append((x, as_tensor_beside(x, t).view(1, 1)))
        return self.velocity(x, t)

    def velocities(self) -> th.Tensor:
        """:return: All velocities so far, with gradient, shape (calls, batch, action_dim)"""
        points, times = zip(*self._points, strict=True)
        return self.velocity(th.stack(points), th.stack(times))


def recorder(velocity: Velocity, x: th.Tensor) -> Recorder | RecordingKernel:
    """
    :param velocity: A velocity
    :param x: Where it will be evaluated, shape (batch, action_dim)
    :return: The velocity, remembering where it was evaluated
    """
    kernel = kernel_of(velocity, x)
    return Recorder(velocity) if kernel is None else RecordingKernel(kernel)


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
    :raises FlowDivergence: if an adaptive method does not reach t = 1; a fixed-step method gives what is not finite
    """
    if method == "euler" and not options:
        return euler_steps(velocity, x0, flow_steps)
    solver_options = dict(options or {})
    tolerances = {name: solver_options.pop(name, default) for name, default in DEFAULT_TOLERANCES.items()}
    times = th.linspace(0, 1, flow_steps + 1, dtype=x0.dtype, device=x0.device)
    try:
        path = odeint(lambda t, x: velocity(x, t), x0, times, method=method, options=solver_options, **tolerances)
    except AssertionError as error:
        raise FlowDivergence(_DIVERGED.format(method, error)) from error
    if len(path) < len(times):
        # SciPy gives what it has
        raise FlowDivergence(_DIVERGED.format(method, f"{len(path)} of {len(times)} steps"))
    return path[-1]


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
