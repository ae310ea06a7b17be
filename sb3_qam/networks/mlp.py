"""The layers of the networks, and how a whole network of them is evaluated."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_qam.networks.cpu_kernels import (
    Layer,
    backpropagate,
    evaluate,
    evaluate_and_save,
    input_gradient,
    parameter_gradients,
)

# Flax's default, which the published numbers were made with; PyTorch's own is 1e-5.
LAYER_NORM_EPS = 1e-6


class TanhGELU(nn.GELU):
    """GELU in its tanh approximation, the activation of the published networks."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


class EnsembleLinear(nn.Module):
    """
    ``n_members`` linear layers evaluated by one batched product. Each kernel is Xavier-uniform, biases are zero.

    :param n_members: Number of independent layers
    :param in_features: Size of each input
    :param out_features: Size of each output
    """

    def __init__(self, n_members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.empty(n_members, in_features, out_features))
        self.bias = nn.Parameter(th.zeros(n_members, out_features))
        for kernel in self.weight:
            nn.init.xavier_uniform_(kernel)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: shape (n_members, batch, in_features)
        :return: shape (n_members, batch, out_features)
        """
        return th.baddbmm(self.bias.unsqueeze(1), inputs, self.weight)


class EnsembleLayerNorm(nn.Module):
    """
    Layer normalization over the last axis, with one scale and one bias per ensemble member.

    :param n_members: Number of ensemble members
    :param n_features: Size of the normalized axis
    """

    def __init__(self, n_members: int, n_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.ones(n_members, n_features))
        self.bias = nn.Parameter(th.zeros(n_members, n_features))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: shape (n_members, batch, n_features)
        :return: same shape
        """
        # ONNX wants a constant shape, which that of the parameters is
        normalized = F.layer_norm(inputs, self.weight.shape[-1:], eps=LAYER_NORM_EPS)
        return th.addcmul(self.bias.unsqueeze(1), normalized, self.weight.unsqueeze(1))


def xavier_linear(in_features: int, out_features: int) -> nn.Linear:
    """
    :param in_features: Size of the input
    :param out_features: Size of the output
    :return: A linear layer with a Xavier-uniform kernel and a zero bias
    """
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """
    A network of linear layers, each but the last one followed by an activation and, perhaps, a normalization; or an
    ensemble of such networks.

    Layers of the kinds that :func:`create_mlp` makes by default are evaluated together on a CPU
    (:mod:`sb3_qam.networks.cpu_kernels`), all others one after the other.

    :param layers: The layers in order
    :param n_members: Number of members of an ensemble, ``None`` for a single network
    """

    def __init__(self, *layers: nn.Module, n_members: int | None = None) -> None:
        super().__init__(*layers)
        self.n_members = n_members

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: shape (..., in_features)
        :return: shape (..., out_features), of an ensemble (n_members, ..., out_features)
        """
        members = self.fused_members()
        if members is None:
            # Autocast would have what follows in its type too
            return self._module_by_module(inputs).to(inputs.dtype)
        rows = inputs.flatten(end_dim=-2)
        parameters = [part for module in self for part in module._parameters.values() if part is not None]
        if th.is_grad_enabled() and (rows.requires_grad or any(part.requires_grad for part in parameters)):
            outputs = FusedNetworks.apply(rows, members, self.n_members is not None, *parameters)
        else:
            outputs = th.stack([evaluate(member, rows) for member in members])
        shape = inputs.shape[:-1] if self.n_members is None else (self.n_members, *inputs.shape[:-1])
        return outputs.view(*shape, -1)

    def _module_by_module(self, inputs: th.Tensor) -> th.Tensor:
        if self.n_members is None:
            return super().forward(inputs)
        outputs = super().forward(inputs.flatten(end_dim=-2).expand(self.n_members, -1, -1))
        return outputs.view(self.n_members, *inputs.shape[:-1], -1)

    def fused_members(self) -> list[list[Layer]] | None:
        """
        :return: The layers of each member, as views of the parameters, or as copies in bfloat16 where autocast asks
            for it; ``None`` if they cannot be evaluated together, or are being exported to ONNX
        """
        dtype = th.get_autocast_dtype("cpu") if th.is_autocast_enabled("cpu") else th.float32
        # In a file there are to be the operators of the modules
        if th.onnx.is_in_onnx_export() or dtype not in (th.float32, th.bfloat16):
            return None
        kinds = LAYER_KINDS if self.n_members is None else ENSEMBLE_LAYER_KINDS
        layers: list[tuple[Any, ...]] = []
        # What may come next: a linear layer may be the last one
        expected: tuple[type, ...] = (kinds[0],)
        for module in self:
            if type(module) not in expected:
                return None
            if isinstance(module, TanhGELU):
                expected = (kinds[0], kinds[1])
                continue
            # Not parameters(), which takes longer than a product of small matrices
            parameters = [part.detach() for part in module._parameters.values() if part is not None]
            if len(parameters) != 2 or parameters[0].device.type != "cpu" or parameters[0].dtype != th.float32:
                return None
            if type(module) is kinds[0]:
                layers.append((*(part.to(dtype) for part in parameters), None, None, 0.0))
                expected = (TanhGELU,)
            else:
                eps = getattr(module, "eps", LAYER_NORM_EPS)
                layers[-1] = (*layers[-1][:2], *parameters, eps)
                expected = (kinds[0],)
        if expected != (TanhGELU,):
            return None
        if self.n_members is None:
            return [[Layer(*layer) for layer in layers]]
        return [
            [
                Layer(
                    weight[i].t(),
                    bias[i],
                    None if scale is None else scale[i],
                    None if shift is None else shift[i],
                    eps,
                )
                for weight, bias, scale, shift, eps in layers
            ]
            for i in range(self.n_members)
        ]


LAYER_KINDS = (nn.Linear, nn.LayerNorm)
ENSEMBLE_LAYER_KINDS = (EnsembleLinear, EnsembleLayerNorm)


class FusedNetworks(th.autograd.Function):
    """
    An MLP as one node of autograd.
    """

    @staticmethod
    def forward(ctx: Any, inputs: th.Tensor, members: list[list[Layer]], is_ensemble: bool, *_: th.Tensor) -> th.Tensor:
        """
        :param inputs: shape (rows, in_features)
        :param members: The layers of each member
        :param is_ensemble: Whether parameters have an axis of members
        :return: shape (members, rows, out_features)
        """
        outputs, ctx.saved = zip(*(evaluate_and_save(layers, inputs) for layers in members), strict=True)
        ctx.members, ctx.is_ensemble = members, is_ensemble
        return th.stack(outputs)

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:
        needs_inputs, needs_parameters = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        of_inputs: th.Tensor | None = None
        of_members: list[list[th.Tensor]] = []
        for layers, saved, gradient in zip(ctx.members, ctx.saved, gradients.contiguous(), strict=True):
            deltas = backpropagate(layers, saved, gradient, of_norms=any(needs_parameters))
            if needs_inputs:
                part = input_gradient(deltas, layers[0].weight)
                of_inputs = part if of_inputs is None else of_inputs.add_(part)
            if any(needs_parameters):
                of_members.append(parameter_gradients(saved, deltas, weights_are_transposed=ctx.is_ensemble))
        of_parameters: list[th.Tensor | None] = [None] * len(needs_parameters)
        if ctx.is_ensemble and of_members:
            of_parameters = [th.stack(parts) for parts in zip(*of_members, strict=True)]
        elif of_members:
            of_parameters = list(of_members[0])
        return of_inputs, None, None, *of_parameters


def create_mlp(
    input_dim: int,
    output_dim: int | None,
    net_arch: list[int],
    activation_fn: Callable[[], nn.Module],
    make_linear: Callable[[int, int], nn.Module],
    make_norm: Callable[[int], nn.Module] | None,
    n_members: int | None = None,
) -> MLP:
    """
    Hidden layers of Linear -> activation -> normalization, then one linear layer where there is an output.

    SB3's ``create_mlp`` can only normalize before the activation; the published networks do it after.

    :param input_dim: Size of the input
    :param output_dim: Size of the output; ``None`` for hidden layers alone
    :param net_arch: Sizes of the hidden layers
    :param activation_fn: Makes an activation
    :param make_linear: Makes a linear layer from its input and output sizes
    :param make_norm: Makes a normalization layer from its size; none where it is ``None``
    :param n_members: Number of members of an ensemble, ``None`` for a single network
    :return: The layers in order
    """
    layers: list[nn.Module] = []
    for width in net_arch:
        layers += [make_linear(input_dim, width), activation_fn()]
        if make_norm is not None:
            layers.append(make_norm(width))
        input_dim = width
    if output_dim is not None:
        layers.append(make_linear(input_dim, output_dim))
    return MLP(*layers, n_members=n_members)
