"""Policies of IFQL: the best of many actions of a behavior flow."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_qam.common.policies import BaseFlowPolicy, DictPolicy, ImagePolicy


class FlowPolicy(BaseFlowPolicy):
    """
    Policy class of IFQL: a behavior flow, an ensemble of critics Q(s, a), and a value function V(s).

    :param observation_space: Observation space
    :param action_space: Action space, a bounded Box
    :param lr_schedule: Learning rate schedule (could be constant)
    :param kwargs: Those of :class:`sb3_qam.FlowPolicy` that concern the behavior flow, critics, features extractors
        and the optimizer. ``flow_steps``, ``chunk_size`` and ``best_of_n`` are set by IFQL from its own
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Box, lr_schedule: Schedule, **kwargs: Any
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self._build(lr_schedule)

    def _build_actors(self, shared_extractor: BaseFeaturesExtractor | None) -> None:
        super()._build_actors(shared_extractor)
        # A single critic of no actions
        self.value = self.make_critic(shared_extractor, action_dim=0, n_critics=1)
        self.value.trains_features_extractor = not self.share_features_extractor

    def trained_networks(self) -> list[nn.Module]:
        return [*super().trained_networks(), self.value]

    def state_values(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: A batch of observations
        :return: V(s), shape (batch,)
        """
        features = self.value.features(observations)
        return self.value(features, features[:, :0])[0]

    def value_of_candidates(self, q_values: th.Tensor) -> th.Tensor:
        return q_values.amin(dim=0)


MlpPolicy = FlowPolicy


class CnnPolicy(ImagePolicy, FlowPolicy):
    """:class:`FlowPolicy` for images, with ``NatureCNN`` as the default features extractor."""


class MultiInputPolicy(DictPolicy, FlowPolicy):
    """:class:`FlowPolicy` for Dict observations, with ``CombinedExtractor`` as the default features extractor."""
