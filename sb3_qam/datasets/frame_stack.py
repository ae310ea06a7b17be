"""Stacked frames for a single environment, and so for the datasets recorded in it."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_qam.utils.checks import check_positive_int
from sb3_qam.utils.nested import map_observations


class StackFrames(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    The observations that SB3's ``VecFrameStack`` makes, as a wrapper of a single environment: the latest frames side by
    side, along the channels of an image and the last axis of anything else, and zeros before the first one.
    (Gymnasium's ``FrameStackObservation`` adds an axis, which SB3 does not take for an image any more.)

    As a wrapper it also goes around a dataset, ``wrap_dataset(dataset, partial(StackFrames, n_stack=4))``, which then
    fits an environment behind ``VecFrameStack(env, 4)``.

    :param env: The environment
    :param n_stack: Number of frames
    :param channels_order: ``"first"`` or ``"last"``, a dict of these by key, or ``None`` to find out, as for
        ``VecFrameStack``
    :raises TypeError: if observations are neither a Box nor a Dict of these
    """

    def __init__(
        self, env: gym.Env, n_stack: int, channels_order: str | Mapping[str, str | None] | None = None
    ) -> None:
        check_positive_int("n_stack", n_stack)
        gym.utils.RecordConstructorArgs.__init__(self, n_stack=n_stack, channels_order=channels_order)
        super().__init__(env)
        self._frames: StackedObservations = StackedObservations(
            1,
            n_stack,
            env.observation_space,  # type: ignore[arg-type]
            channels_order,
        )
        self.observation_space = self._frames.stacked_observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """:return: The first frame behind zeros, and the environment's info"""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._only(self._frames.reset(self._batch(observation))), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """:return: As the environment's, with the latest frames"""
        observation, reward, terminated, truncated, info = self.env.step(action)
        # The end of an episode concerns what a VecEnv does by itself, a reset
        stacked, _ = self._frames.update(self._batch(observation), np.zeros(1, dtype=bool), [{}])
        return self._only(stacked), reward, terminated, truncated, info

    @staticmethod
    def _batch(observation: Any) -> Any:
        return map_observations(lambda part: np.asarray(part)[None], observation)

    @staticmethod
    def _only(stacked: Any) -> Any:
        # A copy: the next reset writes into it
        return map_observations(lambda part: part[0].copy(), stacked)
