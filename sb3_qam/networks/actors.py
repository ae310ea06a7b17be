"""Networks that make or change actions: velocity fields, one-step and deterministic policies, the edits of QAM-E."""

import math
from collections.abc import Callable
from functools import cached_property

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_qam.networks.features import FeaturesNetwork
from sb3_qam.networks.flows import ConditionedVelocity, Velocity, broadcast_features
from sb3_qam.networks.layers import LAYER_NORM_EPS, TanhGELU, xavier_linear
from sb3_qam.networks.mlp import MLP, create_mlp

# Of an edit, before the tanh
LOG_STD_RANGE = (-20.0, 2.0)
# Of the output layer of a deterministic actor, whose variance is 0.01 times that of the other layers
OUTPUT_SCALE = 0.1


class ActorNetwork(FeaturesNetwork):
    """
    Base of the networks that make or change actions.

    :param observation_space: Observation space
    :param action_space: Action space
    :param action_dim: Number of action dimensions, those of a whole chunk where actions are chunked
    :param net_arch: Sizes of the hidden layers
    :param features_extractor: Makes features of observations
    :param features_dim: Number of features
    :param activation_fn: Activation of the hidden layers
    :param layer_norm: Whether to normalize after each activation
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

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], MLP]) -> None:
        """
        Create the layers.

        :param features_dim: Number of features
        :param action_dim: Number of action dimensions
        :param make_mlp: Makes the hidden layers, and an output where a size for it is given
        """
        raise NotImplementedError


class VelocityField(ActorNetwork):
    """The velocity v(s, x, t) of a flow from noise (t = 0) to an action (t = 1)."""

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], MLP]) -> None:
        self.mlp = make_mlp(features_dim + action_dim + 1, action_dim)

    def forward(self, features: th.Tensor, x: th.Tensor, t: th.Tensor | float) -> th.Tensor:
        """
        :param features: Features of the observations, must broadcast against (..., features_dim)
        :param x: Points on the way from noise to action, shape (..., action_dim)
        :param t: Flow time in [0, 1], a number or a tensor that broadcasts against (..., 1)
        :return: The velocity dx/dt, shape (..., action_dim)
        """
        return ConditionedVelocity(self.mlp, features)(x, t)

    def conditioned_on(self, observations: PyTorchObs) -> Velocity:
        """
        Condition the velocity on observations; their features are extracted once, here.

        :param observations: A batch of observations
        :return: The velocity as a function of x, shape (..., batch, action_dim), and of t
        """
        features = self.features(observations)
        if type(self).forward is not VelocityField.forward:
            return lambda x, t: self(features, x, t)
        return ConditionedVelocity(self.mlp, features)


class ConditionedFlows:
    """
    The velocities of all flows for the same observations. Each network extracts its features when it is first asked
    for, and once, with gradient if there is one where this object is made.

    :param behavior_flow: v_beta
    :param behavior_flow_target: Its Polyak average
    :param policy_flow: v_theta, or what is added to a behavior flow
    :param residual: Whether it is added
    :param observations: A batch of observations
    """

    def __init__(
        self,
        behavior_flow: VelocityField,
        behavior_flow_target: VelocityField,
        policy_flow: VelocityField,
        residual: bool,
        observations: PyTorchObs,
    ) -> None:
        self._fields = (behavior_flow, behavior_flow_target, policy_flow)
        self._residual = residual
        self._observations = observations
        self._with_gradient = th.is_grad_enabled()

    def _conditioned(self, field: VelocityField) -> Velocity:
        with th.set_grad_enabled(self._with_gradient):
            return field.conditioned_on(self._observations)

    @cached_property
    def behavior(self) -> Velocity:
        """v_beta"""
        return self._conditioned(self._fields[0])

    @cached_property
    def behavior_target(self) -> Velocity:
        """v_beta, its Polyak average"""
        return self._conditioned(self._fields[1])

    @cached_property
    def _policy_network(self) -> Velocity:
        return self._conditioned(self._fields[2])

    @property
    def policy(self) -> Velocity:
        """v_theta as it is trained: a residual one is added to the Polyak average of v_beta"""
        return self._beside(self.behavior_target) if self._residual else self._policy_network

    @property
    def acting_policy(self) -> Velocity:
        """v_theta as it acts: a residual one is added to v_beta itself, as the published code does"""
        return self._beside(self.behavior) if self._residual else self._policy_network

    def _beside(self, behavior_velocity: Velocity) -> Velocity:
        residual_velocity = self._policy_network
        return lambda x, t: behavior_velocity(x, t) + residual_velocity(x, t)


class OneStepFlow(ActorNetwork):
    """
    The one-step policy mu(s, z) of QAM-F (from FQL, arXiv 2502.02538): noise to action at once, without flow time.
    """

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], MLP]) -> None:
        self.mlp = make_mlp(features_dim + action_dim, action_dim)

    def forward(self, features: th.Tensor, z: th.Tensor) -> th.Tensor:
        """
        :param features: Features of the observations, must broadcast against (..., features_dim)
        :param z: Standard normal noise, shape (..., action_dim)
        :return: Actions, not clipped, same shape
        """
        return self.mlp(th.cat([broadcast_features(features, z), z], dim=-1))


class DeterministicActor(ActorNetwork):
    """A deterministic policy mu(s), as in TD3."""

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], MLP]) -> None:
        self.mlp = make_mlp(features_dim, action_dim)
        # As published: actions begin near 0, where tanh has its slope
        with th.no_grad():
            self.mlp[-1].weight.mul_(OUTPUT_SCALE)  # type: ignore[operator]

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Features of the observations, shape (..., features_dim)
        :return: Actions in (-1, 1), shape (..., action_dim)
        """
        return self.mlp(features).tanh()


class EditPolicy(ActorNetwork):
    """The tanh-Gaussian e(s, a) of QAM-E, which proposes how to change an action of the flow."""

    def _build(self, features_dim: int, action_dim: int, make_mlp: Callable[[int, int | None], MLP]) -> None:
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
        log_std = self.log_std(latent).to(latent.dtype).clamp(*LOG_STD_RANGE)
        raw = self.mean(latent).to(latent.dtype) + log_std.exp() * noise
        log_density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        # log of d tanh(u) / du = 1 - tanh(u)^2, which would be 0 for large u in this form
        log_derivative = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return raw.tanh(), (log_density - log_derivative).sum(dim=-1)


class EntropyCoefficient(nn.Module):
    """A positive entropy coefficient, learned as its logarithm from 1 on, as SAC's ``ent_coef="auto"``."""

    def __init__(self) -> None:
        super().__init__()
        self.log_value = nn.Parameter(th.zeros(()))

    def forward(self) -> th.Tensor:
        """:return: The number, shape ()"""
        return self.log_value.exp()
