"""The ensemble of critics."""

from collections.abc import Callable

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_qam.networks.features import FeaturesNetwork
from sb3_qam.networks.flows import broadcast_features
from sb3_qam.networks.layers import EnsembleLayerNorm, EnsembleLinear, TanhGELU
from sb3_qam.networks.mlp import create_mlp


def pessimistic_value(q_values: th.Tensor, pessimism: float) -> th.Tensor:
    """
    :param q_values: Q_i, shape (n_critics, ...)
    :param pessimism: rho
    :return: mean_i Q_i - rho std_i Q_i, population standard deviation, shape (...)
    """
    return q_values.mean(dim=0) - pessimism * q_values.std(dim=0, correction=0)


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
            n_members=n_critics,
        )

    def forward(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param features: Features of the observations, must broadcast against (..., features_dim)
        :param actions: Actions in [-1, 1], shape (..., action_dim)
        :return: One value per critic, shape (n_critics, ...)
        """
        batch_shape = actions.shape[:-1]
        inputs = th.cat([broadcast_features(features, actions), actions], dim=-1).flatten(end_dim=-2)
        return self.mlp(inputs).reshape(self.n_critics, *batch_shape)
