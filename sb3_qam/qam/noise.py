"""The random draws of an update, and noise that is a function of the observation."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

# ``draw(n_samples, batch, action_dim)`` gives standard normal numbers of that shape
Draw = Callable[..., th.Tensor]

# Of the SplitMix64 generator (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195)
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
LAST_SHIFT = np.uint64(31)


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


class ObservationNoise:
    """
    Standard normal noise that is a function of the observation alone: the same in any batch, at any position, on any
    device, whatever was drawn before. Observations that differ in one bit get noise that is as if drawn independently.

    A hash of the observation's float32 bits is the key of a counter-based generator (SplitMix64), and Box-Muller makes
    normal numbers of its words. It is computed in NumPy, so that a run time without PyTorch can do the same.

    :param observations: A batch of observations; the order of a Dict's keys does not matter
    """

    def __init__(self, observations: PyTorchObs) -> None:
        parts = observations if isinstance(observations, dict) else {"": observations}
        self._device = next(iter(parts.values())).device
        self._keys = row_keys({key: part.cpu().numpy() for key, part in parts.items()})
        self._n_drawn = 0

    def __call__(self, n_samples: int, batch_size: int, action_dim: int) -> th.Tensor:
        """
        :param n_samples: Number of samples for each observation
        :param batch_size: Number of observations
        :param action_dim: Number of action dimensions
        :return: Noise that no earlier call gave, shape (n_samples, batch, action_dim)
        """
        n_values = n_samples * action_dim
        noise = normal_numbers(self._keys, n_values, self._n_drawn).reshape(batch_size, n_samples, action_dim)
        self._n_drawn += n_values
        return th.from_numpy(noise).transpose(0, 1).to(self._device)


def row_keys(observations: dict[str, np.ndarray]) -> np.ndarray:
    """
    Multilinear hashing: the sum of each value's bits times a random number of its position.

    :param observations: Arrays of shape (batch, ...) by key
    :return: One 64-bit hash of each row, shape (batch,)
    """
    rows = [observations[key].reshape(len(observations[key]), -1) for key in sorted(observations)]
    values = (rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1, dtype=np.float32)).astype(np.float32)
    # Adding 0 makes one zero of the two that floating-point numbers have
    values += np.float32(0)
    return _mix(values.view(np.uint32) @ _multipliers(values.shape[1]))


def normal_numbers(keys: np.ndarray, n_values: int, n_skipped: int = 0) -> np.ndarray:
    """
    :param keys: Key of each row, shape (batch,)
    :param n_values: Number of values for each
    :param n_skipped: Number of values that were drawn before
    :return: Standard normal numbers, float32, shape (batch, n_values)
    """
    words = _mix(keys[:, None] + _counters(n_skipped, n_values))
    # The two halves of a word, in (0, 1)
    uniform = words.view(np.uint32) * 2.0**-32
    uniform += 2.0**-33
    # Box-Muller: a radius and an angle
    radius = np.sqrt(-2 * np.log(uniform[:, ::2]))
    return (radius * np.cos(2 * np.pi * uniform[:, 1::2])).astype(np.float32)


@lru_cache(maxsize=64)
def _counters(n_skipped: int, n_values: int) -> np.ndarray:
    return np.arange(n_skipped + 1, n_skipped + n_values + 1, dtype=np.uint64) * GOLDEN_GAMMA


@lru_cache(maxsize=64)
def _multipliers(n_values: int) -> np.ndarray:
    return _mix(_counters(0, n_values)) | np.uint64(1)


def _mix(words: np.ndarray) -> np.ndarray:
    """
    :return: The output function of SplitMix64, a bijection in which every bit depends on every bit
    """
    for shift, multiplier in MIXING:
        words = (words ^ (words >> shift)) * multiplier
    return words ^ (words >> LAST_SHIFT)
