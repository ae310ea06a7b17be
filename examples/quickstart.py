"""From a dataset to a policy that beats it, in a few minutes on a laptop: ``python examples/quickstart.py``.

Needs ``pip install "sb3-qam[quickstart]"``.

A ball in a U-shaped maze (PointMaze UMaze of gymnasium-robotics) gets a reward of 1 when it reaches the goal and 0
everywhere else. In half of the recorded episodes it is steered to the goal, in the other half it wanders about. The
script

1. collects such a dataset with a scripted controller, unless the local Minari cache has it already,
2. trains QAM on it, offline, and then online,
3. evaluates the clone of the data, QAM offline and QAM online on the same 50 starts,
4. prints a table, and writes ``quickstart.png``, ``results.json`` and the model to ``./quickstart/``.

What it ends with after 151 seconds on two CPU cores, 179 in another run:

                  success rate   mean episode length
    clone                 0.72                   166
    QAM offline           0.98                    99
    QAM online            0.98                    97
"""

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import minari
import numpy as np
from matplotlib.axes import Axes
from minari.data_collector import EpisodeBuffer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam import QAM

gym.register_envs(gymnasium_robotics)

ENV_ID = "PointMaze_UMaze-v3"
# The episode ends at the goal, and after 300 steps
ENV_KWARGS: dict[str, Any] = {"continuing_task": False, "reward_type": "sparse"}
DATASET_ID = "sb3-qam/pointmaze-umaze-v0"
N_EPISODES = 600
OFFLINE_STEPS = 10_000
ONLINE_STEPS = 3_000
EVAL_INTERVAL = 1_000
N_STARTS = 50
OUTPUT = Path("quickstart")


# ---------------------------------------------------------------------- data


class WaypointController:
    """
    Steers the ball from cell to cell of the maze, by the shortest way to a target, with noise.

    :param maze: The maze of a PointMaze environment
    :param rng: Source of the noise and of random targets
    :param wanders: Whether to drift to one random cell after another instead of hurrying to the goal
    """

    def __init__(self, maze: Any, rng: np.random.Generator, wanders: bool) -> None:
        self.maze, self.rng, self.wanders = maze, rng, wanders
        self.gain = 2.0 if wanders else 10.0
        self.free_cells = [
            (row, column) for row, line in enumerate(maze.maze_map) for column, cell in enumerate(line) if cell != 1
        ]
        self.target: np.ndarray | None = None

    def __call__(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The force on the ball, in [-1, 1]^2."""
        position, velocity = observation["observation"][:2], observation["observation"][2:]
        if not self.wanders:
            self.target = observation["desired_goal"]
        elif self.target is None or np.linalg.norm(position - self.target) < 0.3:
            self.target = self.center(self.free_cells[self.rng.integers(len(self.free_cells))])
        force = self.gain * (self.waypoint(position, self.target) - position) - velocity
        return np.clip(force + 0.5 * self.rng.normal(size=2), -1, 1).astype(np.float32)

    def center(self, cell: tuple[int, int]) -> np.ndarray:
        return self.maze.cell_rowcol_to_xy(np.array(cell))

    def waypoint(self, position: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The center of the next cell on the way to the target, or the target itself where that is its cell."""
        here, there = (tuple(self.maze.cell_xy_to_rowcol(xy)) for xy in (position, target))
        next_cell, queue = {there: there}, deque([there])
        while queue:
            row, column = cell = queue.popleft()
            for neighbor in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if neighbor in self.free_cells and neighbor not in next_cell:
                    next_cell[neighbor] = cell
                    queue.append(neighbor)
        cell = next_cell.get(here, there)
        return target if cell == there else self.center(cell)


def record_episode(env: gym.Env, controller: WaypointController, seed: int) -> EpisodeBuffer:
    """One episode in Minari's form (Minari's own DataCollector does the same, but needs JAX)."""
    observation, _ = env.reset(seed=seed)
    observations, steps, done = [observation], [], False
    while not done:
        action = controller(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        steps.append((action, reward, terminated, truncated))
        done = terminated or truncated
    actions, rewards, terminations, truncations = map(list, zip(*steps, strict=True))
    return EpisodeBuffer(
        seed=seed,
        observations={key: [each[key] for each in observations] for key in observation},
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
    )


def load_or_collect() -> minari.MinariDataset:
    """The dataset, from the local Minari cache if it is there."""
    if DATASET_ID in minari.list_local_datasets():
        return minari.load_dataset(DATASET_ID)
    env = gym.make(ENV_ID, **ENV_KWARGS)
    maze = env.get_wrapper_attr("maze")
    rng = np.random.default_rng(0)
    episodes = [
        record_episode(env, WaypointController(maze, rng, wanders=number % 2 == 1), seed=1000 + number)
        for number in track(range(N_EPISODES), "collecting")
    ]
    dataset = minari.create_dataset_from_buffers(
        DATASET_ID,
        episodes,
        env=env,
        eval_env=env.spec,
        algorithm_name="scripted way-point controller, half of the episodes wandering",
        author="sb3-qam",
        author_email="sb3-qam",
        code_permalink="examples/quickstart.py",
        description="Noisy way-point controller in PointMaze UMaze; half of the episodes go to the goal.",
    )
    env.close()
    return dataset


# ---------------------------------------------------------------------- evaluation


class StartsEvaluation:
    """Evaluates policies on the same seeded starts, one environment each, and keeps the ways they take."""

    def __init__(self) -> None:
        self.env: VecEnv = make_vec_env(ENV_ID, n_envs=N_STARTS, env_kwargs=ENV_KWARGS)

    def __call__(self, model: QAM) -> dict[str, Any]:
        paths: list[list[np.ndarray]] = [[] for _ in range(N_STARTS)]
        goals = [np.zeros(2)] * N_STARTS

        def keep_path(locals_: dict[str, Any], _: dict[str, Any]) -> None:
            i, observations = locals_["i"], locals_["observations"]
            paths[i].append(observations["achieved_goal"][i])
            goals[i] = observations["desired_goal"][i]

        self.env.seed(0)
        # Actions are sampled: the clone is to do what the data did
        rewards, lengths = evaluate_policy(
            model, self.env, N_STARTS, deterministic=False, callback=keep_path, return_episode_rewards=True
        )
        return {
            "success": float(np.mean(np.array(rewards) > 0)),
            "length": float(np.mean(lengths)),
            "paths": [np.array(path) for path in paths],
            "goals": goals,
        }


class CurveCallback(BaseCallback):
    """
    Evaluates the policy every so many steps, offline and online.

    :param evaluate: Evaluates a model
    """

    def __init__(self, evaluate: StartsEvaluation) -> None:
        super().__init__()
        self.evaluate = evaluate
        self.curve: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        if self.num_timesteps % EVAL_INTERVAL == 0:
            result = self.evaluate(self.model)  # type: ignore[arg-type]
            self.curve.append({"step": self.num_timesteps, "success": result["success"], "length": result["length"]})
        return True


def make_model(seed: int) -> QAM:
    """QAM with networks of a size for two CPU cores."""
    return QAM(
        "FlowPolicy",
        make_vec_env(ENV_ID, env_kwargs=ENV_KWARGS),
        offline_dataset=DATASET_ID,
        batch_size=128,
        n_steps=5,
        inverse_temperature=10.0,
        flow_steps=5,
        policy_kwargs=dict(net_arch=[128, 128]),
        seed=seed,
    )


# ---------------------------------------------------------------------- output


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """The table on the terminal."""
    table = Table(title=f"{ENV_ID}, {N_STARTS} starts")
    for column, justify in {"": "left", "success rate": "right", "mean episode length": "right"}.items():
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, result in results.items():
        table.add_row(name, f"{result['success']:.2f}", f"{result['length']:.0f}")
    Console().print(table)


def draw_curve(axes: Axes, curve: list[dict[str, float]], clone: dict[str, Any]) -> None:
    """Success and length against steps, the end of the offline phase marked."""
    steps = [point["step"] for point in curve]
    axes.plot(steps, [point["success"] for point in curve], "o-", color="tab:blue", label="QAM: success")
    axes.axhline(clone["success"], color="tab:blue", linestyle=":", label="clone: success")
    axes.axvline(OFFLINE_STEPS, color="gray", linewidth=1)
    axes.annotate(" offline", (OFFLINE_STEPS, 0.02), ha="right", color="gray")
    axes.annotate(" online", (OFFLINE_STEPS, 0.02), color="gray")
    axes.set(xlabel="gradient steps, then environment steps", ylabel="success rate", ylim=(0, 1.05))
    lengths = axes.twinx()
    lengths.plot(steps, [point["length"] for point in curve], "s--", color="tab:orange", label="QAM: length")
    lengths.axhline(clone["length"], color="tab:orange", linestyle=":", label="clone: length")
    lengths.set(ylabel="mean episode length", ylim=(0, 310))
    handles = [handle for each in (axes, lengths) for handle in each.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="center right", fontsize=8)
    axes.set_title("Learning curve")


def draw_paths(axes: Axes, maze: Any, result: dict[str, Any], title: str) -> None:
    """The ways from all starts: blue where the goal was reached, red where it was not."""
    half = maze.maze_size_scaling / 2
    for row, line in enumerate(maze.maze_map):
        for column, cell in enumerate(line):
            if cell == 1:
                x, y = maze.cell_rowcol_to_xy(np.array([row, column]))
                axes.add_patch(plt.Rectangle((x - half, y - half), 2 * half, 2 * half, color="0.8"))
    for path, goal in zip(result["paths"], result["goals"], strict=True):
        reached = np.linalg.norm(path[-1] - goal) < 0.6
        axes.plot(*path.T, color="tab:blue" if reached else "tab:red", alpha=0.4, linewidth=1)
        axes.plot(*path[0], "o", color="black", markersize=2)
        axes.plot(*goal, "*", color="tab:green", markersize=5)
    corners = np.array(
        [maze.cell_rowcol_to_xy(np.array(cell)) for cell in ((0, 0), (maze.map_length - 1, maze.map_width - 1))]
    )
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    # Half of the outer walls is enough
    axes.set(aspect="equal", xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top))
    axes.set_title(f"{title}: success {result['success']:.2f}, length {result['length']:.0f}")


def draw(results: dict[str, dict[str, Any]], curve: list[dict[str, float]], maze: Any, path: Path) -> None:
    """The picture: learning curve, and the ways of the clone and of QAM side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    draw_curve(axes[0], curve, results["bc"])
    draw_paths(axes[1], maze, results["bc"], "Clone of the data")
    draw_paths(axes[2], maze, results["QAM online"], "QAM")
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---------------------------------------------------------------------- main


def main() -> dict[str, dict[str, Any]]:
    """Run the whole of it."""
    started = time.time()
    OUTPUT.mkdir(exist_ok=True)
    dataset = load_or_collect()
    reached = np.mean([episode.rewards.sum() > 0 for episode in dataset])
    print(f"{DATASET_ID}: {dataset.total_episodes} episodes, {dataset.total_steps} steps, {reached:.0%} reach the goal")

    model = make_model(seed=0)
    evaluate = StartsEvaluation()
    curve = CurveCallback(evaluate)

    model.pretrain(gradient_steps=OFFLINE_STEPS, callback=curve, progress_bar=True)
    model.save(OUTPUT / "qam_umaze_offline")
    # At inverse temperature 0 the critic has no say: what acts is the clone that was trained along
    clone = QAM.load(OUTPUT / "qam_umaze_offline", inverse_temperature=0.0)
    results = {"bc": evaluate(clone), "QAM offline": evaluate(model)}

    model.learn(ONLINE_STEPS, callback=curve, reset_num_timesteps=False, progress_bar=True)
    model.save(OUTPUT / "qam_umaze")
    results["QAM online"] = evaluate(model)

    print_table(results)
    draw(results, curve.curve, evaluate.env.get_attr("maze", 0)[0], OUTPUT / "quickstart.png")
    summary: dict[str, Any] = {
        name: {key: result[key] for key in ("success", "length")} for name, result in results.items()
    }
    summary |= {"curve": curve.curve, "seconds": round(time.time() - started, 1)}
    (OUTPUT / "results.json").write_text(json.dumps(summary, indent=2))
    print(f"{summary['seconds']:.0f} seconds; picture, numbers and model are in {OUTPUT.resolve()}")
    return results


if __name__ == "__main__":
    main()
