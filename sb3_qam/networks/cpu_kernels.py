r"""The networks' layers on a CPU, evaluated with fewer passes over memory than module by module.

An update of QAM evaluates small networks many times, and module by module the activations and the bookkeeping of
autograd take as long as the products. Here a whole network is one node of autograd, whose backward pass is written out.
The products are oneDNN's where PyTorch has it: on some CPUs they are twice as fast as the BLAS that ``torch.mm`` takes.
What an evaluation module by module gives, this gives to float32 rounding (``tests/test_fused_mlp.py``).

All functions take and return 2-D tensors, and none builds a graph. An ensemble is a list of networks: the products of
one member after the other stay in the cache, those of a batched product do not.

Where the weights are bfloat16, so are the products and what goes from layer to layer. What goes in and comes out is
float32 all the same: inputs, outputs, and the gradients of inputs and parameters.
"""

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

# Where oneDNN's kernels are the faster ones (docs/guide/speed.md)
MIN_ROWS_FOR_ONEDNN, MIN_WIDTH_FOR_ONEDNN = 16, 64
# 1 + tanh(y) = 2 sigmoid(2 y)
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)


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
    :param h: In float32: what its linear part gives, shape (rows, out); ``None`` for the last layer
    :param slope: In bfloat16: the derivative of the activation there, same shape; ``None`` for the last layer
    :param activation: What a normalization is given, same shape; ``None`` where there is none
    :param mean: Its mean over each row, shape (rows, 1)
    :param rstd: 1 / its standard deviation, same shape
    """

    x: th.Tensor
    h: th.Tensor | None = None
    slope: th.Tensor | None = None
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


def has_onednn() -> bool:
    """
    :return: Whether this build of PyTorch has the linear layers of oneDNN that its own compiler uses
    """
    return th.backends.mkldnn.is_available() and hasattr(th.ops.mkldnn, "_linear_pointwise")


HAS_ONEDNN = has_onednn()
HAS_BFLOAT16 = HAS_ONEDNN and th.ops.mkldnn._is_mkldnn_bf16_supported()


def _takes_onednn(x: th.Tensor) -> bool:
    # Of bfloat16, th.mm takes oneDNN's products itself
    return HAS_ONEDNN and x.shape[0] >= MIN_ROWS_FOR_ONEDNN and x.dtype == th.float32


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
    return F.gelu(th.addmm(bias, x, weight.t()), approximate="tanh")


def gelu_and_slope(h: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    GELU by the sigmoid, which its tanh approximation is the same as: PyTorch's own takes longer for one of the two in
    bfloat16 than this for both.

    :param h: shape (rows, width), bfloat16
    :return: GELU of h and its derivative, same shape and type
    """
    value, inner, gate, bump = _scratch(threading.get_ident(), h.shape)
    c = value.new_full((), GELU_SLOPE)
    # gate = sigmoid(inner x), with inner = c + 0.044715 c x^2
    th.addcmul(c, value.copy_(h), value, value=0.044715 * GELU_SLOPE, out=inner)
    th.mul(inner, value, out=gate).sigmoid_()
    value.mul_(gate)
    # slope = gate + bump (3 inner - 2 c), with bump = value (1 - gate)
    th.addcmul(value, value, gate, value=-1, out=bump)
    slope = gate.addcmul_(bump, inner, value=3).add_(bump, alpha=-2 * GELU_SLOPE)
    return value.to(h.dtype), slope.to(h.dtype)


@lru_cache(maxsize=8)
def _scratch(thread: int, shape: th.Size) -> tuple[th.Tensor, ...]:
    """
    Memory of this size is given back to the system and cleared at every use, which takes longer than to use it.
    """
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
        if h.dtype == th.bfloat16:
            activation, slope = gelu_and_slope(h)
            kept = Saved(x, slope=slope)
        else:
            activation = F.gelu(h, approximate="tanh")
            kept = Saved(x, h)
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
            pre.append(of_output.to(weight.dtype) * kept.slope)
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
