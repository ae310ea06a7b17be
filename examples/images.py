"""Learn from images of a maze, offline and online, in a few minutes on a laptop: ``python examples/images.py``.

Needs ``pip install "sb3-qam[quickstart]"``.

A ball in a U-shaped maze (PointMaze of gymnasium-robotics), seen by a camera from above: the policy observes 64 x 64
pixels and nothing else. It chooses the velocity for the next 0.2 seconds; the reward is 1 at the goal, which ends the
episode, and 0 everywhere else. In half of the recorded episodes the ball is steered to the goal, in the other half
it wanders about. The script

1. collects such a dataset in two processes, unless the local Minari cache has it already,
2. trains QAM on it, offline, and then for a few steps online,
3. evaluates the clone of the data, QAM offline and QAM online on the same starts,
4. prints a table of medians over the seeds, and writes ``results.json``, the models and what the camera sees to
   ``./images/``.

What it ended with, with five flow steps, after 418 seconds on two busy CPU cores, the dataset being there already:

                  success rate   mean episode length
    clone                 0.68                  14.3
    QAM offline           0.98                   9.4
    QAM online            1.00                   9.4
"""

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if sys.platform == "linux":
    # Draws without a display; before MuJoCo is imported
    os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym
import gymnasium_robotics
import matplotlib.image
import minari
import numpy as np
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_qam import QAM
from sb3_qam.networks import ImpalaCNN
from sb3_qam.recording import ScriptedPolicy, collect

gym.register_envs(gymnasium_robotics)

DATASET_ID = "sb3-qam/rendered-umaze-v0"
# The ball may start anywhere but at the goal
MAZE = [
    [1, 1, 1, 1, 1],
    [1, "g", 0, 0, 1],
    [1, 1, 1, 0, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 1, 1],
]
IMAGE_SIZE = 64
# Of the simulation, 0.01 seconds each, in a step of the policy
STEPS_HELD = 20
MAX_STEPS = 25
MAX_SPEED = 2.0


# ---------------------------------------------------------------------- environment


class SeenFromAbove(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    The maze as a camera above it sees it. Actions are velocities, which makes one image a whole state.

    :param env: A PointMaze environment that renders to arrays
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        renderer = env.unwrapped.point_env.mujoco_renderer  # type: ignore[attr-defined]
        renderer.default_cam_config.update(distance=4.9, azimuth=90.0, elevation=-90.0)
        self.velocity = np.zeros(2)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        state, info = self.env.reset(**kwargs)
        self.velocity = state["observation"][2:]
        return self.env.render(), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(STEPS_HELD):
            force = np.clip(MAX_SPEED * action - self.velocity, -1, 1)
            state, reward, terminated, truncated, info = self.env.step(force)
            self.velocity = state["observation"][2:]
            total += float(reward)
            if terminated or truncated:
                break
        return self.env.render(), total, terminated, truncated, info


def make_env() -> gym.Env:
    """The maze, an image for an observation and a velocity for an action."""
    env = gym.make(
        "PointMaze_UMaze-v3",
        maze_map=MAZE,
        continuing_task=False,
        max_episode_steps=MAX_STEPS * STEPS_HELD,
        render_mode="rgb_array",
        width=IMAGE_SIZE,
        height=IMAGE_SIZE,
    )
    return SeenFromAbove(env)


# ---------------------------------------------------------------------- data


class Walker(ScriptedPolicy):
    """
    Goes from cell to cell of the maze, with noise: in half of the episodes by the shortest way to the goal, in the
    other half slowly from one random cell to another. It looks into the simulation, not at images.
    """

    def reset(self, observation: Any, info: dict[str, Any], env: gym.Env, rng: np.random.Generator) -> None:
        self.simulation: Any = env.unwrapped
        self.rng = rng
        self.wanders = rng.random() < 0.5
        self.free_cells = [
            (row, column)
            for row, line in enumerate(env.get_wrapper_attr("maze").maze_map)
            for column, cell in enumerate(line)
            if cell != 1
        ]
        self.target = None if self.wanders else env.get_wrapper_attr("goal")

    def select_action(self, observation: Any, info: dict[str, Any]) -> np.ndarray:
        position = self.simulation.data.qpos[:2]
        if self.target is None or (self.wanders and np.linalg.norm(position - self.target) < 0.3):
            self.target = self.center(self.free_cells[self.rng.integers(len(self.free_cells))])
        way = self.waypoint(position, self.target) - position
        speed = 0.6 if self.wanders else 1.0
        direction = way / max(float(np.linalg.norm(way)), 0.3)
        return np.clip(speed * direction + 0.3 * self.rng.normal(size=2), -1, 1)

    def center(self, cell: tuple[int, int]) -> np.ndarray:
        return self.simulation.maze.cell_rowcol_to_xy(np.array(cell))

    def waypoint(self, position: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The center of the next cell on the way to the target, or the target itself where that is its cell."""
        here, there = (tuple(self.simulation.maze.cell_xy_to_rowcol(xy)) for xy in (position, target))
        next_cell, queue = {there: there}, deque([there])
        while queue:
            row, column = cell = queue.popleft()
            for neighbor in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if neighbor in self.free_cells and neighbor not in next_cell:
                    next_cell[neighbor] = cell
                    queue.append(neighbor)
        cell = next_cell.get(here, there)
        return target if cell == there else self.center(cell)

    def __getstate__(self) -> dict[str, Any]:
        # Without the simulation of the last episode
        return {}


# ---------------------------------------------------------------------- training and evaluation


def make_model(dataset: minari.MinariDataset, seed: int) -> QAM:
    """QAM with small encoders, one for each network, for a few minutes on a CPU."""
    extractor_kwargs = dict(features_dim=64, n_channels=(8, 16, 16), n_blocks=1)
    return QAM(
        "CnnPolicy",
        make_vec_env(make_env),
        offline_dataset=dataset,
        random_shift=2,
        learning_rate=1e-3,
        batch_size=32,
        buffer_size=5_000,
        gamma=0.9,
        tau=0.02,
        inverse_temperature=30.0,
        policy_kwargs=dict(
            net_arch=[128, 128],
            features_extractor_class=ImpalaCNN,
            features_extractor_kwargs=extractor_kwargs,
        ),
        seed=seed,
    )


def evaluate(model: QAM, n_starts: int) -> dict[str, float]:
    """Success rate and mean length from starts that are the same for all models."""
    env = make_vec_env(make_env, n_envs=min(n_starts, 5), seed=0)
    # Actions are sampled: the clone is to do what the data did
    rewards, lengths = evaluate_policy(model, env, n_starts, deterministic=False, return_episode_rewards=True)
    env.close()
    return {"success": float(np.mean(np.array(rewards) > 0)), "length": float(np.mean(lengths))}


def train_and_evaluate(
    dataset: minari.MinariDataset, arguments: argparse.Namespace, seed: int
) -> dict[str, dict[str, float]]:
    """Offline, then online; what the clone, and QAM after either phase, reach."""
    model = make_model(dataset, seed)
    # Cheap steps in which the encoder of the flows learns to find the ball
    model.pretrain(gradient_steps=arguments.bc_steps, objective="bc", progress_bar=True)
    model.pretrain(gradient_steps=arguments.offline_steps, reset_num_timesteps=False, progress_bar=True)
    offline = arguments.output / f"seed{seed}_offline"
    model.save(offline)
    # The clone is trained along: it is the policy at inverse temperature 0
    clone = QAM.load(offline, inverse_temperature=0.0)
    results = {"bc": evaluate(clone, arguments.starts), "QAM offline": evaluate(model, arguments.starts)}
    model.learn(arguments.online_steps, reset_num_timesteps=False, progress_bar=True)
    model.save(arguments.output / f"seed{seed}_online")
    results["QAM online"] = evaluate(model, arguments.starts)
    return results


# ---------------------------------------------------------------------- main


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learning from images, offline and online.")
    parser.add_argument("--episodes", type=int, default=300, help="episodes in the dataset")
    parser.add_argument("--bc-steps", type=int, default=1000, help="gradient steps of cloning")
    parser.add_argument("--offline-steps", type=int, default=1000, help="gradient steps of QAM on the dataset")
    parser.add_argument("--online-steps", type=int, default=200, help="environment steps afterwards")
    parser.add_argument("--starts", type=int, default=50, help="episodes of each evaluation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each")
    parser.add_argument("--processes", type=int, default=2, help="processes that collect")
    parser.add_argument("--dataset-id", default=DATASET_ID, help="Minari id of the dataset")
    parser.add_argument("--output", type=Path, default=Path("images"), help="folder of the results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the whole of it."""
    options = parse(arguments)
    started = time.time()
    options.output.mkdir(parents=True, exist_ok=True)
    dataset = collect(
        Walker(), make_env, options.dataset_id, options.episodes, n_processes=options.processes, progress_bar=True
    )
    episodes = list(dataset)
    reached = float(np.mean([episode.rewards.sum() > 0 for episode in episodes]))
    print(f"{dataset.id}: {len(episodes)} episodes, {dataset.total_steps} steps, {reached:.0%} reach the goal")
    strip = [episode.observations[0] for episode in episodes[:4]]
    matplotlib.image.imsave(options.output / "camera.png", np.concatenate(strip, axis=1))

    runs = [train_and_evaluate(dataset, options, seed) for seed in options.seeds]
    medians = {
        name: {key: float(np.median([run[name][key] for run in runs])) for key in ("success", "length")}
        for name in runs[0]
    }
    table = Table(title=f"{options.starts} starts, median of {len(runs)} run(s)")
    table.add_column("")
    for column in ("success rate", "mean episode length"):
        table.add_column(column, justify="right")
    for name, result in medians.items():
        table.add_row(name, f"{result['success']:.2f}", f"{result['length']:.1f}")
    Console().print(table)
    summary = {"medians": medians, "runs": dict(zip(map(str, options.seeds), runs, strict=True)), "data": reached}
    summary["seconds"] = round(time.time() - started, 1)
    (options.output / "results.json").write_text(json.dumps(summary, indent=2))
    print(f"{summary['seconds']:.0f} seconds; numbers, models and images are in {options.output.resolve()}")
    return summary


if __name__ == "__main__":
    main()
