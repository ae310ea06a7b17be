"""Record a controller of three lines, and beat it: ``python examples/own_controller.py``.

Needs ``pip install sb3-qam``.

The car of MountainCarContinuous is too weak for its hill, and has to swing. The controller pushes in the direction in
which the car is rolling, with a random strength. From 100 of its episodes QAM learns which pushes pay. The car's
velocity is tiny compared to its position, so ``VecNormalize`` normalizes observations, by the statistics of the data.

What it prints (50 seconds on one CPU core; numbers differ a little from machine to machine):

    examples/mountaincar-v0: 100 episodes, 14745 steps
    controller: at the top after 147 steps
    clone:      at the top after 172 steps
    QAM:        at the top after 119 steps
"""

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from sb3_qam.recording import collect

ENV_ID = "MountainCarContinuous-v0"


def controller(observation: np.ndarray) -> np.ndarray:
    """Any function of an observation will do. Its random numbers come from NumPy's global generator."""
    _, velocity = observation
    return np.array([np.sign(velocity) * np.random.uniform(0.0, 1.0)], dtype=np.float32)


def main() -> None:
    th.set_num_threads(1)
    dataset = collect(controller, ENV_ID, "examples/mountaincar-v0", n_episodes=100)
    print(f"{dataset.id}: {dataset.total_episodes} episodes, {dataset.total_steps} steps")
    print(f"controller: at the top after {dataset.total_steps / dataset.total_episodes:.0f} steps")

    env = VecNormalize(make_vec_env(ENV_ID, n_envs=20, seed=0), norm_reward=False)
    model = QAM(
        "FlowPolicy",
        env,
        offline_dataset=dataset,
        n_steps=5,
        inverse_temperature=10.0,
        batch_size=128,
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
    )
    model.pretrain(gradient_steps=4_000)

    model.save("own_controller")
    # Evaluations must not change the statistics
    env.training = False
    # The clone is trained along: it is the policy at inverse temperature 0
    clone = QAM.load("own_controller", env=env, inverse_temperature=0.0)
    for name, each in {"clone:     ": clone, "QAM:       ": model}.items():
        lengths = evaluate(each, env, 20, deterministic=False).lengths
        print(f"{name} at the top after {np.mean(lengths):.0f} steps")


if __name__ == "__main__":
    main()
