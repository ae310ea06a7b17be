"""The base of all networks: a features extractor, and layers that take what it made of an observation.

They take *features* instead of observations, so that an update extracts them once and not once per flow step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn


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
    A network that takes the features of an observation.

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
            return self.extract_features(from_zero(observations, self.observation_space), self.features_extractor)


def from_zero(observations: Any, space: spaces.Space) -> Any:
    """
    :param observations: A batch of observations, as SB3's buffers give them
    :param space: Their space
    :return: The same with discrete values counted from 0, where SB3's one-hot encoding begins
    """
    if isinstance(space, spaces.Dict):
        return {key: from_zero(part, space[key]) for key, part in observations.items()}
    start = np.asarray(getattr(space, "start", 0))
    if not start.any():
        return observations
    # Numbers, because a tensor would be copied to the GPU
    if start.ndim == 0:
        return observations.long() - int(start)
    return th.stack([part.long() - int(each) for part, each in zip(observations.unbind(1), start, strict=True)], dim=1)
