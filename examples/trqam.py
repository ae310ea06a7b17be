"""TRQAM: a budget for the distance from the data, instead of a temperature: ``python examples/trqam.py``.

Needs ``pip install sb3-qam``.

The data is of a noisy controller of Pendulum. ``kl_budget`` says how far the policy may move from it, in nats per
environment step; the temperature is learned so that the policy stays there, whatever the scale of the rewards.

What it prints (two minutes on one CPU core; numbers differ a little from machine to machine):

    examples/pendulum-half-hearted-v0: 60 episodes, mean return -1031
    budget  0.1: distance 0.10, learned lambda 0.21, return -704
    budget  1.0: distance 0.95, learned lambda 0.09, return -889
    budget 10.0: distance 3.60, learned lambda 0.01, return -1455

Here the small budget pays: with the larger ones, whose policies move further from the data, returns are lower. The
largest one is not used up, because lambda has reached its lower bound of 0.01.
"""

import csv
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from sb3_qam.recording import collect

ENV_ID = "Pendulum-v1"


def controller(observation: np.ndarray) -> np.ndarray:
    """Swings the pendulum up and holds it upright, more or less."""
    cos, sin, velocity = observation
    torque = -8.0 * sin - 2.0 * velocity if cos > 0.8 else 2.0 * np.sign(velocity)
    return np.clip([torque + 2.0 * np.random.normal()], -2.0, 2.0).astype(np.float32)


def main() -> None:
    th.set_num_threads(1)
    dataset = collect(controller, ENV_ID, "examples/pendulum-half-hearted-v0", n_episodes=60)
    returns = [episode.rewards.sum() for episode in dataset]
    print(f"{dataset.id}: {len(returns)} episodes, mean return {np.mean(returns):.0f}")
    for kl_budget in (0.1, 1.0, 10.0):
        model = QAM(
            "FlowPolicy",
            env=None,
            offline_dataset=dataset,
            kl_budget=kl_budget,
            n_steps=3,
            gamma=0.98,
            reward_transform={"scale": 0.1},
            batch_size=128,
            policy_kwargs={"net_arch": [64, 64]},
            seed=0,
        )
        folder = Path("trqam") / f"budget_{kl_budget}"
        model.set_logger(configure(str(folder), ["csv"]))
        model.pretrain(gradient_steps=2_500, log_interval=500)
        with (folder / "progress.csv").open() as file:
            *_, last = csv.DictReader(file)
        kl, kl_lambda = float(last["train/path_kl"]), float(last["train/kl_lambda"])
        result = evaluate(model, make_vec_env(ENV_ID, n_envs=20, seed=0), 20)
        print(
            f"budget {kl_budget:4.1f}: distance {kl:.2f}, learned lambda {kl_lambda:.2f}, "
            f"return {np.mean(result.returns):.0f}"
        )


if __name__ == "__main__":
    main()
