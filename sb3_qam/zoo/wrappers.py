"""Wrappers for RL Zoo's configurations, of environments and datasets."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from rl_zoo3 import get_wrapper_class
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_qam.datasets.frame_stack import StackFrames
from sb3_qam.datasets.rewards import SUCCESS_KEYS
from sb3_qam.datasets.sources import OfflineDataset, wrap_dataset


def wrap_as_environment(dataset: OfflineDataset, config: Mapping[str, Any]) -> OfflineDataset:
    """
    Data is recorded without the wrappers of a run.

    :param dataset: A dataset, or a list of these
    :param config: A configuration of RL Zoo, of which ``env_wrapper`` and ``frame_stack`` count
    :return: What its environment would have given
    :raises ValueError: if a wrapper cannot be used
    """
    env_wrapper, n_stack = get_wrapper_class(dict(config)), config.get("frame_stack")
    wrappers: list[Callable[[gym.Env], gym.Env]] = [] if env_wrapper is None else [env_wrapper]
    if n_stack is not None:
        # As VecFrameStack does, which the zoo puts around all others
        wrappers.append(partial(StackFrames, n_stack=n_stack))
    if not wrappers:
        return dataset
    key = f"{config.get('env_wrapper')}, frame_stack={n_stack}"
    datasets = dataset if isinstance(dataset, (list, tuple)) else [dataset]
    return [wrap_dataset(each, *wrappers, key=key) for each in datasets]


class EpisodeSuccess(VecEnvWrapper):
    """
    Says at the end of an episode, in ``is_success``, whether any of its steps was a success. That is where SB3 and
    RL Zoo look for a success rate; mazes and OGBench say ``success``, step by step.

    :param venv: The environments
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._succeeded = np.zeros(venv.num_envs, dtype=bool)

    def reset(self) -> VecEnvObs:
        self._succeeded[:] = False
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        for number, info in enumerate(infos):
            self._succeeded[number] |= any(bool(info.get(key)) for key in SUCCESS_KEYS)
            if dones[number]:
                if "is_success" in info:
                    # Of this step, as rewards that are taken from success want it
                    info.setdefault("success", info["is_success"])
                info["is_success"] = bool(self._succeeded[number])
        self._succeeded &= ~dones
        return observations, rewards, dones, infos
