"""QAM and SAC with nothing but what they see themselves: ``python benchmarks/online.py TASK [--seeds 0 1 2]``.

``pendulum`` is the plain ``QAM("FlowPolicy", "Pendulum-v1").learn(10_000)``, beside SAC's defaults, which have the same
sizes: two hidden layers of 256, batches of 256, one update for each step. ``her`` is ``examples/her.py`` with both.

Every run (an algorithm, a seed) is evaluated as it goes, and at its end, on seeded starts that are the same for all. It
writes a file of its own, and runs that are finished are not repeated. Printed is a table of all runs there; ``--json``
writes what is in it, and ``--plot`` draws the curves.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# No screen is needed, and each run has one thread for itself
os.environ.setdefault("MUJOCO_GL", "egl")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import her

Run = dict[str, Any]
ALGORITHMS: dict[str, type[QAM] | type[SAC]] = {"QAM": QAM, "SAC": SAC}
EVALUATION_SEED = 1000


def pendulum(algorithm: type[QAM] | type[SAC], seed: int) -> OffPolicyAlgorithm:
    """The defaults of either."""
    return algorithm("FlowPolicy" if algorithm is QAM else "MlpPolicy", "Pendulum-v1", seed=seed)


def hindsight(algorithm: type[QAM] | type[SAC], seed: int) -> OffPolicyAlgorithm:
    """Both with the settings of the example."""
    if algorithm is QAM:
        return her.make_model(seed)
    # A copy, as SAC writes arguments of its own into the policy_kwargs that it is given
    return algorithm("MultiInputPolicy", her.make_env(her.N_ENVS, seed), **copy.deepcopy(her.SETTINGS), seed=seed)


@dataclass(frozen=True)
class Task:
    """
    :param title: What it is called in the picture
    :param make_model: A new model of an algorithm and a seed
    :param make_env: That many environments to evaluate in
    :param total_timesteps: Environment steps
    :param interval: Environment steps between two evaluations
    :param measure: What of an evaluation is shown: ``mean_return`` or ``success``
    """

    title: str
    make_model: Callable[[Any, int], OffPolicyAlgorithm]
    make_env: Callable[[int], VecEnv]
    total_timesteps: int
    interval: int
    measure: str


TASKS = {
    "pendulum": Task(
        "Pendulum-v1, all defaults",
        pendulum,
        lambda n_envs: make_vec_env("Pendulum-v1", n_envs),
        total_timesteps=10_000,
        interval=1_000,
        measure="mean_return",
    ),
    "her": Task(
        f"{her.ENV_ID} with hindsight",
        hindsight,
        her.make_env,
        her.TOTAL_TIMESTEPS,
        her.EVAL_INTERVAL,
        measure="success",
    ),
}


class Curve(BaseCallback):
    """
    Evaluates every so many environment steps. Deterministic actions take no random numbers, so that training goes as it
    would without.

    :param task: The task
    :param env: Environments to evaluate in, one episode each
    """

    def __init__(self, task: Task, env: VecEnv) -> None:
        super().__init__()
        self.task, self.env = task, env
        self.points: list[tuple[int, float | None]] = []

    def _on_step(self) -> bool:
        if self.num_timesteps // self.task.interval > len(self.points):
            self.points.append((self.num_timesteps, self.evaluate(deterministic=True)[self.task.measure]))
            print(f"  {self.points[-1]}", flush=True)
        return True

    def evaluate(self, deterministic: bool) -> dict[str, float | None]:
        """Of all starts."""
        self.env.seed(EVALUATION_SEED)
        return evaluate(self.model, self.env, self.env.num_envs, deterministic).summary()


def run(task: Task, algorithm: str, seed: int, n_episodes: int) -> Run:
    """Train and evaluate one model."""
    model = task.make_model(ALGORITHMS[algorithm], seed)
    curve = Curve(task, task.make_env(n_episodes))
    curve.init_callback(model)
    before = curve.evaluate(deterministic=True)
    model.learn(task.total_timesteps, callback=curve)
    return {
        "algorithm": algorithm,
        "seed": seed,
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "before": before,
        "curve": curve.points,
        "deterministic": curve.evaluate(deterministic=True),
        "stochastic": curve.evaluate(deterministic=False),
    }


def spread(values: list[float]) -> str:
    """Mean and population standard deviation over seeds."""
    digits = 2 if max(values) <= 1 and min(values) >= 0 else 0
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def table(task: Task, runs: list[Run]) -> str:
    """One row for each algorithm."""
    rows: list[list[str]] = []
    for algorithm in ALGORITHMS:
        of_algorithm = [each for each in runs if each["algorithm"] == algorithm]
        if not of_algorithm:
            continue
        n_points = min(len(each["curve"]) for each in of_algorithm)
        shown = [n_points * quarter // 4 - 1 for quarter in (1, 2, 3) if n_points >= 4]
        if not rows:
            steps = [f"after {of_algorithm[0]['curve'][i][0]:,}" for i in shown]
            header = ["", "seeds", "before", *steps, "end, deterministic", "end, stochastic", "worst seed"]
            rows += [header, ["---"] * len(header)]
        ends = {way: [each[way][task.measure] for each in of_algorithm] for way in ("deterministic", "stochastic")}
        rows.append(
            [
                algorithm,
                str(len(of_algorithm)),
                spread([each["before"][task.measure] for each in of_algorithm]),
                *(spread([each["curve"][i][1] for each in of_algorithm]) for i in shown),
                *map(spread, ends.values()),
                f"{min(ends['deterministic']):.{0 if task.measure == 'mean_return' else 2}f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(task: Task, runs: list[Run], path: Path) -> None:
    """Mean over seeds, with the range shaded, from before the first step on."""
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for algorithm in ALGORITHMS:
        of_algorithm = [each for each in runs if each["algorithm"] == algorithm]
        if not of_algorithm:
            continue
        steps = [0, *(step for step, _ in of_algorithm[0]["curve"])]
        values = np.array(
            [[each["before"][task.measure], *(value for _, value in each["curve"])] for each in of_algorithm]
        )
        (line,) = axes.plot(steps, values.mean(axis=0), "o-", markersize=3, label=f"{algorithm} ({len(values)} seeds)")
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15)
    axes.set(xlabel="environment steps", ylabel=task.measure.replace("_", " "), title=task.title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is not finished, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--episodes", type=int, default=50, help="episodes of each evaluation")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/online"), help="folder of the runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    task = TASKS[arguments.task]
    folder = arguments.output / arguments.task
    folder.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for algorithm in arguments.algorithms:
            path = folder / f"{algorithm}-seed{seed}.json"
            if not path.exists():
                print(f"{algorithm}, seed {seed}", flush=True)
                path.write_text(json.dumps(run(task, algorithm, seed, arguments.episodes), indent=1))
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    print(table(task, runs))
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=1))
    if arguments.plot:
        draw(task, runs, arguments.plot)


if __name__ == "__main__":
    main()
