"""Features extractors for images, alone and in Dicts."""

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import nn

from sb3_qam.utils.checks import check_positive_int


class ResidualBlock(nn.Module):
    """
    Two convolutions beside a connection that skips them.

    :param n_channels: Number of channels of input and output
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(n_channels, n_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(n_channels, n_channels, kernel_size=3, padding=1),
        )

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: shape (batch, n_channels, height, width)
        :return: same shape
        """
        return inputs + self.layers(inputs)


class ImpalaCNN(BaseFeaturesExtractor):
    """
    The residual encoder of IMPALA (Espeholt et al., https://arxiv.org/abs/1802.01561): stages of a convolution, a
    pooling that halves the image, and residual blocks. It is deeper than ``NatureCNN`` and takes images of any size.

    :param observation_space: Space of the images, channels first
    :param features_dim: Number of features extracted
    :param n_channels: Number of channels of each stage
    :param n_blocks: Number of residual blocks of each stage
    :param normalized_image: Whether the images are normalized already, which goes together with
        ``policy_kwargs=dict(normalize_images=False)``: their type and bounds are not checked then
    :raises ValueError: if the space is not one of images, a size is not positive, or ``n_channels`` is a single one
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        features_dim: int = 256,
        n_channels: Sequence[int] = (16, 32, 32),
        n_blocks: int = 2,
        normalized_image: bool = False,
    ) -> None:
        if not is_image_space(observation_space, normalized_image=normalized_image):
            raise ValueError(
                f"ImpalaCNN is for images, uint8 in [0, 255] of three axes, got {observation_space}. For images that "
                "are normalized already, channels first, pass policy_kwargs=dict(normalize_images=False, "
                "features_extractor_kwargs=dict(normalized_image=True)); for all others leave it out."
            )
        if not isinstance(n_channels, Sequence):
            raise ValueError(f"n_channels must be a sequence, one number for each stage, got {n_channels!r}.")
        for name, size in [
            ("features_dim", features_dim),
            ("n_blocks", n_blocks),
            *(("n_channels", n) for n in n_channels),
        ]:
            check_positive_int(name, size)
        super().__init__(observation_space, features_dim)
        assert observation_space.shape is not None  # for mypy
        layers: list[nn.Module] = []
        n_in = observation_space.shape[0]
        for n_out in n_channels:
            layers += [
                nn.Conv2d(n_in, n_out, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                *(ResidualBlock(n_out) for _ in range(n_blocks)),
            ]
            n_in = n_out
        self.cnn = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
        # Compute shape by doing one forward pass
        with th.no_grad():
            n_flatten = self.cnn(th.zeros(1, *observation_space.shape)).shape[1]
        self.linear = nn.Sequential(nn.Linear(n_flatten, features_dim), nn.ReLU())
        # PyTorch's own kernels are so small that what differs between two images hardly reaches the features
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Images as floats, shape (batch, channels, height, width)
        :return: shape (batch, features_dim)
        """
        # With the channels of a pixel side by side in memory, convolutions and pooling are faster on a CPU
        channels_last = observations.permute(0, 2, 3, 1).contiguous()
        return self.linear(self.cnn(channels_last.permute(0, 3, 1, 2)))


class ImageCombinedExtractor(CombinedExtractor):
    """
    SB3's ``CombinedExtractor`` for Dict observations, with a configurable extractor for the images; each image key
    has its own instance. All other keys are flattened, and the features of all are put side by side.

    :param observation_space: Space of the observations, images channels first
    :param image_extractor_class: Features extractor of an image
    :param image_extractor_kwargs: Keyword arguments to pass to it
    :param normalized_image: Whether the images are normalized already, as for :class:`ImpalaCNN`; passed on to the
        extractor of an image where it is True
    :raises ValueError: if the space is not a Dict, or holds no image
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        image_extractor_class: type[BaseFeaturesExtractor] = ImpalaCNN,
        image_extractor_kwargs: dict[str, Any] | None = None,
        normalized_image: bool = False,
    ) -> None:
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        images = {key for key, part in parts.items() if is_image_space(part, normalized_image=normalized_image)}
        if not images:
            raise ValueError(
                f"ImageCombinedExtractor is for Dict observations with images, uint8 in [0, 255] of three axes, got "
                f"{observation_space}. For images that are normalized already, channels first, pass "
                "normalized_image=True; without images leave it out."
            )
        image_kwargs = {**(image_extractor_kwargs or {}), **({"normalized_image": True} if normalized_image else {})}
        extractors: dict[str, nn.Module] = {}
        features_dim = 0
        for key, part in parts.items():
            if key in images:
                extractor = image_extractor_class(part, **image_kwargs)
                extractors[key] = extractor
                features_dim += extractor.features_dim
            else:
                extractors[key] = nn.Flatten()
                features_dim += get_flattened_obs_dim(part)
        # Past that of SB3's, which makes a NatureCNN for each image and refuses small ones
        BaseFeaturesExtractor.__init__(self, observation_space, features_dim)
        self.extractors = nn.ModuleDict(extractors)
