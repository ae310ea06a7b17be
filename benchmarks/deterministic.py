"""Whether deterministic acting does what sampling does: ``python benchmarks/deterministic.py TASK... [--seeds 0 1 2]``.

Trains on each task, and evaluates the same model with ``deterministic=True`` and sampled:

* ``lunarlander``: LunarLanderContinuous-v3 (``pip install "gymnasium[box2d]"``), offline, on 300 episodes of
  Gymnasium's heuristic controller with noise of standard deviation 0.5; return of 40 episodes
* ``maze``: the data and settings of examples/quickstart.py, offline; success of 50 episodes
* ``pendulum``: Pendulum-v1, online, with the defaults; return of 40 episodes
* ``ogbench``: pointmaze-medium-navigate-singletask-task1-v0 from ``--data FILE.npz``, 10,000 steps of BC, then TRQAM
  with chunks of 5; success of 200 episodes

Results are appended to ``--results FILE.csv`` one by one; what is there already is not run again. Printed are the means
of the episodes of all seeds with their standard errors.
"""

import argparse
import csv
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from sb3_qam.recording.collect import collect

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

FIELDS = ("task", "seed", "steps", "acting", "measure", "episodes", "mean", "std")
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [128, 128]}, "batch_size": 128}
# What a task gives: gradient steps so far, the model, environments, number of episodes, and what counts
Checkpoint = tuple[int, QAM, VecEnv, int, str]


def noisy_heuristic(observation: np.ndarray) -> np.ndarray:
    """Gymnasium's controller of the lander, with noise."""
    from gymnasium.envs.box2d.lunar_lander import heuristic

    env = SimpleNamespace(unwrapped=SimpleNamespace(continuous=True))
    return np.clip(heuristic(env, observation) + np.random.normal(0, 0.5, 2), -1, 1).astype(np.float32)


def lunarlander(seed: int, _: Path | None) -> Iterator[Checkpoint]:
    """The table of the page on acting."""
    env_id, dataset_id = "LunarLanderContinuous-v3", "benchmark/lunarlander-v0"
    collect(noisy_heuristic, env_id, dataset_id, 300)
    model = QAM(
        "FlowPolicy",
        offline_dataset=dataset_id,
        reward_transform={"scale": 0.1},
        inverse_temperature=10.0,
        n_steps=5,
        seed=seed,
        **SMALL,
    )
    for steps in (4_000, 12_000):
        model.pretrain(gradient_steps=steps - model._n_updates, reset_num_timesteps=False)
        yield steps, model, make_vec_env(env_id, 10, seed=1000), 40, "return"


def maze(seed: int, _: Path | None) -> Iterator[Checkpoint]:
    """The quickstart's."""
    import quickstart

    quickstart.collect_data()
    model = quickstart.make_model(seed)
    for steps in (5_000, 10_000):
        model.pretrain(gradient_steps=steps - model._n_updates, reset_num_timesteps=False)
        yield steps, model, quickstart.make_starts(), 50, "success"


def pendulum(seed: int, _: Path | None) -> Iterator[Checkpoint]:
    """Online, from nothing."""
    model = QAM("FlowPolicy", "Pendulum-v1", seed=seed)
    for steps in (5_000, 10_000):
        model.learn(steps - model.num_timesteps, reset_num_timesteps=False)
        yield steps, model, make_vec_env("Pendulum-v1", 10, seed=1000), 40, "return"


def ogbench(seed: int, data: Path | None) -> Iterator[Checkpoint]:
    """Long-horizon navigation with chunks."""
    from sb3_qam.environments import register_environments
    from sb3_qam.recording.ogbench import import_ogbench

    register_environments()
    task = "pointmaze-medium-navigate-singletask-task1-v0"
    dataset = import_ogbench(task, data)
    arguments: dict[str, Any] = {"kl_budget": 0.5, "chunk_size": 5, "gamma": 0.995, "flow_steps": 5}
    model = QAM("FlowPolicy", offline_dataset=dataset.id, seed=seed, **arguments, **SMALL)
    model.pretrain(gradient_steps=10_000, objective="bc")
    for steps in (10_000, 20_000):
        model.pretrain(gradient_steps=10_000, reset_num_timesteps=False)
        # The environment of the dataset is OGBench's own
        yield steps, model, make_vec_env(dataset.recover_environment, 10, seed=1000), 200, "success"


TASKS: dict[str, Callable[[int, Path | None], Iterator[Checkpoint]]] = {
    "lunarlander": lunarlander,
    "maze": maze,
    "pendulum": pendulum,
    "ogbench": ogbench,
}


def measure(task: str, seed: int, data: Path | None) -> Iterator[dict[str, Any]]:
    """Both ways of acting, at each checkpoint of a run."""
    for steps, model, env, n_episodes, what in TASKS[task](seed, data):
        for acting in ("deterministic", "sampled"):
            env.seed(1000)
            found = evaluate(model, env, n_episodes, deterministic=acting == "deterministic")
            values = np.array(found.returns if what == "return" else found.successes, dtype=float)
            yield dict(
                zip(
                    FIELDS,
                    (task, seed, steps, acting, what, len(values), values.mean(), values.std()),
                    strict=True,
                )
            )
        env.close()


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over the episodes of all seeds."""
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["task"], int(row["steps"])][row["acting"]].append(row)
    print("| task | steps | seeds | deterministic | sampled |\n| --- | --- | --- | --- | --- |")
    for (task, steps), ways in groups.items():
        cells = []
        for acting in ("deterministic", "sampled"):
            means = [float(row["mean"]) for row in ways[acting]]
            n = sum(int(row["episodes"]) for row in ways[acting])
            within = np.mean([float(row["std"]) ** 2 for row in ways[acting]])
            error = math.sqrt(within / n)
            cells.append(f"{np.mean(means):.3g} ± {error:.2g}")
        print(f"| {task} | {steps:,} | {len(means)} | {' | '.join(cells)} |")


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="OGBench's npz file")
    parser.add_argument("--results", type=Path, default=Path("deterministic.csv"))
    arguments = parser.parse_args()
    th.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if arguments.results.exists():
        rows = list(csv.DictReader(arguments.results.open()))
    done = {(row["task"], int(row["seed"])) for row in rows}
    for seed in arguments.seeds:
        for task in arguments.tasks:
            if (task, seed) in done:
                continue
            gym.logger.min_level = gym.logger.ERROR
            new = list(measure(task, seed, arguments.data))
            with arguments.results.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if not rows:
                    writer.writeheader()
                writer.writerows(new)
            rows += new
            print(
                *(f"{row['task']} {row['seed']} {row['steps']} {row['acting']} {row['mean']:.3f}" for row in new),
                sep="\n",
            )
    print_table(rows)


if __name__ == "__main__":
    main()
