"""The random draws that a flow makes actions from."""

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_qam.runtime import ObservationNoise

# ``draw(n_samples, batch, action_dim)`` gives standard normal numbers of that shape
Draw = Callable[..., th.Tensor]


class SamplingNoise(NamedTuple):
    """
    What one action is made from. The leading axes are (n_samples, batch).

    :param x0: Standard normal, where the flow starts, shape (..., action_dim)
    :param edit: Standard normal, under the tanh of an edit; ``None`` for heads that do not edit
    """

    x0: th.Tensor
    edit: th.Tensor | None = None


def draw_from_observations(observations: PyTorchObs) -> Draw:
    """
    :param observations: A batch of observations
    :return: Draws noise for these that is a function of them
    """
    parts = observations if isinstance(observations, dict) else {"": observations}
    noise = ObservationNoise({key: part.cpu().numpy() for key, part in parts.items()})
    device = next(iter(parts.values())).device

    def draw(n_samples: int, batch_size: int, action_dim: int) -> th.Tensor:
        return th.from_numpy(noise(n_samples, action_dim)).to(device)

    return draw
