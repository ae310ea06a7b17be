"""The random draws of an update and of acting."""

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


class PathNoise(NamedTuple):
    """
    What the policy's path is made from; A is the action dimension (of a chunk), N the number of flow steps.

    :param x0: Standard normal, where it starts, shape (batch, A)
    :param steps: Standard normal, the noise along it, shape (N, batch, A)
    """

    x0: th.Tensor
    steps: th.Tensor


class UpdateNoise(NamedTuple):
    """
    Every random draw of one update. What an objective does not need is ``None``.

    :param bc_x0: Standard normal, the noise end of flow matching, shape (batch, A)
    :param bc_t: Uniform in [0, 1], flow times of flow matching, shape (batch, 1)
    :param next_action: What next actions are made from, shape (best_of_n, batch, A)
    :param path: What the policy's path is made from
    :param head: What the losses of QAM-E or QAM-F take, shape (batch, A)
    """

    bc_x0: th.Tensor
    bc_t: th.Tensor
    next_action: SamplingNoise | None = None
    path: PathNoise | None = None
    head: SamplingNoise | None = None


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
