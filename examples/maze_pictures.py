"""The picture of the quickstart: a learning curve, and the paths of two policies through the maze."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from stable_baselines3.common.vec_env import VecEnv


class Paths:
    """
    Where the ball goes in each environment, recorded by ``evaluate_policy(..., callback=paths.add)``.

    :param n: Number of environments, with one episode each
    """

    def __init__(self, n: int) -> None:
        self.positions: list[list[np.ndarray]] = [[] for _ in range(n)]
        self.goals = [np.zeros(2)] * n
        self.reached = [False] * n

    def add(self, locals_: dict[str, Any], _: dict[str, Any]) -> None:
        """Record one step."""
        i, observations = locals_["i"], locals_["observations"]
        self.positions[i].append(observations["achieved_goal"][i])
        self.goals[i] = observations["desired_goal"][i]
        self.reached[i] = locals_["reward"] > 0


def draw(results: dict[str, dict[str, Any]], curve: Path, offline_steps: int, starts: VecEnv, path: Path) -> None:
    """
    Draw the learning curve, and beside it the paths of the clone and of the trained policy.

    :param results: Success rate, mean episode length and paths of each policy
    :param curve: The file that ``EvalCallback`` has written
    :param offline_steps: Where on its axis the offline phase ends
    :param starts: The environments of the paths
    :param path: Where to write the picture
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    draw_curve(axes[0], curve, offline_steps, results["clone"])
    maze = starts.get_attr("maze", 0)[0]
    draw_paths(axes[1], maze, results["clone"], "Clone of the data")
    draw_paths(axes[2], maze, results["QAM online"], "QAM")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curve(axes: Axes, curve: Path, offline_steps: int, clone: dict[str, Any]) -> None:
    """Success rate and episode length against steps, with the end of the offline phase marked."""
    with np.load(curve) as evaluations:
        steps = evaluations["timesteps"]
        success = (evaluations["results"] > 0).mean(axis=1)
        length = evaluations["ep_lengths"].mean(axis=1)
    axes.plot(steps, success, "o-", color="tab:blue", label="QAM: success")
    axes.axhline(clone["success"], color="tab:blue", linestyle=":", label="clone: success")
    axes.axvline(offline_steps, color="gray", linewidth=1)
    axes.annotate(" offline", (offline_steps, 0.02), ha="right", color="gray")
    axes.annotate(" online", (offline_steps, 0.02), color="gray")
    axes.set(xlabel="gradient steps, then environment steps", ylabel="success rate", ylim=(0, 1.05))
    lengths = axes.twinx()
    lengths.plot(steps, length, "s--", color="tab:orange", label="QAM: length")
    lengths.axhline(clone["length"], color="tab:orange", linestyle=":", label="clone: length")
    lengths.set(ylabel="mean episode length", ylim=(0, 310))
    handles = [handle for each in (axes, lengths) for handle in each.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="center right", fontsize=8)
    axes.set_title("Learning curve")


def draw_paths(axes: Axes, maze: Any, result: dict[str, Any], title: str) -> None:
    """The paths from all starts: blue where the goal was reached, red where it was not."""
    half = maze.maze_size_scaling / 2
    for row, line in enumerate(maze.maze_map):
        for column, cell in enumerate(line):
            if cell == 1:
                x, y = maze.cell_rowcol_to_xy(np.array([row, column]))
                axes.add_patch(plt.Rectangle((x - half, y - half), 2 * half, 2 * half, color="0.8"))
    paths = result["paths"]
    for positions, goal, reached in zip(paths.positions, paths.goals, paths.reached, strict=True):
        axes.plot(*np.transpose(positions), color="tab:blue" if reached else "tab:red", alpha=0.4, linewidth=1)
        axes.plot(*positions[0], "o", color="black", markersize=2)
        axes.plot(*goal, "*", color="tab:green", markersize=5)
    corners = np.array(
        [maze.cell_rowcol_to_xy(np.array(cell)) for cell in ((0, 0), (maze.map_length - 1, maze.map_width - 1))]
    )
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    # Show half of the outer walls
    axes.set(aspect="equal", xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top))
    axes.set_title(f"{title}: success {result['success']:.2f}, length {result['length']:.0f}")
