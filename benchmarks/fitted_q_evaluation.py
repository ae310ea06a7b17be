"""Which checkpoint is best, from data alone? ``python benchmarks/fitted_q_evaluation.py [TASK...]``.

Trains a clone and several temperatures of QAM, and at each of a few checkpoints asks fitted Q evaluation, the critics
themselves (their value of the policy's actions at the start states of the data), and the error of the critics (lower
is better), what the policy is worth. Then it is run, with sampled actions as in these estimates.

* ``maze``: the data of examples/quickstart.py, and its settings with five flow steps; 100 episodes of each checkpoint
* ``lunarlander``: the same of benchmarks/deterministic.py; 50 episodes

Results are appended to ``--results FILE.csv`` one by one; what is there already is not run again. Printed is the rank
correlation (Spearman) of each with the true return, and with its discounted sum, which is what all but the error
estimate. Half an hour for both tasks on one core.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from scipy.stats import spearmanr
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam import QAM, fitted_q_evaluation
from sb3_qam.common.evaluation import evaluation_mode
from sb3_qam.utils.random_state import preserved_rng

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

RESULTS = Path(__file__).with_suffix(".csv")
METHODS: dict[str, dict[str, Any]] = {
    "BC": {"inverse_temperature": 0.0},
    "QAM w=3": {"inverse_temperature": 3.0},
    "QAM w=10": {"inverse_temperature": 10.0},
}
CHECKPOINTS = (1_000, 3_000, 6_000)
ESTIMATES = {"fqe": "FQE", "policy_value": "value of the critics", "td_error": "TD error"}
TRUTHS = {"return": "return", "discounted": "discounted return"}
FIELDS = ("task", "method", "steps", "fqe_steps", *ESTIMATES, "fqe_low", "fqe_high", *TRUTHS, "fqe_seconds")


def maze() -> tuple[dict[str, Any], VecEnv, int]:
    """The quickstart's."""
    import quickstart

    quickstart.collect_data()
    starts = make_vec_env(quickstart.ENV_ID, 50, env_kwargs=quickstart.ENV_KWARGS)
    return {"offline_dataset": quickstart.DATASET_ID, "flow_steps": 5}, starts, 100


def lunarlander() -> tuple[dict[str, Any], VecEnv, int]:
    """Heuristic controller with noise."""
    from deterministic import noisy_heuristic

    from sb3_qam.recording.collect import collect

    env_id, dataset_id = "LunarLanderContinuous-v3", "benchmark/lunarlander-v0"
    collect(noisy_heuristic, env_id, dataset_id, 300)
    arguments = {"offline_dataset": dataset_id, "reward_transform": {"scale": 0.1}, "flow_steps": 5}
    return arguments, make_vec_env(env_id, 10), 50


TASKS: dict[str, Callable[[], tuple[dict[str, Any], VecEnv, int]]] = {"maze": maze, "lunarlander": lunarlander}


def run(model: QAM, env: VecEnv, n_episodes: int) -> dict[str, float]:
    """What the policy reaches: its return, and the discounted one of the rewards that the model learns from."""
    env.seed(1000)
    scale = 1.0 if model.reward_transform is None else model.reward_transform.scale
    sums, ages, discounted = np.zeros(env.num_envs), np.zeros(env.num_envs), []

    def add(locals_: dict[str, Any], _: dict[str, Any]) -> None:
        number = locals_["i"]
        sums[number] += scale * locals_["reward"] * model.gamma ** ages[number]
        ages[number] += 1
        if locals_["done"]:
            discounted.append(sums[number])
            sums[number] = ages[number] = 0

    model.set_random_seed(1000)
    returns, _ = evaluate_policy(
        model, env, n_episodes, deterministic=False, callback=add, return_episode_rewards=True, warn=False
    )
    return {"return": float(np.mean(returns)), "discounted": float(np.mean(discounted))}


def estimate(model: QAM, buffer: Any, fqe_steps: int) -> dict[str, float]:
    """What data alone says, and how long fitted Q evaluation took."""
    started = time.perf_counter()
    found = fitted_q_evaluation(model, buffer, fqe_steps, deterministic=False)
    seconds = time.perf_counter() - started
    starts = np.append(0, buffer.last[:-1] + 1)
    rows = np.random.default_rng(0).choice(buffer.complete_starts(), 4096)
    with evaluation_mode(model, 0):
        policy_value = float(model.evaluate_batch(buffer.batch_of(starts))["policy_value"])
        td_error = float(model.evaluate_batch(buffer.batch_of(rows))["td_error"])
    values = {
        "fqe": found.value,
        "fqe_low": found.low,
        "fqe_high": found.high,
        "fqe_seconds": seconds,
    }
    return {**values, "policy_value": policy_value, "td_error": td_error}


def measure(
    task: str, method: str, settings: tuple[Any, ...], arguments: argparse.Namespace, missing: list[int]
) -> Iterator[dict[str, Any]]:
    """A row for each missing checkpoint of one training."""
    given, env, n_episodes = settings
    model = QAM(
        "FlowPolicy",
        **given,
        **METHODS[method],
        n_steps=5,
        batch_size=128,
        policy_kwargs={"net_arch": [128, 128]},
        seed=arguments.seed,
    )
    for steps in missing:
        model.pretrain(gradient_steps=steps - model._n_updates, reset_num_timesteps=False)
        with preserved_rng(model.action_space, model.device):
            found = run(model, env, n_episodes)
        names = {"task": task, "method": method, "steps": steps, "fqe_steps": arguments.fqe_steps}
        row = {**names, **estimate(model, model.offline_buffer, arguments.fqe_steps), **found}
        print({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        yield row


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rank correlations with what is true."""
    print(f"| task | rank correlation with | checkpoints | {' | '.join(ESTIMATES.values())} |")
    print("|" + " --- |" * (3 + len(ESTIMATES)))
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        for truth, title in TRUTHS.items():
            cells = []
            for name in ESTIMATES:
                sign = -1 if name == "td_error" else 1
                pairs = [(sign * float(row[name]), float(row[truth])) for row in of_task]
                cells.append(f"{spearmanr(*zip(*pairs, strict=True)).statistic:.2f}")
            print(f"| {task} | {title} | {len(of_task)} | {' | '.join(cells)} |")


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=list(TASKS), help=", ".join(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fqe-steps", type=int, default=4_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    gym.logger.min_level = gym.logger.ERROR
    rows: list[dict[str, Any]] = list(csv.DictReader(arguments.results.open())) if arguments.results.exists() else []
    done = {(row["task"], row["method"], int(row["steps"])) for row in rows}
    settings = {task: TASKS[task]() for task in arguments.tasks}
    for method in METHODS:
        for task in arguments.tasks:
            missing = [steps for steps in CHECKPOINTS if (task, method, steps) not in done]
            for row in measure(task, method, settings[task], arguments, missing) if missing else ():
                with arguments.results.open("a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if not rows:
                        writer.writeheader()
                    writer.writerow(row)
                rows.append(row)
    print_table(rows)


if __name__ == "__main__":
    main()
