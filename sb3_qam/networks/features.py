"""The base of all networks: a features extractor, and layers that take what it made of an observation.

They take *features* instead of observations, so that an update extracts them once and not once per flow step.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
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
            return self.extract_features(
                counted_from_zero(observations, self.observation_space), self.features_extractor
            )


def counted_from_zero(observations: PyTorchObs, space: spaces.Space) -> PyTorchObs:
    """
    :param observations: A batch of observations
    :param space: Their space
    :return: The same, with numbers that begin with 0 where a space has another ``start``: SB3 makes one-hot vectors of
        such numbers
    """
    if isinstance(space, spaces.Dict):
        return {key: counted_from_zero(part, space[key]) for key, part in observations.items()}  # type: ignore[misc, union-attr]
    start = np.asarray(getattr(space, "start", 0))
    if not start.any():
        return observations
    assert isinstance(observations, th.Tensor)  # for mypy
    # Numbers, because a CUDA graph records no tensor that comes from the host; signed, as a start may be negative
    if start.ndim == 0:
        return observations.long() - int(start)
    columns = zip(observations.long().unbind(1), start.tolist(), strict=True)
    return th.stack([column - first for column, first in columns], dim=1)


class RenamedKeys(BaseFeaturesExtractor):
    """
    A features extractor that has a module for each key of a Dict, and knows keys that PyTorch accepts as no name of a
    module, such as LeRobot's ``observation.state``, by others.

    :param observation_space: Space of the observations
    :param extractor_class: Features extractor to use
    :param kwargs: Keyword arguments to pass to it
    """

    def __init__(self, observation_space: spaces.Dict, extractor_class: type[CombinedExtractor], **kwargs: Any) -> None:
        names = module_names(observation_space)
        # Ordered, as other dicts are sorted by their keys
        renamed = spaces.Dict(OrderedDict((names[key], part) for key, part in observation_space.items()))
        extractor = extractor_class(renamed, **kwargs)
        super().__init__(observation_space, extractor.features_dim)
        self.extractor, self.names = extractor, names

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: A batch of observations
        :return: shape (batch, features_dim)
        """
        return self.extractor({self.names[key]: part for key, part in observations.items()})


def module_names(keys: Iterable[str]) -> dict[str, str]:
    """
    :param keys: Keys of a Dict
    :return: The name of a module for each: the key itself, or as like as PyTorch accepts
    """
    taken = nn.ModuleDict()
    # Those that keep their names come first
    refused = [key for key in keys if not key or "." in key or hasattr(taken, key)]
    names = {key: key for key in keys if key not in refused}
    for key in refused:
        name = key.replace(".", "_") or "_"
        while hasattr(taken, name) or name in names.values():
            name += "_"
        names[key] = name
    return {key: names[key] for key in keys}
