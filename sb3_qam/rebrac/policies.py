"""Policies of ReBRAC: a deterministic actor."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_qam.common.policies import DictPolicy, ImagePolicy, OfflineToOnlinePolicy, TargetPair
from sb3_qam.networks.actors import DeterministicActor


class ReBRACPolicy(OfflineToOnlinePolicy):
    """
    Policy class of ReBRAC: a deterministic actor and an ensemble of critics, each with a Polyak target. As that of
    SB3's TD3, it makes the same action of an observation, whether ``deterministic`` or not: exploring is up to
    ``action_noise``.

    :param observation_space: Observation space
    :param action_space: Action space, a bounded Box
    :param lr_schedule: Learning rate schedule (could be constant)
    :param kwargs: Those of :class:`sb3_qam.FlowPolicy` that concern sizes (``dict(pi=[...], qf=[...])``), critics,
        features extractors and the optimizer. ``chunk_size`` is set by ReBRAC from its own
    """

    actor: DeterministicActor
    actor_target: DeterministicActor

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Box, lr_schedule: Schedule, **kwargs: Any
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self._build(lr_schedule)

    def _build_actors(self, shared_extractor: BaseFeaturesExtractor | None) -> None:
        self.actor = self.make_actor(DeterministicActor, shared_extractor)
        self.actor_target = self.make_actor(DeterministicActor)

    @property
    def behavior(self) -> DeterministicActor:
        return self.actor

    def target_pairs(self) -> list[TargetPair]:
        return [(self.actor_target, self.actor), *super().target_pairs()]

    def trained_networks(self) -> list[nn.Module]:
        return [self.actor, *super().trained_networks()]

    @th.no_grad()
    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor(self.actor.features(observation))


MlpPolicy = ReBRACPolicy


class CnnPolicy(ImagePolicy, ReBRACPolicy):
    """:class:`ReBRACPolicy` for images, with ``NatureCNN`` as the default features extractor."""


class MultiInputPolicy(DictPolicy, ReBRACPolicy):
    """:class:`ReBRACPolicy` for Dict observations, with ``CombinedExtractor`` as the default features extractor."""
