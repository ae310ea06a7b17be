"""Noise that is a function of the observation, in NumPy alone: where there is no PyTorch, this file can be copied."""

from functools import lru_cache

import numpy as np

# Of the SplitMix64 generator (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195)
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
LAST_SHIFT = np.uint64(31)


class ObservationNoise:
    """
    Standard normal noise that is a function of the observation alone: the same in any batch, at any position, on any
    machine, whatever was drawn before. Observations that differ in one bit get noise that is as if drawn independently.

    A hash of the observation's float32 bits is the key of a counter-based generator (SplitMix64), and Box-Muller makes
    normal numbers of its words.

    :param observations: Arrays of shape (batch, ...), by key where observations are Dicts, whose order does not matter.
        As a policy takes them: images channels first, in [0, 255]
    """

    def __init__(self, observations: np.ndarray | dict[str, np.ndarray]) -> None:
        self._keys = row_keys(observations if isinstance(observations, dict) else {"": observations})
        self._n_drawn = 0

    def __call__(self, n_samples: int, action_dim: int) -> np.ndarray:
        """
        :param n_samples: Number of samples for each observation
        :param action_dim: Number of action dimensions
        :return: Noise that no earlier call gave, float32, shape (n_samples, batch, action_dim)
        """
        n_values = n_samples * action_dim
        noise = normal_numbers(self._keys, n_values, self._n_drawn)
        self._n_drawn += n_values
        return noise.reshape(-1, n_samples, action_dim).swapaxes(0, 1)


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
    """:return: The output function of SplitMix64, a bijection in which every bit depends on every bit"""
    for shift, multiplier in MIXING:
        words = (words ^ (words >> shift)) * multiplier
    return words ^ (words >> LAST_SHIFT)
