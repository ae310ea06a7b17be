"""Action chunks, executed open loop: the rest of a chunk is the state of a policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sb3_qam.common.buffers import map_observations, n_rows, take_rows


class ChunkState(NamedTuple):
    """
    The chunk that each environment is in.

    :param actions: Whole chunks in the bounds of the action space, shape ``(n_envs, chunk_size, *action_shape)``
    :param position: How many of its actions each environment has executed, shape (n_envs,)
    """

    actions: np.ndarray
    position: np.ndarray

    @classmethod
    def used_up(cls, n_envs: int, chunk_shape: tuple[int, ...]) -> "ChunkState":
        """
        :param n_envs: Number of environments
        :param chunk_shape: ``(chunk_size, *action_shape)``
        :return: The state in which every environment needs a new chunk
        """
        return cls(np.zeros((n_envs, *chunk_shape), np.float32), np.full(n_envs, chunk_shape[0]))


def check_chunk_state(state: Any, n_envs: int, chunk_shape: tuple[int, ...]) -> ChunkState:
    """
    :param state: What a caller of predict() gave
    :param n_envs: Number of observations
    :param chunk_shape: ``(chunk_size, *action_shape)``
    :return: A copy
    :raises ValueError: if it is not the state that predict() returned for as many environments
    """
    expected = [(n_envs, *chunk_shape), (n_envs,)]
    shapes = [np.shape(part) for part in state] if isinstance(state, (tuple, list)) else type(state).__name__
    if shapes != expected or not np.isin(state[1], np.arange(chunk_shape[0] + 1)).all():
        raise ValueError(
            f"state must be what predict() returned for the same {n_envs} environment(s), arrays of the shapes "
            f"{expected[0]} and {expected[1]}, the second one counting from 0 to {chunk_shape[0]}, got "
            f"{shapes if shapes != expected else state[1]}. Pass state=None to begin new chunks."
        )
    return ChunkState(np.array(state[0]), np.array(state[1], dtype=int))


def check_episode_start(episode_start: Any, n_envs: int) -> np.ndarray:
    """
    :param episode_start: What a caller of predict() gave
    :param n_envs: Number of observations
    :return: Whether each environment has just been reset, shape (n_envs,)
    :raises ValueError: if it does not say so of each environment
    """
    if np.shape(episode_start) != (n_envs,):
        raise ValueError(
            f"episode_start must have one entry for each of {n_envs} environment(s), got {episode_start!r}."
        )
    return np.asarray(episode_start, dtype=bool)


def predict_in_chunks(
    predict_rows: Callable[[Any], np.ndarray],
    observation: Any,
    state: tuple[np.ndarray, ...] | None,
    episode_start: np.ndarray | None,
    chunk_shape: tuple[int, ...],
    is_vectorized: Callable[[Any], bool],
) -> tuple[np.ndarray, ChunkState]:
    """
    Act open loop: environments that have executed their chunk, or were reset, get a new one.

    :param predict_rows: Makes whole chunks for a batch of observations
    :param observation: The observation of one environment, or of several
    :param state: What the last call returned
    :param episode_start: Whether each environment has just been reset, shape (n_envs,)
    :param chunk_shape: ``(chunk_size, *action_shape)``
    :param is_vectorized: Whether an observation is of several environments
    :return: The action(s) and the next state
    :raises ValueError: if the state or ``episode_start`` is not one of as many environments
    """
    observation = map_observations(np.asarray, observation)
    of_several = is_vectorized(observation)
    if not of_several:
        observation = map_observations(lambda part: part[None], observation)
    n_envs = n_rows(observation)
    actions, position = (
        ChunkState.used_up(n_envs, chunk_shape) if state is None else check_chunk_state(state, n_envs, chunk_shape)
    )
    if episode_start is not None:
        position[check_episode_start(episode_start, n_envs)] = chunk_shape[0]
    needs_chunk = np.flatnonzero(position == chunk_shape[0])
    if len(needs_chunk) > 0:
        new_actions = predict_rows(take_rows(observation, needs_chunk))
        actions[needs_chunk] = new_actions.reshape(len(needs_chunk), *chunk_shape)
        position[needs_chunk] = 0
    action = actions[np.arange(n_envs), position]
    return action if of_several else action[0], ChunkState(actions, position + 1)
