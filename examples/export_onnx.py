"""Export a policy to ONNX and run it without PyTorch: ``python examples/export_onnx.py``.

Needs ``pip install "sb3-qam[onnx]"``.

QAM learns Pendulum from scratch, briefly, with normalized observations and in chunks of four actions. The file takes
the environment's own observations. It is executed by ``runtime.py`` of the package, which needs NumPy and onnxruntime
alone: what is copied to a robot is that file and this one.

What it prints (8 seconds on one CPU core; numbers differ a little from machine to machine):

    policy.onnx: 77 kB
    an episode by runtime.py alone: 200 steps, return -993
"""

import shutil
from pathlib import Path

import gymnasium as gym
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_qam.runtime
from sb3_qam import QAM, export_onnx
from sb3_qam.runtime import OnnxPolicy

ENV_ID = "Pendulum-v1"


def main() -> None:
    th.set_num_threads(1)
    env = VecNormalize(make_vec_env(ENV_ID, seed=0))
    model = QAM("FlowPolicy", env, chunk_size=4, batch_size=64, policy_kwargs={"net_arch": [64, 64]}, seed=0)
    model.learn(500)
    path = Path("policy.onnx")
    # After two actions of a chunk comes the next one
    model.policy.replan_every = 2
    export_onnx(model, path)
    shutil.copy(sb3_qam.runtime.__file__, "runtime.py")
    print(f"{path}: {path.stat().st_size // 1000} kB")

    # From here on, these two files are all that is needed: ``from runtime import OnnxPolicy``
    policy, state = OnnxPolicy(path), None
    robot = gym.make(ENV_ID)
    observation, _ = robot.reset(seed=0)
    rewards: list[float] = []
    done = False
    while not done:
        action, state = policy.predict(observation, state)
        observation, reward, terminated, truncated, _ = robot.step(action)
        rewards.append(float(reward))
        done = terminated or truncated
    print(f"an episode by runtime.py alone: {len(rewards)} steps, return {sum(rewards):.0f}")


if __name__ == "__main__":
    main()
