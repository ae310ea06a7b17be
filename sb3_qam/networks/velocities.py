"""Velocities of flows as functions of x and t, the observations being fixed, and what training asks of them."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch as th

from sb3_qam.networks.cpu_kernels import (
    Layer,
    Saved,
    backpropagate,
    evaluate,
    evaluate_and_save,
    input_gradient,
    outer,
    parameter_gradients,
)
from sb3_qam.networks.mlp import MLP

# ``velocity(x, t)``: x of shape (..., action_dim), t a number or a tensor that broadcasts against (..., 1)
Velocity = Callable[[th.Tensor, th.Tensor | float], th.Tensor]


def vector_jacobian_product(velocity: Velocity, x: th.Tensor, t: float, cotangent: th.Tensor) -> th.Tensor:
    """
    :param velocity: v
    :param x: Points, shape (batch, action_dim)
    :param t: Flow time
    :param cotangent: A vector for each point, same shape
    :return: cotangent^T dv/dx, same shape
    """
    if isinstance(velocity, GivenVelocity) and velocity.is_fused(x):
        return velocity.vector_jacobian_product(x, t, cotangent)
    with th.enable_grad():
        x = x.detach().requires_grad_()
        (product,) = th.autograd.grad(velocity(x, t), x, grad_outputs=cotangent)
    return product


def recorder(velocity: Velocity, x: th.Tensor) -> "Recorder":
    """
    :param velocity: A velocity
    :param x: Where it will be taken, shape (batch, action_dim)
    :return: A velocity that remembers what it was asked
    """
    if isinstance(velocity, GivenVelocity) and velocity.is_fused(x):
        return FusedRecorder(velocity)
    return Recorder(velocity)


class Recorder:
    """
    A velocity without gradient, which afterwards gives all that it gave with gradient.

    :param velocity: The velocity
    """

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity
        self._points: list[tuple[th.Tensor, th.Tensor]] = []

    @th.no_grad()
    def __call__(self, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        """
        :param x: shape (batch, action_dim)
        :param t: Flow time
        :return: The velocity, same shape
        """
        self._points.append((x, as_tensor_beside(x, t).view(1, 1)))
        return self.velocity(x, t)

    def velocities(self) -> th.Tensor:
        """
        :return: What was given so far, with gradient, shape (calls, batch, action_dim)
        """
        points, times = zip(*self._points, strict=True)
        return self.velocity(th.stack(points), th.stack(times))


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


class GivenVelocity:
    """
    The velocity v(s, x, t) of a network for fixed states s.

    :param mlp: The network, a function of features, x and t side by side
    :param features: Features of the states, shape (batch, features_dim)
    """

    def __init__(self, mlp: MLP, features: th.Tensor) -> None:
        self.mlp = mlp
        self.features = features

    def __call__(self, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        """
        :param x: Points on the way from noise to action, shape (..., batch, action_dim)
        :param t: Flow time in [0, 1], a number or a tensor that broadcasts against (..., 1)
        :return: The velocity dx/dt, same shape as x
        """
        if not th.is_grad_enabled() and x.dim() == 3 and self.is_fused(x[0]) and isinstance(t, th.Tensor):
            # One after the other: what one needs stays in the cache
            return th.stack([self(*each) for each in zip(x, t.expand(len(x), 1, 1), strict=True)])
        if not th.is_grad_enabled() and self._takes_rows(x.shape[:-1].numel()):
            return evaluate(self._layers, self._inputs(x, t)).view(x.shape)
        time = as_tensor_beside(x, t).expand(*x.shape[:-1], 1)
        return self.mlp(th.cat([broadcast_features(self.features, x), x, time], dim=-1))

    def is_fused(self, x: th.Tensor) -> bool:
        """
        :param x: Points
        :return: Whether there is a point for each state, and the network can be evaluated as a whole
        """
        return x.dim() == 2 and len(x) == len(self.features) and self._takes_rows(len(x))

    def _takes_rows(self, n_rows: int) -> bool:
        """
        What the first layer makes of the features must be that of each row, or of all.
        """
        return self.features.dim() == 2 and len(self.features) in (1, n_rows) and bool(self._members)

    @cached_property
    def _members(self) -> list[list[Layer]]:
        return self.mlp.fused_members() or []

    @cached_property
    def _layers(self) -> list[Layer]:
        """
        The network as a function of x and t alone: what the first layer makes of the features is part of its bias.
        """
        first, *others = self._members[0]
        of_features, of_point = first.weight.split(
            [self.features.shape[1], first.weight.shape[1] - self.features.shape[1]], 1
        )
        bias = th.addmm(first.bias, self.features.detach().to(of_features.dtype), of_features.t())
        return [first._replace(weight=of_point.contiguous(), bias=bias), *others]

    @staticmethod
    def _inputs(x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        inputs = x.new_empty(*x.shape[:-1], x.shape[-1] + 1)
        inputs[..., :-1] = x
        inputs[..., -1:] = t
        return inputs.flatten(end_dim=-2)

    def evaluate_and_save(self, x: th.Tensor, t: th.Tensor | float) -> tuple[th.Tensor, list[Saved]]:
        """
        :param x: Points, shape (batch, action_dim)
        :param t: Flow time
        :return: The velocity, same shape, and what its gradients need
        """
        return evaluate_and_save(self._layers, self._inputs(x, t))

    @th.no_grad()
    def vector_jacobian_product(self, x: th.Tensor, t: float, cotangent: th.Tensor) -> th.Tensor:
        """
        As the function :func:`vector_jacobian_product`, where :meth:`is_fused`.

        :param x: Points, shape (batch, action_dim)
        :param t: Flow time
        :param cotangent: A vector for each point, same shape
        :return: cotangent^T dv/dx, same shape
        """
        _, saved = self.evaluate_and_save(x, t)
        deltas = backpropagate(self._layers, saved, cotangent, of_norms=False)
        return input_gradient(deltas, self._of_x)

    @cached_property
    def _of_x(self) -> th.Tensor:
        # Without the column of the flow time
        return self._layers[0].weight[:, :-1].t().contiguous().t()


class FusedRecorder(Recorder):
    """
    A recorder that need not evaluate the network again: it keeps what the gradients need.

    :param velocity: The velocity, of a network that can be evaluated as a whole
    """

    velocity: GivenVelocity

    def __init__(self, velocity: GivenVelocity) -> None:
        super().__init__(velocity)
        self._values: list[th.Tensor] = []
        self._saved: list[list[Saved]] = []

    @th.no_grad()
    def __call__(self, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        value, saved = self.velocity.evaluate_and_save(x, t)
        self._values.append(value)
        self._saved.append(saved)
        return value

    def velocities(self) -> th.Tensor:
        given = self.velocity
        return RecordedVelocities.apply(
            given.features, given._layers, self._values, self._saved, *given.mlp.parameters()
        )


class RecordedVelocities(th.autograd.Function):
    """
    Several evaluations of a velocity for the same states as one node of autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: th.Tensor,
        layers: list[Layer],
        values: list[th.Tensor],
        saved: list[list[Saved]],
        *parameters: th.Tensor,
    ) -> th.Tensor:
        """
        :param features: Features of the states, shape (batch, features_dim)
        :param layers: The network as a function of x and t
        :param values: What it gave at each call, shapes (batch, action_dim)
        :param saved: What was kept at each call
        :param parameters: Of the network
        :return: shape (calls, batch, action_dim)
        """
        ctx.features, ctx.layers, ctx.saved = features, layers, saved
        ctx.of_features = parameters[0][:, : features.shape[1]]
        return th.stack(values)

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:
        sums: list[th.Tensor] = []
        # Call by call: what one needs stays in the cache
        for gradient, saved in zip(gradients, ctx.saved, strict=True):
            deltas = backpropagate(ctx.layers, saved, gradient)
            # The states are the same at each call: their part of the first layer takes the sum of its gradients
            parts = [*parameter_gradients(saved, deltas), deltas.pre[0].float()]
            sums = [total.add_(part) for total, part in zip(sums, parts, strict=True)] if sums else parts
        weight, *others, of_state = sums
        weight = th.cat([outer(of_state, ctx.features), weight], dim=1)
        of_features = th.mm(of_state, ctx.of_features).float() if ctx.needs_input_grad[0] else None
        return of_features, None, None, None, weight, *others
