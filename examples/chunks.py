"""Action chunks on OGBench's cube: ``python examples/chunks.py``.

Needs ``pip install "sb3-qam[ogbench]"``.

A robot arm picks up a cube and puts it at a target, in about 60 steps. The data is 100 episodes of OGBench's oracle.
With ``chunk_size=5`` the policy decides on five actions at once, so that the movements of the oracle stay in one piece,
and the critic looks five steps ahead.

What it prints (three minutes on one CPU core; numbers differ a little from machine to machine):

    examples/cube-v0: 100 episodes, 6513 steps, success 0.99
    clone: success 0.05, steps 194
    QAM:   success 0.05, steps 190

4,000 updates are a beginning: the published runs have a million, and networks of four times the width.
"""

import os

os.environ.setdefault("MUJOCO_GL", "egl")

from typing import Any

import gymnasium as gym
import numpy as np
import ogbench  # noqa: F401 (registers its environments)
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from sb3_qam.recording import collect, ogbench_oracle

ENV_ID = "cube-single-v0"


class TargetInObservation(gym.Wrapper):
    """Adds the way from the cube to its target, which is anywhere on the table while data is collected."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        size = env.observation_space.shape[0] + 3  # type: ignore[index]
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self.add_target(observation, info), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self.add_target(observation, info), reward, terminated, truncated, info

    def add_target(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        way = info["privileged/target_block_pos"] - info["privileged/block_0_pos"]
        # OGBench's unit for positions is 10 cm, too
        return np.concatenate([observation, 10.0 * way]).astype(np.float32)


def make_env() -> gym.Env:
    return TargetInObservation(gym.make(ENV_ID, mode="data_collection", max_episode_steps=200))


def main() -> None:
    th.set_num_threads(1)
    dataset = collect(ogbench_oracle(ENV_ID), make_env, "examples/cube-v0", n_episodes=100)
    success = np.mean([episode.rewards.sum() > 0 for episode in dataset])
    print(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps, success {success:.2f}")
    model = QAM(
        "FlowPolicy",
        make_env(),
        offline_dataset=dataset,
        chunk_size=5,
        inverse_temperature=3.0,
        batch_size=128,
        policy_kwargs={"net_arch": [128, 128]},
        seed=0,
    )
    model.pretrain(gradient_steps=4_000)
    model.save("chunks")
    # The clone is trained along: it is the policy at inverse temperature 0
    clone = QAM.load("chunks", inverse_temperature=0.0)
    starts = make_vec_env(make_env, n_envs=10, seed=0)
    for name, each in {"clone:": clone, "QAM:  ": model}.items():
        result = evaluate(each, starts, 20, deterministic=False)
        print(f"{name} success {np.mean(result.returns):.2f}, steps {np.mean(result.lengths):.0f}")


if __name__ == "__main__":
    main()
