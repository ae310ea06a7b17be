"""Offline data on the device of the networks, where a batch costs no copy."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qam.common.buffers import OfflineBuffer, to_tensor
from sb3_qam.utils.nested import map_observations


class DeviceOfflineBuffer(OfflineBuffer):
    """
    :class:`sb3_qam.common.buffers.OfflineBuffer` with a copy of its data on the device, from where batches are
    gathered. Given the same random numbers the batches are the same.

    Arguments are those of ``OfflineBuffer``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_device = {
            name: map_observations(lambda part: to_tensor(part, self.device), getattr(self, name))
            for name in ("observations", "actions", "rewards", "terminations")
        }

    def _index(self, rows: np.ndarray) -> th.Tensor:
        index = th.from_numpy(rows)
        if self.device.type == "cuda":
            # From other memory a copy would wait until the GPU has done all that it was asked for
            index = index.pin_memory()
        return index.to(self.device, non_blocking=True)

    def _rows(self, name: str, rows: th.Tensor) -> Any:
        return map_observations(lambda part: part[rows], self._on_device[name])

    @staticmethod
    def _normalize_obs(obs: Any, env: VecNormalize | None = None) -> Any:
        if env is None or not env.norm_obs:
            return obs
        if isinstance(obs, dict):
            statistics: Any = env.obs_rms
            keys = env.norm_obs_keys or ()
            return {key: _normalized(part, statistics[key], env) if key in keys else part for key, part in obs.items()}
        return _normalized(obs, env.obs_rms, env)  # type: ignore[arg-type]

    @staticmethod
    def _normalize_reward(reward: Any, env: VecNormalize | None = None) -> Any:
        if env is None or not env.norm_reward:
            return reward
        return (reward / float(np.sqrt(env.ret_rms.var + env.epsilon))).clamp(-env.clip_reward, env.clip_reward)


def _normalized(part: th.Tensor, statistics: RunningMeanStd, env: VecNormalize) -> th.Tensor:
    """:return: What ``VecNormalize`` makes of observations, on their device"""
    mean, std = (
        th.as_tensor(value, device=part.device) for value in (statistics.mean, np.sqrt(statistics.var + env.epsilon))
    )
    return ((part - mean) / std).clamp(-env.clip_obs, env.clip_obs).float()
