"""The random draws of an update of QAM."""

from typing import NamedTuple

import torch as th

from sb3_qam.common.noise import SamplingNoise


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
