"""A network of linear layers, or an ensemble of such networks."""

from collections.abc import Callable

import torch as th
from torch import nn

from sb3_qam.networks import cpu_kernels


class MLP(nn.Sequential):
    """
    A network of linear layers, each but the last one followed by an activation and, perhaps, a normalization; or an
    ensemble of such networks.

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
        outputs = cpu_kernels.forward(self, self.n_members, inputs)
        if outputs is not None:
            return outputs
        if self.n_members is None:
            outputs = super().forward(inputs)
        else:
            outputs = super().forward(inputs.flatten(end_dim=-2).expand(self.n_members, -1, -1))
            outputs = outputs.view(self.n_members, *inputs.shape[:-1], -1)
        # Autocast would have the loss in its type too
        return outputs.to(inputs.dtype)


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
