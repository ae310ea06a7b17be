"""Random shifts of the images of a batch."""

from typing import Any

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

    def shifted_positions(length: int) -> th.Tensor:
        offsets = th.randint(-most, most + 1, (len(images), 1), device=images.device)
        return (th.arange(length, device=images.device) + offsets).clamp(0, length - 1)

    rows, columns = (shifted_positions(length) for length in images.shape[2:])
    images = images.gather(2, rows[:, None, :, None].expand(images.shape))
    return images.gather(3, columns[:, None, None, :].expand(images.shape))


class RandomShift:
    """
    Shifts the images of training batches, and leaves all other observations as they are. Observations and next
    observations are shifted independently.

    :param observation_space: Observation space of the model, images channels first
    :param most: The largest shift in either direction, in pixels, 0 to leave batches as they are
    :param normalize_images: Whether the policy normalizes images; where it does not, every Box of three axes is one,
        as it is to SB3's extractors
    :raises ValueError: if images are to be shifted and there are none
    """

    def __init__(self, observation_space: spaces.Space, most: int, normalize_images: bool = True) -> None:
        self.most = most
        # None stands for an observation that is not a Dict
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
        self.keys: list[Any] = [
            key for key, space in parts.items() if is_image_space(space, normalized_image=not normalize_images)
        ]
        if most > 0 and not self.keys:
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
        if self.most == 0:
            return batch
        return batch._replace(
            observations=self._shifted(batch.observations), next_observations=self._shifted(batch.next_observations)
        )
