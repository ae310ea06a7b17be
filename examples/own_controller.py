"""Your own dataset: a controller in five lines, recorded, and beaten: ``python examples/own_controller.py``.

The car of MountainCarContinuous is too weak for the hill: it has to swing. The controller pushes wherever the car rolls
already, with a strength that changes all the time. QAM learns from 100 of its episodes, offline, when which push pays.

What it prints (60 seconds on one CPU core; the last digits differ from machine to machine):

    examples/mountaincar-v0: 100 episodes, 00000 steps
    controller  return  00.0  steps 000
    clone       return  00.0  steps 000
    QAM         return  00.0  steps 000
"""

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from sb3_qam.datasets.collect import collect

ENV_ID = "MountainCarContinuous-v0"


def controller(observation: np.ndarray) -> np.ndarray:
    """Any function of an observation will do; what is random comes from NumPy's global generator."""
    _, velocity = observation
    return np.array([np.sign(velocity) * np.random.uniform(0.0, 1.0)], dtype=np.float32)


def main() -> None:
    th.set_num_threads(1)
    dataset = collect(controller, ENV_ID, "examples/mountaincar-v0", n_episodes=100)
    print(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")
    returns = [episode.rewards.sum() for episode in dataset]
    print(f"controller  return {np.mean(returns):5.1f}  steps {dataset.total_steps / dataset.total_episodes:.0f}")
    model = QAM(
        "FlowPolicy",
        "recover",
        offline_dataset=dataset,
        n_steps=5,
        inverse_temperature=10.0,
        flow_steps=5,
        batch_size=128,
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
    )
    import time
    t=time.time()
    for w in range(3):
        model.pretrain(gradient_steps=2000, reset_num_timesteps=False)
        print(time.time()-t)
        model.save("/tmp/rel-ex/mc")
        clone = QAM.load("/tmp/rel-ex/mc", inverse_temperature=0.0)
        for name, each in {"clone": clone, "QAM": model}.items():
            result = evaluate(each, make_vec_env(ENV_ID, n_envs=20), 20, deterministic=False)
            print(name, result)


if __name__ == "__main__":
    main()
