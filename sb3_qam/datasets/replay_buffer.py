"""SB3's replay buffers as datasets."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from minari.dataset.episode_data import EpisodeData
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl

from sb3_qam.datasets.checks import Place
from sb3_qam.utils.nested import map_observations

ReplayBufferSource: TypeAlias = ReplayBuffer | str | os.PathLike[str]

# Steps whose observations are compared together
BLOCK = 1024


class ReplayBufferDataset:
    """
    The transitions of a replay buffer as episodes, those of each environment on their own, in the order in which they
    were stored. An episode ends where it is done, where the next transition does not begin in the state that it led to
    (the environment was reset in between), and at the transition that was stored last. As in SB3, ``dones`` that are
    no timeouts are terminations, actions are stored scaled to [-1, 1], and observations and rewards are those from
    before ``VecNormalize``.

    With ``optimize_memory_usage`` a full buffer has lost its oldest transition, and every successor of a done state.

    :param buffer: The buffer; it is read when it is needed, and stays as it is
    :param name: Names it in errors and logs
    """

    env_spec = None

    def __init__(self, buffer: ReplayBuffer, name: str | None = None) -> None:
        self.buffer = buffer
        self.id = name or type(buffer).__name__
        self.observation_space, self.action_space = buffer.observation_space, buffer.action_space
        oldest = buffer.pos if buffer.full else 0
        n_overwritten = int(buffer.full and buffer.optimize_memory_usage)
        # Transitions, from the oldest to the newest
        self._rows = (np.arange(n_overwritten, buffer.size()) + oldest) % buffer.buffer_size
        self._is_last = self._find_ends()
        self.total_steps = self._is_last.size
        self.total_episodes = int(self._is_last.sum())

    def _find_ends(self) -> np.ndarray:
        """:return: Whether an episode ends with a transition, shape (n_rows, n_envs)"""
        buffer, rows = self.buffer, self._rows
        # A sequence buffer knows terminations inside of an episode
        is_last = getattr(buffer, "ends", buffer.dones)[rows] > 0
        is_last[-1:] = True
        if not buffer.optimize_memory_usage:
            for start in range(0, len(rows) - 1, BLOCK):
                here, there = rows[start : start + BLOCK + 1][:-1], rows[start + 1 : start + BLOCK + 1]

                def differs(observations: np.ndarray, following: np.ndarray) -> np.ndarray:
                    return (following[here] != observations[there]).reshape(len(here), buffer.n_envs, -1).any(axis=2)  # noqa: B023

                found = map_observations(differs, buffer.observations, buffer.next_observations)
                for part in found.values() if isinstance(found, dict) else [found]:
                    is_last[start : start + len(here)] |= part
        return is_last

    def episodes(self) -> Iterator[tuple[Place, EpisodeData]]:
        """:return: The episodes, and where each lies"""
        buffer, number = self.buffer, 0
        following = buffer.observations if buffer.optimize_memory_usage else buffer.next_observations
        for env in range(buffer.n_envs):
            start = 0
            for stop in (np.flatnonzero(self._is_last[:, env]) + 1).tolist():
                rows = self._rows[start:stop]
                last = rows[-1:] if following is not buffer.observations else (rows[-1:] + 1) % buffer.buffer_size
                observations = map_observations(
                    lambda before, after: np.concatenate([before[rows, env], after[last, env]]),  # noqa: B023
                    buffer.observations,
                    following,
                )
                dones, timeouts = buffer.dones[rows, env] > 0, buffer.timeouts[rows, env] > 0
                episode = EpisodeData(
                    id=number,
                    observations=observations,
                    actions=self._unscaled(buffer.actions[rows, env]),
                    rewards=buffer.rewards[rows, env],
                    terminations=dones & ~timeouts,
                    truncations=dones & timeouts,
                    infos={},
                )
                yield Place(self.id, number, Path(self.id), len(rows)), episode
                start, number = stop, number + 1

    def _unscaled(self, actions: np.ndarray) -> np.ndarray:
        space: Any = self.action_space
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return low + 0.5 * (actions.reshape(-1, *space.shape).astype(np.float64) + 1.0) * (high - low)


def open_replay_buffer(source: ReplayBufferSource) -> ReplayBufferDataset:
    """
    :param source: A replay buffer, or the path of a file by ``save_replay_buffer()``. Such a file is a pickle, which
        runs whatever code it contains: load only those that you trust
    :return: Its transitions
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it cannot be read
    :raises TypeError: if it is no replay buffer
    """
    if isinstance(source, ReplayBuffer):
        return ReplayBufferDataset(source)
    expected = f"Expected a replay buffer of SB3, or the path of one by save_replay_buffer(), got {source!r}"
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"{expected}.")
    try:
        loaded = load_from_pkl(Path(source))
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{expected}, which cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, ReplayBuffer):
        raise TypeError(f"{expected}, which holds a {type(loaded).__name__}.")
    return ReplayBufferDataset(loaded, str(source))
