"""VecNormalize together with offline data."""

from collections.abc import Callable

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qam.common.buffers import OfflineBuffer
from sb3_qam.datasets.rewards import RewardTransform
from sb3_qam.datasets.storage import release_pages

# Numbers, of which float64 copies are made
BLOCK_SIZE = 2**20


def check_reward_scales(vec_normalize: VecNormalize | None, transform: RewardTransform | None) -> None:
    """
    :param vec_normalize: Of the environment, if there is one
    :param transform: What is made of rewards
    :raises ValueError: if both scale rewards
    """
    if transform is not None and vec_normalize is not None and vec_normalize.norm_reward:
        raise ValueError(
            "VecNormalize scales rewards by statistics of the environment's own, which reward_transform changes: "
            "use VecNormalize(..., norm_reward=False), or no reward_transform."
        )


def add_initial_statistics(vec_normalize: VecNormalize, offline: OfflineBuffer) -> None:
    """
    Add the statistics of the offline data to those of a ``VecNormalize`` that has seen less than they hold.

    An environment that has just been made has seen one observation: normalized by that, the offline data would be
    clipped almost everywhere, and the policy would meet other inputs online than it was trained on.

    :param vec_normalize: Gets the statistics, unless its ``training`` is False
    :param offline: The data
    """
    if not vec_normalize.training:
        return
    if vec_normalize.norm_obs:
        if isinstance(offline.observations, dict):
            pairs = [
                (vec_normalize.obs_rms[key], offline.observations[key]) for key in vec_normalize.norm_obs_keys or ()
            ]
        else:
            pairs = [(vec_normalize.obs_rms, offline.observations)]  # type: ignore[list-item]
        for statistics, observations in pairs:
            if statistics.count < offline.size():
                # In blocks: data that is mapped from files need not fit into memory, nor a float of each pixel
                n_rows = max(1, BLOCK_SIZE // max(1, statistics.mean.size))
                for start in range(0, len(observations), n_rows):
                    # Sums of float32 lose what large values differ by
                    statistics.update(observations[start : start + n_rows].astype(np.float64))
                    release_pages(observations)
    if vec_normalize.norm_reward and vec_normalize.ret_rms.count < offline.size():
        vec_normalize.ret_rms.update(running_returns(offline, vec_normalize.gamma))


def kept_statistics(vec_normalize: VecNormalize) -> Callable[[], None]:
    """
    Remember the statistics. A step replaces their arrays and never changes them in place, so none is copied.

    :param vec_normalize: Whose statistics they are
    :return: Restores them
    """
    of_observations = getattr(vec_normalize, "obs_rms", {})
    all_statistics = [
        *(of_observations.values() if isinstance(of_observations, dict) else [of_observations]),
        vec_normalize.ret_rms,
    ]
    kept = [(statistics, dict(vars(statistics))) for statistics in all_statistics]
    returns = vec_normalize.returns

    def restore() -> None:
        for statistics, values in kept:
            vars(statistics).update(values)
        vec_normalize.returns = returns

    return restore


def running_returns(offline: OfflineBuffer, gamma: float) -> np.ndarray:
    """
    What ``VecNormalize`` scales rewards by: the discounted sum of the rewards so far in each episode.

    :param offline: The data
    :param gamma: The discount factor of ``VecNormalize``
    :return: shape (n_transitions,)
    """
    returns = offline.rewards.astype(np.float64)
    last = offline.last
    first = np.concatenate([[0], last[:-1] + 1])
    for step in range(1, int((last - first).max()) + 1):
        rows = (first + step)[first + step <= last]
        returns[rows] += gamma * returns[rows - 1]
    return returns
