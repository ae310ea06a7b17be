"""Wrappers for RL Zoo's configurations."""

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_qam.datasets.rewards import SUCCESS_KEYS


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
                info["is_success"] = bool(self._succeeded[number])
        self._succeeded &= ~dones
        return observations, rewards, dones, infos
