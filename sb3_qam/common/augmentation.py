"""Random shifts of the images of a batch."""

from collections.abc import Callable

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_qam.common.buffers import TransitionBatch


def shift_images(images: th.Tensor, most: int) -> th.Tensor:
    """
    Shift each image by its own random number of pixels; at the edges the outermost pixels are repeated. The same as
    padding by replication and a random crop (DrQ, https://arxiv.org/abs/2004.13649).

    :param images: shape (batch, channels, height, width), of any type
    :param most: The largest shift in either direction, in pixels
    :return: same shape and type
    """
    batch_size = len(images)

    def shifted_positions(length: int) -> th.Tensor:
        offsets = th.randint(-most, most + 1, (batch_size, 1), device=images.device)
        return (th.arange(length, device=images.device) + offsets).clamp(0, length - 1)

    rows, columns = (shifted_positions(length) for length in images.shape[2:])
    images = images.gather(2, rows[:, None, :, None].expand(images.shape))
    return images.gather(3, columns[:, None, None, :].expand(images.shape))


class ImageShift:
    """
    Shifts the images of training batches, and leaves all other observations as they are. Observations and next
    observations are shifted independently.

    :param observation_space: Observation space of the model, images channels first
    :param most: The largest shift in either direction, in pixels
    :param normalize_images: Whether the policy normalizes images; where it does not, every Box of three axes is one,
        as it is to SB3's extractors
    :raises ValueError: if there are no images
    """

    def __init__(self, observation_space: spaces.Space, most: int, normalize_images: bool = True) -> None:
        self.most = most

        def is_image(space: spaces.Space) -> bool:
            return is_image_space(space, normalized_image=not normalize_images)

        self.is_single_image = is_image(observation_space)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        self.keys = [key for key, space in parts.items() if is_image(space)]
        if not self.is_single_image and not self.keys:
            raise ValueError(
                f"random_shift={most} shifts images, and there are none in {observation_space}: leave it at 0."
            )

    def _shifted(self, observations: PyTorchObs) -> PyTorchObs:
        if isinstance(observations, th.Tensor):
            return shift_images(observations, self.most)
        return observations | {key: shift_images(observations[key], self.most) for key in self.keys}

    def __call__(self, batch: TransitionBatch) -> TransitionBatch:
        """
        :param batch: A batch
        :return: The same with its images shifted
        """
        return batch._replace(
            observations=self._shifted(batch.observations), next_observations=self._shifted(batch.next_observations)
        )


def make_augmentation(
    observation_space: spaces.Space, random_shift: int, normalize_images: bool
) -> Callable[[TransitionBatch], TransitionBatch]:
    """
    :param observation_space: Observation space of the model
    :param random_shift: The largest shift in pixels, 0 for none
    :param normalize_images: Whether the policy normalizes images
    :return: What is done to every training batch
    :raises ValueError: if images are to be shifted and there are none
    """
    if random_shift == 0:
        return lambda batch: batch
    return ImageShift(observation_space, random_shift, normalize_images)
