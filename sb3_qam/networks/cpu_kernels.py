r"""The fast evaluation of an MLP on a CPU, with fewer passes over memory than module by module.

An update of QAM evaluates small networks many times, and module by module the activations and the bookkeeping of
autograd take as long as the products. Here a whole network is one node of autograd, whose backward pass is written out.
The products are oneDNN's on CPUs with AVX-512, where they are up to twice as fast as the BLAS that ``torch.mm`` takes.

The rest of the package uses three of them: :func:`forward` of a whole network, :class:`ConditionedKernel` of a velocity
for fixed states, with its vector-Jacobian product, and :class:`RecordingKernel` of a velocity that is differentiated
later. There is none where layers are not of the default kinds, on other devices, in an export to ONNX, and inside
:func:`disabled`: then modules are evaluated one after the other, with the same result to float32 rounding
(``tests/networks/test_cpu_kernels.py``).

The functions on layers take and return 2-D tensors, and none builds a graph. An ensemble is a list of networks: the
products of one member after the other stay in the cache, those of a batched product do not. Where the weights are
bfloat16, so are the products and what goes from layer to layer. What goes in and comes out is float32 all the same:
inputs, outputs, and the gradients of inputs and parameters.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_qam.networks.layers import LAYER_NORM_EPS, EnsembleLayerNorm, EnsembleLinear, TanhGELU

# Where oneDNN's kernels are the faster ones (docs/guide/speed.md)
MIN_ROWS_FOR_ONEDNN, MIN_WIDTH_FOR_ONEDNN = 16, 64
# 1 + tanh(y) = 2 sigmoid(2 y)
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)
LAYER_KINDS = (nn.Linear, nn.LayerNorm)
ENSEMBLE_LAYER_KINDS = (EnsembleLinear, EnsembleLayerNorm)

_is_enabled = True


@contextmanager
def disabled() -> Iterator[None]:
    """Inside, all networks are evaluated module by module."""
    global _is_enabled
    before, _is_enabled = _is_enabled, False
    try:
        yield
    finally:
        _is_enabled = before


class Layer(NamedTuple):
    """
    One linear layer and what follows it.

    :param weight: shape (out, in), with any strides, float32 or bfloat16
    :param bias: shape (out,), or (rows, out) where the layer adds something else to each row; of the same type
    :param scale: Of the normalization after the activation, shape (out,); ``None`` where there is none
    :param shift: The same
    :param eps: Of the normalization
    """

    weight: th.Tensor
    bias: th.Tensor
    scale: th.Tensor | None = None
    shift: th.Tensor | None = None
    eps: float = 0.0


class Saved(NamedTuple):
    """
    What the gradients of a layer need.

    :param x: Its input, shape (rows, in)
    :param slope: The derivative of the activation, shape (rows, out); ``None`` for the last layer, and where h is kept
    :param h: What the linear part gives, same shape, where a float32 layer is normalized
    :param activation: What a normalization is given, same shape; ``None`` where there is none
    :param mean: Its mean over each row, shape (rows, 1)
    :param rstd: 1 / its standard deviation, same shape
    """

    x: th.Tensor
    slope: th.Tensor | None = None
    h: th.Tensor | None = None
    activation: th.Tensor | None = None
    mean: th.Tensor | None = None
    rstd: th.Tensor | None = None


class Deltas(NamedTuple):
    """
    :param pre: Gradient of what each layer's linear part gives, shapes (rows, out)
    :param of_norms: Gradients of scale and shift of each layer; nothing where there are none
    """

    pre: list[th.Tensor]
    of_norms: list[tuple[th.Tensor, ...]]


# Whether this build of PyTorch has the linear layers of oneDNN that its own compiler uses
HAS_ONEDNN = th.backends.mkldnn.is_available() and hasattr(th.ops.mkldnn, "_linear_pointwise")
HAS_BFLOAT16 = HAS_ONEDNN and th.ops.mkldnn._is_mkldnn_bf16_supported()
# With AVX2 alone, BLAS is the faster one, and oneDNN's GELU takes as long as a product (benchmarks/README.md)
ONEDNN_IS_FASTER = HAS_ONEDNN and th.backends.cpu.get_cpu_capability().startswith("AVX512")


def _takes_onednn(x: th.Tensor) -> bool:
    # Of bfloat16, th.mm takes oneDNN's products itself
    return ONEDNN_IS_FASTER and x.shape[0] >= MIN_ROWS_FOR_ONEDNN and x.dtype == th.float32


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    :param x: shape (rows, in)
    :param weight: shape (out, in), contiguous or transposed; a slice of columns takes oneDNN a hundred times longer
    :param bias: shape (out,) or (rows, out)
    :return: ``x @ weight.T + bias``, shape (rows, out)
    """
    if _takes_onednn(x) and (bias is None or bias.dim() == 1):
        return th.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return th.mm(x, weight.t()) if bias is None else th.addmm(bias, x, weight.t())


def linear_gelu(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    :param x: shape (rows, n_in)
    :param weight: shape (n_out, n_in)
    :param bias: shape (n_out,), or (rows, n_out)
    :return: GELU of what :func:`linear` gives, shape (rows, n_out), without a pass of its own where oneDNN does it
    """
    # Of bfloat16 its linear layers take no transposed weights
    takes_onednn = _takes_onednn(x) if x.dtype == th.float32 else HAS_BFLOAT16 and weight.is_contiguous()
    if takes_onednn and bias.dim() == 1:
        return th.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    h = th.addmm(bias, x, weight.t())
    if h.dtype == th.bfloat16:
        return F.gelu(h, approximate="tanh")
    gate = th.addcmul(h.new_full((), GELU_SLOPE), h, h, value=0.044715 * GELU_SLOPE)
    return gate.mul_(h).sigmoid_().mul_(h)


def gelu_and_slope(h: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    GELU by the sigmoid, which its tanh approximation is the same as: PyTorch's own takes as long for one of the two as
    this for both, and longer in bfloat16.

    :param h: shape (rows, width), float32 or bfloat16
    :return: GELU of h and its derivative, same shape and type
    """
    inner, gate, bump, x = _scratch(threading.get_ident(), h.shape)
    # What is given back must not be scratch, in bfloat16 it is converted
    is_copy = h.dtype == th.bfloat16
    x = x.copy_(h) if is_copy else h
    # gate = sigmoid(inner x), with inner = c + 0.044715 c x^2
    th.addcmul(x.new_full((), GELU_SLOPE), x, x, value=0.044715 * GELU_SLOPE, out=inner)
    th.mul(inner, x, out=gate).sigmoid_()
    value = x.mul_(gate) if is_copy else x * gate
    # slope = gate + bump (3 inner - 2 c), with bump = value (1 - gate)
    th.addcmul(value, value, gate, value=-1, out=bump)
    inner.sub_(2 / 3 * GELU_SLOPE)
    slope = th.addcmul(gate, bump, inner, value=3, out=gate if is_copy else None)
    return value.to(h.dtype), slope.to(h.dtype)


@lru_cache(maxsize=8)
def _scratch(thread: int, shape: th.Size) -> tuple[th.Tensor, ...]:
    """Memory of this size is given back to the system and cleared at every use, which takes longer than to use it."""
    return tuple(th.empty(shape) for _ in range(4))


def outer(a: th.Tensor, b: th.Tensor) -> th.Tensor:
    """
    The product of weight gradients.

    :param a: shape (rows, n)
    :param b: shape (rows, m)
    :return: ``a.T @ b``, shape (n, m), float32
    """
    if _takes_onednn(a) and min(a.shape[1], b.shape[1]) > MIN_WIDTH_FOR_ONEDNN:
        return th.ops.mkldnn._linear_pointwise(a.t(), b.t(), None, "none", [], "")
    return th.mm(a.t(), b).float()


def evaluate(layers: Sequence[Layer], x: th.Tensor) -> th.Tensor:
    """
    :param layers: A network; the last layer is linear alone
    :param x: shape (rows, in)
    :return: Its output, shape (rows, out)
    """
    x = x.to(layers[0].weight.dtype)
    for weight, bias, scale, shift, eps in layers[:-1]:
        x = linear_gelu(x, weight, bias)
        if scale is not None:
            x = th.layer_norm(x, scale.shape, scale, shift, eps)
    return linear(x, layers[-1].weight, layers[-1].bias).float()


def evaluate_and_save(layers: Sequence[Layer], x: th.Tensor) -> tuple[th.Tensor, list[Saved]]:
    """
    :param layers: A network
    :param x: shape (rows, in)
    :return: Its output, and what the gradients of each layer need
    """
    saved = []
    x = x.to(layers[0].weight.dtype)
    for weight, bias, scale, shift, eps in layers[:-1]:
        h = linear(x, weight, bias)
        if scale is None or h.dtype == th.bfloat16:
            activation, slope = gelu_and_slope(h)
            kept = Saved(x, slope)
        else:
            # Rounding errors of PyTorch's own are smaller by a fifth: the critics' mean, which may cancel, shows it
            activation = F.gelu(h, approximate="tanh")
            kept = Saved(x, h=h)
        if scale is None or shift is None:
            x = activation
        else:
            x, mean, rstd = th.native_layer_norm(activation, scale.shape, scale, shift, eps)
            kept = kept._replace(activation=activation, mean=mean, rstd=rstd)
        saved.append(kept)
    saved.append(Saved(x))
    return linear(x, layers[-1].weight, layers[-1].bias).float(), saved


def backpropagate(
    layers: Sequence[Layer], saved: Sequence[Saved], gradient: th.Tensor, of_norms: bool = True
) -> Deltas:
    """
    :param layers: A network
    :param saved: What :func:`evaluate_and_save` kept
    :param gradient: Gradient of the output, shape (rows, out)
    :param of_norms: Whether the gradients of normalizations are needed
    :return: Gradients inside the network
    """
    pre: list[th.Tensor] = [gradient.to(layers[-1].weight.dtype)]
    norms: list[tuple[th.Tensor, ...]] = [()]
    for layer, below, kept in zip(reversed(layers[1:]), reversed(layers[:-1]), reversed(saved[:-1]), strict=True):
        # Of a single output the product is one of numbers
        weight = layer.weight
        of_output = linear(pre[-1], weight.t()) if weight.shape[0] > 1 else pre[-1] * weight
        of_norm: list[th.Tensor] = []
        if below.scale is not None:
            assert kept.activation is not None  # for mypy
            # In bfloat16 it would also sum over the rows in bfloat16
            of_output, *of_norm = th.ops.aten.native_layer_norm_backward(
                of_output.float() if of_norms else of_output,
                kept.activation.float() if of_norms else kept.activation,
                below.scale.shape,
                kept.mean,
                kept.rstd,
                below.scale,
                below.shift,
                [True, of_norms, of_norms],
            )
        if kept.slope is not None:
            pre.append(of_output.to(weight.dtype).mul_(kept.slope))
        else:
            assert kept.h is not None  # for mypy
            pre.append(th.ops.aten.gelu_backward(of_output, kept.h, approximate="tanh"))
        norms.append(tuple(of_norm))
    return Deltas(pre[::-1], norms[::-1])


def input_gradient(deltas: Deltas, weight: th.Tensor) -> th.Tensor:
    """
    :param deltas: What :func:`backpropagate` gave
    :param weight: Of the first layer, shape (out, in), or those of its columns whose inputs are meant
    :return: Gradient of the inputs, shape (rows, in)
    """
    return linear(deltas.pre[0], weight.t()).float()


def parameter_gradients(
    saved: Sequence[Saved], deltas: Deltas, weights_are_transposed: bool = False
) -> list[th.Tensor]:
    """
    :param saved: What :func:`evaluate_and_save` kept
    :param deltas: What :func:`backpropagate` gave
    :param weights_are_transposed: Whether to give gradients of weights the shape (in, out)
    :return: Of one layer after the other the gradients of weight and bias, and of scale and shift where there are any
    """
    gradients = []
    for kept, pre, of_norm in zip(saved, deltas.pre, deltas.of_norms, strict=True):
        of_weight = outer(kept.x, pre) if weights_are_transposed else outer(pre, kept.x)
        gradients += [of_weight, pre.sum(dim=0, dtype=th.float32), *of_norm]
    return gradients


def members_of(mlp: nn.Sequential, n_members: int | None = None) -> list[list[Layer]] | None:
    """
    :param mlp: A network
    :param n_members: Number of members of an ensemble, ``None`` for a single network
    :return: The layers of each member, as views of the parameters, or as copies in bfloat16 where autocast asks
        for it; ``None`` if they cannot be evaluated together, or are being exported
    """
    dtype = th.get_autocast_dtype("cpu") if th.is_autocast_enabled("cpu") else th.float32
    # In a file there are to be the operators of the modules
    is_exported = th.onnx.is_in_onnx_export() or th.compiler.is_exporting()
    if not _is_enabled or is_exported or dtype not in (th.float32, th.bfloat16):
        return None
    kinds = LAYER_KINDS if n_members is None else ENSEMBLE_LAYER_KINDS
    layers: list[tuple[Any, ...]] = []
    # What may come next: a linear layer may be the last one
    expected: tuple[type, ...] = (kinds[0],)
    for module in mlp:
        if type(module) not in expected:
            return None
        if isinstance(module, TanhGELU):
            expected = (kinds[0], kinds[1])
            continue
        if [*module._parameters] != ["weight", "bias"] or module._forward_pre_hooks or module._forward_hooks:
            # Such as one that is pruned
            return None
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
    if n_members is None:
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
        for i in range(n_members)
    ]


def forward(mlp: nn.Sequential, n_members: int | None, inputs: th.Tensor) -> th.Tensor | None:
    """
    :param mlp: A network, or an ensemble
    :param n_members: Number of members of an ensemble, ``None`` for a single network
    :param inputs: shape (..., in_features)
    :return: shape (..., out_features), of an ensemble (n_members, ..., out_features); ``None`` where it cannot be
        evaluated here
    """
    members = members_of(mlp, n_members)
    if members is None:
        return None
    rows = inputs.flatten(end_dim=-2)
    parameters = [part for module in mlp for part in module._parameters.values() if part is not None]
    if th.is_grad_enabled() and (rows.requires_grad or any(part.requires_grad for part in parameters)):
        outputs = FusedNetworks.apply(rows, members, n_members is not None, *parameters)
    else:
        outputs = th.stack([evaluate(member, rows) for member in members])
    shape = inputs.shape[:-1] if n_members is None else (n_members, *inputs.shape[:-1])
    return outputs.view(*shape, -1)


class FusedNetworks(th.autograd.Function):
    """An MLP as one node of autograd."""

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


class ConditionedKernel:
    """
    A velocity field for fixed states as a function of x and t alone: what its first layer makes of the features is
    part of that layer's bias.

    :param mlp: The network, a function of features, x and t side by side
    :param features: Features of the states, shape (batch, features_dim)
    :param layers: Of the network, as :func:`members_of` gives them
    """

    def __init__(self, mlp: nn.Sequential, features: th.Tensor, layers: list[Layer]) -> None:
        self.mlp, self.features = mlp, features
        first, *others = layers
        n_features = features.shape[1]
        of_features, of_point = first.weight.split([n_features, first.weight.shape[1] - n_features], 1)
        bias = th.addmm(first.bias, features.detach().to(of_features.dtype), of_features.t())
        self.layers = [first._replace(weight=of_point.contiguous(), bias=bias), *others]

    @classmethod
    def of(cls, mlp: nn.Sequential, features: th.Tensor) -> "ConditionedKernel | None":
        """
        :param mlp: The network
        :param features: Features of the states, shape (batch, features_dim)
        :return: The kernel, ``None`` where there is none
        """
        members = members_of(mlp) if features.dim() == 2 else None
        return None if members is None else cls(mlp, features, members[0])

    def takes(self, x: th.Tensor) -> bool:
        """
        :param x: Points, shape (..., action_dim)
        :return: Whether there is a point for each state
        """
        return x.dim() == 2 and len(x) == len(self.features)

    def __call__(self, x: th.Tensor, t: th.Tensor | float) -> th.Tensor | None:
        """
        :param x: Points, shape (..., batch, action_dim)
        :param t: Flow time, a number or a tensor that broadcasts against (..., 1)
        :return: The velocity without gradient, same shape as x; ``None`` where rows and states do not fit
        """
        if x.dim() == 3 and self.takes(x[0]) and isinstance(t, th.Tensor):
            # Step by step: what a step needs stays in the cache
            steps = zip(x, t.expand(len(x), 1, 1), strict=True)
            return th.stack([evaluate(self.layers, self._inputs(*each)) for each in steps])
        if len(self.features) not in (1, x.shape[:-1].numel()):
            return None
        return evaluate(self.layers, self._inputs(x, t)).view(x.shape)

    @staticmethod
    def _inputs(x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        if not isinstance(t, th.Tensor):
            # One call instead of four, each of which takes as long as a small product
            return th.constant_pad_nd(x, (0, 1), t).flatten(end_dim=-2)
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
        return evaluate_and_save(self.layers, self._inputs(x, t))

    @th.no_grad()
    def vector_jacobian_product(self, x: th.Tensor, t: float, cotangent: th.Tensor) -> th.Tensor:
        """
        :param x: Points, shape (batch, action_dim)
        :param t: Flow time
        :param cotangent: A vector for each point, same shape
        :return: cotangent^T dv/dx, same shape
        """
        _, saved = self.evaluate_and_save(x, t)
        deltas = backpropagate(self.layers, saved, cotangent, of_norms=False)
        return input_gradient(deltas, self._weight_of_x)

    @cached_property
    def _weight_of_x(self) -> th.Tensor:
        # Without the column of the flow time
        return self.layers[0].weight[:, :-1].t().contiguous().t()


class RecordingKernel:
    """
    Evaluates a velocity without gradient and keeps what the gradients need, so that it need not be evaluated again.

    :param kernel: The velocity
    """

    def __init__(self, kernel: ConditionedKernel) -> None:
        self.kernel = kernel
        self._values: list[th.Tensor] = []
        self._saved: list[list[Saved]] = []

    @th.no_grad()
    def __call__(self, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        """
        :param x: Points, shape (batch, action_dim)
        :param t: Flow time
        :return: The velocity, same shape
        """
        value, saved = self.kernel.evaluate_and_save(x, t)
        self._values.append(value)
        self._saved.append(saved)
        return value

    def velocities(self) -> th.Tensor:
        """:return: All velocities so far, with gradient, shape (calls, batch, action_dim)"""
        kernel = self.kernel
        parameters = kernel.mlp.parameters()
        return RecordedVelocities.apply(kernel.features, kernel.layers, self._values, self._saved, *parameters)


class RecordedVelocities(th.autograd.Function):
    """Several evaluations of a velocity for the same states as one node of autograd."""

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
        weight = th.cat([outer(of_state, ctx.features.to(of_state.dtype)), weight], dim=1)
        of_features = th.mm(of_state, ctx.of_features).float() if ctx.needs_input_grad[0] else None
        return of_features, None, None, None, weight, *others
