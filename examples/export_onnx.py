"""Export a policy to ONNX and run it without PyTorch: ``python examples/export_onnx.py``.

Needs ``pip install "sb3-qam[onnx]"``.

QAM learns Pendulum from scratch, briefly. The exported file contains the whole sampler with all flow steps, and is
compared with the policy before it is given its name.

What it prints (8 seconds on one CPU core; numbers differ a little from machine to machine):

    policy.onnx: 46 kB
    an episode by onnxruntime alone: 200 steps, return -1360
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime
import torch as th

from sb3_qam import QAM, export_onnx

ENV_ID = "Pendulum-v1"


def main() -> None:
    th.set_num_threads(1)
    model = QAM("FlowPolicy", ENV_ID, batch_size=64, policy_kwargs={"net_arch": [64, 64]}, seed=0)
    model.learn(500)
    path = Path("policy.onnx")
    export_onnx(model.policy, path)
    print(f"{path}: {path.stat().st_size // 1000} kB")

    # From here on, the file is all that is needed
    session = onnxruntime.InferenceSession(path)
    env, rng = gym.make(ENV_ID), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    rewards: list[float] = []
    done = False
    while not done:
        # Shape (candidates, batch, action)
        noise = rng.standard_normal((1, 1, 1)).astype(np.float32)
        (actions,) = session.run(["action"], {"observation": observation[None], "noise": noise})
        observation, reward, terminated, truncated, _ = env.step(actions[0])
        rewards.append(float(reward))
        done = terminated or truncated
    print(f"an episode by onnxruntime alone: {len(rewards)} steps, return {sum(rewards):.0f}")


if __name__ == "__main__":
    main()
