"""Offline data on the device of the networks, where a batch costs no copy."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qam.common.buffers import OfflineBuffer, TransitionBatch, map_observations, to_tensor


class DeviceOfflineBuffer(OfflineBuffer):
    """
    :class:`sb3_qam.common.buffers.OfflineBuffer` with a copy of its data on the device, from where batches are
    gathered. Given the same random numbers the batches are the same.

    Arguments are those of ``OfflineBuffer``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._observations = map_observations(lambda part: to_tensor(part, self.device), self.observations)
        self._actions, self._rewards, self._terminations, self._last = (
            to_tensor(part, self.device) for part in (self.actions, self.rewards, self.terminations, self.last)
        )
        self._discounts = self.gamma ** th.arange(self.n_steps, dtype=th.float64, device=self.device)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> TransitionBatch:  # type: ignore[override]
        first = th.from_numpy(batch_inds)
        if self.device.type == "cuda":
            # From other memory a copy would wait until the GPU has done all that it was asked for
            first = first.pin_memory()
        first = first.to(self.device, non_blocking=True)
        episode = th.searchsorted(self._last, first)
        last = self._last[episode]
        steps = first[:, None] + th.arange(self.n_steps, device=self.device)
        valid = steps[:, -1] <= last
        # An invalid sample stays inside its own trajectory
        steps = th.minimum(steps, last[:, None])

        def observations(rows: th.Tensor) -> PyTorchObs:
            return normalized_observations(map_observations(lambda part: part[rows], self._observations), env)

        rewards = self._rewards[steps].double()
        if env is not None and env.norm_reward:
            rewards = (rewards / float(np.sqrt(env.ret_rms.var + env.epsilon))).clamp(-env.clip_reward, env.clip_reward)
        return TransitionBatch(
            # An episode of T transitions has T + 1 observations: its own lie one row further for each one before
            observations=observations(first + episode),
            actions=self._actions[steps[:, : self.chunk_size]].flatten(start_dim=1),
            next_observations=observations(steps[:, -1] + episode + 1),
            rewards=(rewards * self._discounts).sum(dim=1).float(),
            discounts=th.full((len(first),), self.gamma**self.n_steps, device=self.device),
            masks=1 - self._terminations[steps].any(dim=1).float(),
            valid=valid.float(),
        )


def normalized_observations(observations: PyTorchObs, env: VecNormalize | None) -> PyTorchObs:
    """
    :param observations: Observations on a device
    :param env: Has the statistics; those of what it does not normalize are left alone
    :return: What ``VecNormalize.normalize_obs`` makes of them
    """
    if env is None or not env.norm_obs:
        return observations

    def normalized(part: th.Tensor, statistics: RunningMeanStd) -> th.Tensor:
        mean, std = (
            th.as_tensor(value, device=part.device)
            for value in (statistics.mean, np.sqrt(statistics.var + env.epsilon))
        )
        return ((part - mean) / std).clamp(-env.clip_obs, env.clip_obs).float()

    if isinstance(observations, dict):
        assert isinstance(env.obs_rms, dict)  # for mypy
        keys = env.norm_obs_keys or ()
        return {key: normalized(part, env.obs_rms[key]) if key in keys else part for key, part in observations.items()}
    assert isinstance(env.obs_rms, RunningMeanStd)  # for mypy
    return normalized(observations, env.obs_rms)
