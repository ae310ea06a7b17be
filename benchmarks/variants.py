"""QAM, TRQAM and SQAM at equal updates: ``python benchmarks/variants.py TASK... [--scales 0.01 1 100]``.

Each run begins with the same number of steps of BC for all, and is evaluated with deterministic actions:

* ``maze``: the quickstart's data and networks, 2,000 + 10,000 updates; success of 50 episodes
* ``lunarlander``: the data and settings of ``deterministic.py``, 2,000 + 10,000 updates; return of 50 episodes
* ``pointmaze``, ``cube``: OGBench's pointmaze-medium task 1 and cube-single task 2 from ``--data FOLDER`` with its npz
  files, chunks of five, five flow steps, 10,000 + 60,000 updates; success of 50 episodes

Rewards are multiplied by each of ``--scales``. Results are appended to ``--results FILE.csv`` run by run; what is there
already is not run again. Printed are means over the seeds with 95% intervals of Student's t; ``--plot FILE.png`` draws
the last evaluation of each task over the scales.
"""

import argparse
import csv
import multiprocessing
import os
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")  # no screen is needed

import gymnasium as gym
import numpy as np
import torch as th
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env

from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from sb3_qam.environments import register_environments
from sb3_qam.recording import collect, import_ogbench

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

FIELDS = ("task", "variant", "scale", "seed", "updates", "measure", "episodes", "mean", "std")
N_EPISODES = 50
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [128, 128]}, "batch_size": 128}
OGBENCH: dict[str, Any] = {"chunk_size": 5, "flow_steps": 5, "gamma": 0.995, "pessimism": 0.5, **SMALL}
# Temperature or budget by task; the value penalty is the published one
TEMPERATURES = {"maze": 10.0, "lunarlander": 1.0, "pointmaze": 10.0, "cube": 1.0}
BUDGETS = {"maze": 1.0, "lunarlander": 1.0, "pointmaze": 0.5, "cube": 0.5}
OGBENCH_TASKS = {
    "pointmaze": ("pointmaze-medium-navigate-singletask-task1-v0", "pointmaze-medium-navigate-200ep-v0.npz"),
    "cube": ("cube-single-play-singletask-task2-v0", "cube-single-play-100ep-v0.npz"),
}
LUNARLANDER = ("LunarLanderContinuous-v3", "benchmark/lunarlander-v0")


def variant_kwargs(variant: str, task: str) -> dict[str, Any]:
    """The arguments that make a variant."""
    if variant == "QAM":
        return {"inverse_temperature": TEMPERATURES[task]}
    kwargs: dict[str, Any] = {"kl_budget": BUDGETS[task]}
    return kwargs if variant == "TRQAM" else {**kwargs, "adjoint": "scalar", "value_penalty": 0.3}


def prepare(task: str, data: Path | None) -> str:
    """Record or import the dataset of a task where it is missing; returns its id."""
    register_environments()
    if task == "maze":
        import quickstart

        return str(quickstart.collect_data().id)
    if task == "lunarlander":
        import deterministic

        return str(collect(deterministic.noisy_heuristic, *LUNARLANDER, 300).id)
    name, file = OGBENCH_TASKS[task]
    return str(import_ogbench(name, data and data / file).id)


def run(task: str, variant: str, scale: float, seed: int, data: Path | None) -> list[dict[str, Any]]:
    """Train one model; one row for each of its evaluations."""
    th.set_num_threads(1)
    gym.logger.min_level = gym.logger.ERROR
    kwargs: dict[str, Any] = {"n_steps": 5, **SMALL}
    checkpoints: tuple[int, ...] = (5_000, 10_000)
    bc_steps, measure = 2_000, "success"
    dataset_id = prepare(task, data)
    if task == "maze":
        import quickstart

        env = quickstart.make_starts()
    elif task == "lunarlander":
        env, measure = make_vec_env(LUNARLANDER[0], 10), "return"
    else:
        kwargs, bc_steps, checkpoints = OGBENCH, 10_000, (20_000, 40_000, 60_000)
        dataset = import_ogbench(OGBENCH_TASKS[task][0])
        env = make_vec_env(dataset.recover_environment, 10)
    model = QAM(
        "FlowPolicy",
        offline_dataset=dataset_id,
        reward_transform={"scale": scale},
        seed=seed,
        **kwargs,
        **variant_kwargs(variant, task),
    )
    model.pretrain(gradient_steps=bc_steps, objective="bc")
    rows, done = [], 0
    for updates in checkpoints:
        model.pretrain(gradient_steps=updates - done, reset_num_timesteps=False)
        done = updates
        env.seed(1000)
        found = evaluate(model, env, N_EPISODES)
        values = np.array(found.returns if measure == "return" else found.successes, dtype=float)
        row = (task, variant, scale, seed, updates, measure, len(values), values.mean(), values.std())
        rows.append(dict(zip(FIELDS, row, strict=True)))
    env.close()
    return rows


def read(path: Path) -> dict[tuple[str, float, str], dict[int, list[float]]]:
    """Means of each seed by task, scale and variant, then by number of updates."""
    found: dict[tuple[str, float, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with path.open() as file:
        for row in csv.DictReader(file):
            key = (row["task"], float(row["scale"]), row["variant"])
            found[key][int(row["updates"])].append(float(row["mean"]))
    return found


def interval(values: list[float]) -> float:
    """Half of the 95% interval of a mean."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def print_tables(path: Path) -> None:
    """One table for each task."""
    found = read(path)
    for task in dict.fromkeys(key[0] for key in found):
        runs = {key[1:]: checkpoints for key, checkpoints in found.items() if key[0] == task}
        updates = sorted({count for checkpoints in runs.values() for count in checkpoints})
        print(f"\n{task}\n\n| rewards times | variant | seeds | {' | '.join(f'{count:,}' for count in updates)} |")
        print("| --- " * (3 + len(updates)) + "|")
        for (scale, variant), checkpoints in sorted(runs.items()):
            cells = [
                f"{np.mean(checkpoints[n]):.3g} ± {interval(checkpoints[n]):.2g} "
                f"({', '.join(f'{value:.3g}' for value in checkpoints[n])})"
                for n in updates
            ]
            print(f"| {scale:g} | {variant} | {len(checkpoints[updates[-1]])} | {' | '.join(cells)} |")


def plot(path: Path, output: Path) -> None:
    """What each variant ends at, over the scale of the rewards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = read(path)
    scales = sorted({key[1] for key in found})
    # Those that were measured at several scales
    tasks = sorted({key[0] for key in found if key[1] != 1})
    figure, all_axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.4), layout="constrained", squeeze=False)
    for axes, task in zip(all_axes[0], tasks, strict=True):
        for shift, variant in enumerate(dict.fromkeys(key[2] for key in found if key[0] == task)):
            ends = {scale: found[task, scale, variant] for scale in scales if (task, scale, variant) in found}
            last = {scale * 1.12 ** (shift - 1): of_scale[max(of_scale)] for scale, of_scale in ends.items()}
            (line,) = axes.plot(list(last), [np.mean(values) for values in last.values()], label=variant)
            for x, values in last.items():
                axes.plot([x] * len(values), values, "o", color=line.get_color(), alpha=0.6, markersize=5)
        axes.set(xscale="log", xlabel="rewards multiplied by", title=task, xticks=scales)
        axes.set_ylabel("mean return" if task == "lunarlander" else "success")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output, dpi=110)


def main() -> None:
    """Run what is missing, and print all there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TEMPERATURES))
    parser.add_argument("--variants", nargs="+", default=["QAM", "TRQAM", "SQAM"])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="folder of OGBench's npz files")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    done = set()
    if arguments.results.exists():
        with arguments.results.open() as file:
            done = {(r["task"], r["variant"], float(r["scale"]), int(r["seed"])) for r in csv.DictReader(file)}
    for task in arguments.tasks:
        prepare(task, arguments.data)
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(run, task, variant, scale, seed, arguments.data)
            for seed in arguments.seeds
            for task in arguments.tasks
            for scale in arguments.scales
            for variant in arguments.variants
            if (task, variant, scale, seed) not in done
        ]
        for future in as_completed(futures):
            rows = future.result()
            new = not arguments.results.exists()
            with arguments.results.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if new:
                    writer.writeheader()
                writer.writerows(rows)
            for row in rows:
                print(*row.values(), flush=True)
    print_tables(arguments.results)
    if arguments.plot:
        plot(arguments.results, arguments.plot)


if __name__ == "__main__":
    main()
