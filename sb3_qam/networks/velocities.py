"""Velocities of flows as functions of x and t, conditioned on the observations."""

from collections.abc import Callable
from functools import cached_property

import torch as th

from sb3_qam.networks.cpu_kernels import ConditionedKernel, RecordingKernel
from sb3_qam.networks.mlp import MLP

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
    def _kernel(self) -> ConditionedKernel | None:
        return ConditionedKernel.of(self.mlp, self.features)

    def __call__(self, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        """
        :param x: Points on the way from noise to action, shape (..., batch, action_dim)
        :param t: Flow time in [0, 1], a number or a tensor that broadcasts against (..., 1)
        :return: The velocity dx/dt, same shape as x
        """
        if not th.is_grad_enabled() and self._kernel is not None:
            velocity = self._kernel(x, t)
            if velocity is not None:
                return velocity
        time = as_tensor_beside(x, t).expand(*x.shape[:-1], 1)
        return self.mlp(th.cat([broadcast_features(self.features, x), x, time], dim=-1))

    def kernel_for(self, x: th.Tensor) -> ConditionedKernel | None:
        """
        :param x: Points, shape (batch, action_dim)
        :return: The fast evaluation of this velocity on a CPU, where there is one for these points
        """
        return self._kernel if self._kernel is not None and self._kernel.takes(x) else None


def kernel_of(velocity: Velocity, x: th.Tensor) -> ConditionedKernel | None:
    """
    :param velocity: Any velocity
    :param x: Where it will be evaluated, shape (batch, action_dim)
    :return: Its fast evaluation, where there is one
    """
    return velocity.kernel_for(x) if isinstance(velocity, ConditionedVelocity) else None


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
        """
        :return: All velocities so far, with gradient, shape (calls, batch, action_dim)
        """
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
