"""The layers of the networks: an activation, and linear and normalization layers of an ensemble."""

import torch as th
from torch import nn
from torch.nn import functional as F

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
