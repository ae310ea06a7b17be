"""From a dataset to a policy that beats it, in a few minutes on a laptop: ``python examples/quickstart.py``.

Needs ``pip install "sb3-qam[quickstart]"``.

A ball in a U-shaped maze (PointMaze UMaze of gymnasium-robotics) gets a reward of 1 when it reaches the goal and 0
everywhere else. A scripted controller records the data: in half of the episodes it steers to the goal, in the other
half it wanders about. QAM learns from this data, first offline and then online, and is evaluated beside a clone of the
data on the same 50 starts. Picture, numbers and models are written to ``./quickstart/``.

What it prints at its end, after 192 seconds on two CPU cores:

                success rate   mean episode length
    clone               0.72                   170
    QAM offline         0.94                   105
    QAM online          1.00                    92
"""

import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import maze_pictures
import minari
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam import QAM
from sb3_qam.environments import register_environments
from sb3_qam.recording import ScriptedPolicy, collect

register_environments()
th.set_num_threads(1)  # networks of this size gain nothing from more

ENV_ID = "PointMaze_UMaze-v3"
# An episode ends at the goal, and after 300 steps
ENV_KWARGS: dict[str, Any] = {"continuing_task": False}
DATASET_ID = "sb3-qam/umaze-v0"
N_EPISODES, OFFLINE_STEPS, ONLINE_STEPS = 600, 10_000, 3_000
EVAL_FREQ, N_STARTS = 1_000, 50
OUTPUT = Path("quickstart")
# Row and column of the maze's cells, from one end of the U to the other
CELLS = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]


class Driver(ScriptedPolicy):
    """Steers from cell to cell, with noise: to the goal in half of the episodes, else slowly to random cells."""

    def reset(self, observation: Any, info: dict[str, Any], env: gym.Env, rng: np.random.Generator) -> None:
        self.maze, self.rng = env.get_wrapper_attr("maze"), rng
        self.wanders = rng.random() < 0.5
        self.target = self.random_center() if self.wanders else observation["desired_goal"]

    def select_action(self, observation: Any, info: dict[str, Any]) -> np.ndarray:
        position, velocity = observation["observation"][:2], observation["observation"][2:]
        if self.wanders and np.linalg.norm(self.target - position) < 0.3:
            self.target = self.random_center()
        here, there = (CELLS.index(tuple(self.maze.cell_xy_to_rowcol(xy))) for xy in (position, self.target))
        waypoint = self.target if here == there else self.center(here + np.sign(there - here))
        force = (2.0 if self.wanders else 10.0) * (waypoint - position) - velocity
        return np.clip(force + 0.5 * self.rng.normal(size=2), -1, 1)

    def center(self, number: int) -> np.ndarray:
        return self.maze.cell_rowcol_to_xy(np.array(CELLS[number]))

    def random_center(self) -> np.ndarray:
        return self.center(int(self.rng.integers(len(CELLS))))


def collect_data() -> minari.MinariDataset:
    """Record the dataset, unless the local Minari cache has it already."""
    return collect(Driver(), ENV_ID, DATASET_ID, N_EPISODES, env_kwargs=ENV_KWARGS, progress_bar=True)


def make_model(seed: int) -> QAM:
    """QAM with small networks, for a CPU."""
    return QAM(
        "FlowPolicy",
        make_vec_env(ENV_ID, env_kwargs=ENV_KWARGS),
        offline_dataset=DATASET_ID,
        inverse_temperature=10.0,  # how far the policy may follow the critic away from the data
        n_steps=5,
        batch_size=128,
        policy_kwargs=dict(net_arch=[128, 128]),
        seed=seed,
    )


def make_starts() -> VecEnv:
    """One environment for each start."""
    return make_vec_env(ENV_ID, n_envs=N_STARTS, env_kwargs=ENV_KWARGS)


class Evaluations(EvalCallback):
    """The learning curve, from the same starts at each evaluation, and the paths of the last one."""

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            self.eval_env.seed(0)
            self.paths = maze_pictures.Paths(N_STARTS)
        return super()._on_step()

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        self.paths.add(locals_, globals_)

    def last(self) -> dict[str, Any]:
        """The last point of the curve, as evaluate() has it."""
        returns, lengths = np.array(self.evaluations_results[-1]), self.evaluations_length[-1]
        return {"success": float(np.mean(returns > 0)), "length": float(np.mean(lengths)), "paths": self.paths}


def evaluate(model: QAM, starts: VecEnv) -> dict[str, Any]:
    """Success rate, mean episode length and paths, from the same starts at each call."""
    starts.seed(0)
    paths = maze_pictures.Paths(N_STARTS)
    # Actions are sampled, because the clone is to do what the data did
    returns, lengths = evaluate_policy(
        model, starts, N_STARTS, deterministic=False, callback=paths.add, return_episode_rewards=True
    )
    return {"success": float(np.mean(np.array(returns) > 0)), "length": float(np.mean(lengths)), "paths": paths}


def main() -> None:
    started = time.time()
    dataset = collect_data()
    reached = np.mean([episode.rewards.sum() > 0 for episode in dataset])
    print(f"{DATASET_ID}: {dataset.total_episodes} episodes, {dataset.total_steps} steps, {reached:.0%} reach the goal")

    model, starts = make_model(seed=0), make_starts()
    curve = Evaluations(
        make_starts(),
        n_eval_episodes=N_STARTS,
        eval_freq=EVAL_FREQ,
        log_path=str(OUTPUT),
        deterministic=False,
        verbose=0,
    )
    model.pretrain(gradient_steps=OFFLINE_STEPS, callback=curve, progress_bar=True)
    model.save(OUTPUT / "qam_offline")
    # The clone is trained along: it is the policy at inverse temperature 0
    clone = QAM.load(OUTPUT / "qam_offline", inverse_temperature=0.0)
    results = {"clone": evaluate(clone, starts), "QAM offline": curve.last()}

    model.learn(ONLINE_STEPS, callback=curve, reset_num_timesteps=False, progress_bar=True)
    model.save(OUTPUT / "qam_online")
    results["QAM online"] = curve.last()

    maze_pictures.draw(results, OUTPUT / "evaluations.npz", OFFLINE_STEPS, starts, OUTPUT / "quickstart.png")
    print(f"{'':11} success rate   mean episode length")
    for name, result in results.items():
        del result["paths"]
        print(f"{name:11} {result['success']:12.2f}   {result['length']:19.0f}")
    (OUTPUT / "results.json").write_text(json.dumps(results, indent=2))
    print(f"{time.time() - started:.0f} seconds; picture, numbers and models are in {OUTPUT.resolve()}")


if __name__ == "__main__":
    main()
