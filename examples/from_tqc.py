"""Episodes of an sb3-contrib model as data for QAM: ``python examples/from_tqc.py``.

Needs ``pip install sb3-qam``.

TQC is trained on Pendulum for only 3,000 steps, and then recorded while it still explores. QAM learns from these 40
episodes alone.

What it prints (two minutes on one CPU core; numbers differ a little from machine to machine):

    examples/pendulum-tqc-v0: 40 episodes, 8000 steps
    TQC, exploring: return -428
    TQC, best:      return -339
    clone:          return -526
    QAM:            return -334
"""

import numpy as np
import torch as th
from sb3_contrib import TQC
from stable_baselines3.common.env_util import make_vec_env

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from sb3_qam.recording import collect

ENV_ID = "Pendulum-v1"


def main() -> None:
    th.set_num_threads(1)
    teacher = TQC(
        "MlpPolicy",
        ENV_ID,
        learning_rate=1e-3,
        learning_starts=500,
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
    )
    teacher.learn(3_000)
    dataset = collect(teacher, ENV_ID, "examples/pendulum-tqc-v0", n_episodes=40)
    print(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")
    print(f"TQC, exploring: return {np.mean([episode.rewards.sum() for episode in dataset]):.0f}")

    model = QAM(
        "FlowPolicy",
        env=None,
        offline_dataset=dataset,
        n_steps=3,
        gamma=0.98,
        reward_transform={"scale": 0.1},
        # TRQAM, which stays close to the data: see trqam.py
        kl_budget=0.1,
        batch_size=128,
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
    )
    model.pretrain(gradient_steps=6_000)
    model.save("from_tqc")
    # The clone is trained along: it is the policy at inverse temperature 0
    clone = QAM.load("from_tqc", inverse_temperature=0.0, kl_budget=None)
    for name, each in {"TQC, best:     ": teacher, "clone:         ": clone, "QAM:           ": model}.items():
        returns = evaluate(each, make_vec_env(ENV_ID, n_envs=20, seed=0), 20).returns
        print(f"{name} return {np.mean(returns):.0f}")


if __name__ == "__main__":
    main()
