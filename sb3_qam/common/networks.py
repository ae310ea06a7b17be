"""The networks of QAM: velocity fields, the critic ensemble, and what variants put beside or behind the flow.

All take *features* (what a features extractor made of an observation) instead of observations, so that an update
extracts them once and not once per flow step.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

# ``velocity(x, t)``: x of shape (..., action_dim), t a number or a tensor that broadcasts against (..., 1)
Velocity = Callable[[th.Tensor, th.Tensor | float], th.Tensor]

# Flax's default, which the published numbers were made with; PyTorch's own is 1e-5.
LAYER_NORM_EPS = 1e-6

# Of an edit, before the tanh
LOG_STD_RANGE = (-20.0, 2.0)


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
    Layer normalisation over the last axis, with one scale and one bias per ensemble member.

    :param n_members: Number of ensemble members
    :param n_features: Size of the normalised axis
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
        normalized = F.layer_norm(inputs, inputs.shape[-1:], eps=LAYER_NORM_EPS)
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


def create_mlp(
    input_dim: int,
    output_dim: int | None,
    net_arch: list[int],
    activation_fn: Callable[[], nn.Module],
    make_linear: Callable[[int, int], nn.Module],
    make_norm: Callable[[int], nn.Module] | None,
) -> nn.Sequential:
    """
    Hidden layers of Linear -> activation -> normalisation, then one linear layer where there is an output.

    SB3's ``create_mlp`` can only normalise before the activation; the published networks do it after.

    :param input_dim: Size of the input
    :param output_dim: Size of the output; ``None`` for hidden layers alone
    :param net_arch: Sizes of the hidden layers
    :param activation_fn: Makes an activation
    :param make_linear: Makes a linear layer from its input and output sizes
    :param make_norm: Makes a normalisation layer from its size; none where it is ``None``
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
    return nn.Sequential(*layers)


def broadcast_features(features: th.Tensor, like: th.Tensor) -> th.Tensor:
    """
    :param features: Features of the observations, must broadcast against (..., features_dim)
    :param like: What they are to stand beside, shape (..., any)
    :return: shape (..., features_dim)
    """
    return features.expand(*like.shape[:-1], -1)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """
    Inside, the network passes gradients on to its inputs and takes none itself.

    :param network: A network that is trained outside, as a whole or in part
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class FeaturesNetwork(BaseModel):
    """
    A network that stands behind a features extractor.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Makes features of observations
    :param normalize_images: Whether to divide images by 255
    :param trains_features_extractor: Whether this network's loss trains the extractor.
        A shared one is trained by the critic alone.
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        normalize_images: bool = True,
        trains_features_extractor: bool = True,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.trains_features_extractor = trains_features_extractor

    def features(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: A batch of observations, as SB3's buffers give them
        :return: shape (batch, features_dim)
        """
        with th.set_grad_enabled(th.is_grad_enabled() and self.trains_features_extractor):
            return self.extract_features(observations, self.features_extractor)


class ActorNetwork(FeaturesNetwork):
    """
    The base of what makes or changes actions.

    :param observation_space: Observation space
    :param action_space: Action space
    :param action_dim: Number of action dimensions, those of a whole chunk where actions are chunked
    :param net_arch: Sizes of the hidden layers
    :param features_extractor: Makes features of observations
    :param features_dim: Number of features
    :param activation_fn: Activation of the hidden layers
    :param layer_norm: Whether to normalise after each activation
    :param normalize_images: Whether to divide images by 255
    :param trains_features_extractor: Whether the loss of this network trains the extractor
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        action_dim: int,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: Callable[[], nn.Module] = TanhGELU,
        layer_norm: bool = False,
        normalize_images: bool = True,
        trains_features_extractor: bool = True,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor, normalize_images, trains_features_extractor
        )
        self.net_arch = net_arch
        make_norm = (lambda width: nn.LayerNorm(width, eps=LAYER_NORM_EPS)) if layer_norm else None
        self._build(
            features_dim,
            action_dim,
            lambda n_in, n_out: create_mlp(n_in, n_out, net_arch, activation_fn, xavier_linear, make_norm),
        )

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], nn.Sequential]) -> None:
        """
        Create the layers.

        :param features_dim: Number of features
        :param action_dim: Number of action dimensions
        :param make_mlp: Makes the hidden layers, and an output where a size for it is given
        """
        raise NotImplementedError


class VelocityField(ActorNetwork):
    """
    The velocity v(s, x, t) of a flow from noise (t = 0) to an action (t = 1).
    """

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], nn.Sequential]) -> None:
        self.mlp = make_mlp(features_dim + action_dim + 1, action_dim)

    def forward(self, features: th.Tensor, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        """
        :param features: Features of the observations, must broadcast against (..., features_dim)
        :param x: Points on the way from noise to action, shape (..., action_dim)
        :param t: Flow time in [0, 1], a number or a tensor that broadcasts against (..., 1)
        :return: The velocity dx/dt, shape (..., action_dim)
        """
        time = th.as_tensor(t, dtype=x.dtype, device=x.device)
        return self.mlp(th.cat([broadcast_features(features, x), x, time.expand(*x.shape[:-1], 1)], dim=-1))

    def given(self, observations: PyTorchObs) -> Velocity:
        """
        Fix the observations; their features are extracted once, here.

        :param observations: A batch of observations
        :return: The velocity as a function of x, shape (..., batch, action_dim), and of t
        """
        features = self.features(observations)
        return lambda x, t: self(features, x, t)


class OneStepFlow(ActorNetwork):
    """
    The one-step policy mu(s, z) of QAM-F (from FQL, arXiv 2502.02538): noise to action at once, without flow time.
    """

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], nn.Sequential]) -> None:
        self.mlp = make_mlp(features_dim + action_dim, action_dim)

    def forward(self, features: th.Tensor, z: th.Tensor) -> th.Tensor:
        """
        :param features: Features of the observations, must broadcast against (..., features_dim)
        :param z: Standard normal noise, shape (..., action_dim)
        :return: Actions, not clipped, same shape
        """
        return self.mlp(th.cat([broadcast_features(features, z), z], dim=-1))


class EditPolicy(ActorNetwork):
    """
    The tanh-Gaussian e(s, a) of QAM-E, which says how to change an action of the flow.
    """

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], nn.Sequential]) -> None:
        input_dim = features_dim + action_dim
        self.mlp = make_mlp(input_dim, None)
        last_width = [input_dim, *self.net_arch][-1]
        self.mean = xavier_linear(last_width, action_dim)
        self.log_std = xavier_linear(last_width, action_dim)

    def forward(self, features: th.Tensor, actions: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param features: Features of the observations, must broadcast against (..., features_dim)
        :param actions: Actions of the flow, in [-1, 1], shape (..., action_dim)
        :param noise: Standard normal noise under the tanh, same shape
        :return: Edits in (-1, 1), same shape, and their log-density, shape (...)
        """
        latent = self.mlp(th.cat([broadcast_features(features, actions), actions], dim=-1))
        log_std = self.log_std(latent).clamp(*LOG_STD_RANGE)
        raw = self.mean(latent) + log_std.exp() * noise
        log_density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        # log of d tanh(u) / du = 1 - tanh(u)^2, which would be 0 for large u in this form
        log_derivative = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return raw.tanh(), (log_density - log_derivative).sum(dim=-1)


class LearntTemperature(nn.Module):
    """
    A positive number that is learnt as its logarithm, beginning at 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_value = nn.Parameter(th.zeros(()))

    def forward(self) -> th.Tensor:
        """
        :return: The number, shape ()
        """
        return self.log_value.exp()


class CriticEnsemble(FeaturesNetwork):
    """
    ``n_critics`` action-value functions Q_i(s, a), evaluated together as one batched network.

    :param observation_space: Observation space
    :param action_space: Action space
    :param action_dim: Number of action dimensions, those of a whole chunk where actions are chunked
    :param net_arch: Sizes of the hidden layers
    :param features_extractor: Makes features of observations
    :param features_dim: Number of features
    :param activation_fn: Activation of the hidden layers
    :param n_critics: Number of critics
    :param normalize_images: Whether to divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        action_dim: int,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: Callable[[], nn.Module] = TanhGELU,
        n_critics: int = 2,
        normalize_images: bool = True,
    ) -> None:
        super().__init__(observation_space, action_space, features_extractor, normalize_images)
        self.n_critics = n_critics
        self.mlp = create_mlp(
            features_dim + action_dim,
            1,
            net_arch,
            activation_fn,
            lambda n_in, n_out: EnsembleLinear(n_critics, n_in, n_out),
            lambda width: EnsembleLayerNorm(n_critics, width),
        )

    def forward(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param features: Features of the observations, must broadcast against (..., features_dim)
        :param actions: Actions in [-1, 1], shape (..., action_dim)
        :return: One value per critic, shape (n_critics, ...)
        """
        batch_shape = actions.shape[:-1]
        inputs = th.cat([broadcast_features(features, actions), actions], dim=-1).flatten(end_dim=-2)
        values = self.mlp(inputs.expand(self.n_critics, -1, -1))
        return values.reshape(self.n_critics, *batch_shape)
