"""Ways to execute chunks: ``python benchmarks/acting_in_chunks.py TASK --data FILE.npz [--seeds 0 1 2]``.

Trains TRQAM with chunks of 5 on an OGBench task, such as pointmaze-medium-navigate-singletask-task1-v0, offline:
10,000 steps of BC, then ``--updates``. Then the same model acts open loop, replans after 2 actions and after each, and
averages overlapping chunks. Printed are the success of 100 episodes, the steps that they took, and the mean squared
jerk of actions: the third difference of actions scaled to [-1, 1], squared, averaged over steps and dimensions.

Models are kept in ``--folder``, and what is there is not trained again.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from sb3_qam.environments import register_environments
from sb3_qam.recording.ogbench import import_ogbench

WAYS: dict[str, dict[str, Any]] = {
    "open loop": {},
    "replan_every = 2": {"replan_every": 2},
    "replan_every = 1": {"replan_every": 1},
    "ensemble_decay = 0.01": {"ensemble_decay": 0.01},
    "ensemble_decay = 0.5": {"ensemble_decay": 0.5},
}
N_ENVS = 20


class ActionRecorder(VecEnvWrapper):
    """Keeps the actions of each episode."""

    def reset(self) -> Any:
        self.episodes: list[np.ndarray] = []
        self._current: list[list[np.ndarray]] = [[] for _ in range(self.num_envs)]
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        for current, action in zip(self._current, actions, strict=True):
            current.append(action)
        super().step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        for number in np.flatnonzero(dones):
            self.episodes.append(np.array(self._current[number]))
            self._current[number] = []
        return observations, rewards, dones, infos


def train(task: str, dataset_id: str, path: Path, seed: int, updates: int, device: str) -> QAM:
    """What is in the folder, or a new model."""
    if not path.exists():
        model = QAM(
            "FlowPolicy",
            offline_dataset=dataset_id,
            kl_budget=0.5 if "maze" in task else 1.0,
            chunk_size=5,
            gamma=0.995 if "maze" in task else 0.99,
            flow_steps=5,
            batch_size=128,
            policy_kwargs={"net_arch": [128, 128]},
            seed=seed,
            device=device,
        )
        model.pretrain(gradient_steps=10_000, objective="bc")
        model.pretrain(gradient_steps=updates, reset_num_timesteps=False)
        model.save(path)
    return QAM.load(path, device="cpu")


def main() -> None:
    """Train what is missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--data", type=Path, required=True, help="OGBench's npz file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--sampled", action="store_true", help="Sample the noise, which is the observation's else")
    parser.add_argument("--folder", type=Path, default=Path("."))
    parser.add_argument("--device", default="cpu", help="for training")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    register_environments()
    dataset = import_ogbench(arguments.task, arguments.data)
    print("| execution | success | steps | mean squared jerk |\n| --- | --- | --- | --- |", flush=True)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAYS}
    for seed in arguments.seeds:
        path = arguments.folder / f"{arguments.task}-{seed}.zip"
        model = train(arguments.task, dataset.id, path, seed, arguments.updates, arguments.device)
        for name, settings in WAYS.items():
            model.policy.replan_every = settings.get("replan_every")
            model.policy.ensemble_decay = settings.get("ensemble_decay")
            model.set_random_seed(seed)
            env = ActionRecorder(make_vec_env(dataset.recover_environment, N_ENVS, seed=1000))
            result = evaluate(model, env, arguments.episodes, deterministic=not arguments.sampled)
            scaled = [model.policy.scale_action(actions) for actions in env.episodes]
            jerk = np.concatenate([np.diff(actions, n=3, axis=0) for actions in scaled])
            env.close()
            assert result.successes is not None
            found[name].append((float(np.mean(result.successes)), float(np.mean(result.lengths)), (jerk**2).mean()))
    n_episodes = arguments.episodes * len(arguments.seeds)
    for name, rows in found.items():
        success, steps, jerk_of_way = np.mean(rows, axis=0)
        error = math.sqrt(np.mean([row[0] * (1 - row[0]) for row in rows]) / n_episodes)
        print(f"| {name} | {success:.3f} ± {error:.2g} | {steps:.0f} | {jerk_of_way:.3g} |")


if __name__ == "__main__":
    main()
