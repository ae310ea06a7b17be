"""Compare the variants of QAM on an OGBench task, offline, at equal numbers of updates.

    python benchmarks/variants.py cube-single-play-singletask-task2-v0 --data cube-single-play-100ep-v0.npz

Every run (a variant, a seed) is one process; its curve is written to a file of its own as it grows, and runs that are
finished are not repeated. Then a table (``results.md``) and a plot (``results.png``) of all runs there are drawn.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# No screen is needed, and each run has one thread for itself
os.environ.setdefault("MUJOCO_GL", "egl")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_qam import QAM
from sb3_qam.recording.ogbench import import_ogbench

# Arguments of QAM beside the common ones; cloning is an objective of its own
VARIANTS: dict[str, dict[str, Any]] = {
    "bc": {},
    "QAM": {},
    "QAM-E": {"edit_scale": 0.1},
    "QAM-F": {"distill_coef": 300.0},
    "TRQAM": {"kl_budget": 1.0},
    "scalar adjoint": {"adjoint": "scalar"},
    "BPTT": {"adjoint": "bptt"},
}


class SuccessCurve(BaseCallback):
    """
    Evaluates the policy on the same seeded starts again and again, and writes the success rates to a file.

    :param task_id: The task
    :param interval: Gradient steps between two evaluations
    :param n_episodes: Number of starts
    :param path: Where to write the curve
    :param settings: What to write beside it
    """

    def __init__(self, task_id: str, interval: int, n_episodes: int, path: Path, settings: dict[str, Any]) -> None:
        super().__init__()
        dataset = import_ogbench(task_id)
        self.env = DummyVecEnv([dataset.recover_environment for _ in range(min(n_episodes, 10))])
        self.interval, self.n_episodes, self.path = interval, n_episodes, path
        self.result: dict[str, Any] = {**settings, "curve": []}

    def _on_step(self) -> bool:
        if self.num_timesteps % self.interval == 0:
            successes: list[bool] = []

            def note_success(locals_: dict[str, Any], _: dict[str, Any]) -> None:
                if locals_["done"]:
                    successes.append(bool(locals_["info"]["success"]))

            self.env.seed(0)
            returns, lengths = evaluate_policy(
                self.model,
                self.env,
                self.n_episodes,
                deterministic=False,
                callback=note_success,
                return_episode_rewards=True,
                warn=False,
            )
            point = {
                "updates": self.num_timesteps,
                "success": float(np.mean(successes)),
                "return": float(np.mean(returns)),
                "length": float(np.mean(lengths)),
            }
            self.result["curve"].append(point)
            print(f"{self.path.stem}: {point}", flush=True)
            self.path.write_text(json.dumps(self.result, indent=1))
        return True


def run(variant: str, seed: int, path: Path, arguments: argparse.Namespace) -> None:
    """Train one variant from one seed; a curve that is complete is left as it is."""
    if path.exists() and json.loads(path.read_text())["curve"][-1]["updates"] >= arguments.updates:
        return
    th.set_num_threads(1)
    # TRQAM has a temperature of its own
    temperature = {} if "kl_budget" in VARIANTS[variant] else {"inverse_temperature": arguments.inverse_temperature}
    model = QAM(
        "FlowPolicy",
        offline_dataset=import_ogbench(arguments.task),
        batch_size=128,
        gamma=0.99,
        flow_steps=5,
        chunk_size=arguments.chunk_size,
        policy_kwargs={"net_arch": [arguments.width] * 2},
        seed=seed,
        **temperature,
        **VARIANTS[variant],
    )
    settings = {"task": arguments.task, "variant": variant, "seed": seed, **temperature, **VARIANTS[variant]}
    curve = SuccessCurve(arguments.task, arguments.interval, arguments.episodes, path, settings)
    model.pretrain(gradient_steps=arguments.updates, callback=curve, objective="bc" if variant == "bc" else "full")


def read_curves(folder: Path) -> dict[str, list[dict[str, np.ndarray]]]:
    """All finished curves in a folder by variant, in the order of VARIANTS."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    last = max(result["curve"][-1]["updates"] for result in results)
    results = [result for result in results if result["curve"][-1]["updates"] == last]
    curves: dict[str, list[dict[str, np.ndarray]]] = {}
    for variant in VARIANTS:
        found = [result["curve"] for result in results if result["variant"] == variant]
        if found:
            curves[variant] = [{key: np.array([p[key] for p in curve]) for key in curve[0]} for curve in found]
    return curves


def write_table(curves: dict[str, list[dict[str, np.ndarray]]], path: Path) -> None:
    """Mean and range of the success over seeds, at every evaluation of the second half and over all of it."""
    updates = next(iter(curves.values()))[0]["updates"]
    shown = updates[len(updates) // 2 :]
    lines = [
        "| variant | seeds | " + " | ".join(f"{count // 1000}k" for count in shown) + " | mean of these |",
        "| --- | --- | " + " | ".join("---" for _ in shown) + " | --- |",
    ]
    for variant, runs in curves.items():
        success = np.stack([run["success"][-len(shown) :] for run in runs])
        cells = [
            f"{column.mean():.2f}" + (f" ({column.min():.2f} to {column.max():.2f})" if len(runs) > 1 else "")
            for column in success.T
        ]
        lines.append(f"| {variant} | {len(runs)} | " + " | ".join(cells) + f" | {success.mean():.2f} |")
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


def draw(curves: dict[str, list[dict[str, np.ndarray]]], title: str, path: Path) -> None:
    """Mean success over seeds, with the range shaded."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for variant, runs in curves.items():
        n_points = min(len(run["updates"]) for run in runs)
        success = np.stack([run["success"][:n_points] for run in runs])
        updates = runs[0]["updates"][:n_points]
        (line,) = axes.plot(updates, success.mean(axis=0), "o-", markersize=3, label=f"{variant} ({len(runs)} seeds)")
        axes.fill_between(updates, success.min(axis=0), success.max(axis=0), color=line.get_color(), alpha=0.15)
    axes.set(xlabel="updates", ylabel="success rate", title=title)
    axes.set_ylim(bottom=-0.01)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is not finished, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="id of an OGBench single task")
    parser.add_argument("--data", type=Path, help="OGBench's npz file, downloaded where it is not given")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["bc", "QAM", "QAM-E", "QAM-F", "TRQAM"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=60_000)
    parser.add_argument("--interval", type=int, default=10_000, help="updates between two evaluations")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of each evaluation")
    parser.add_argument("--inverse-temperature", type=float, default=10.0)
    parser.add_argument("--chunk-size", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()

    folder = arguments.output / arguments.task
    folder.mkdir(parents=True, exist_ok=True)
    import_ogbench(arguments.task, arguments.data)
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(run, variant, seed, folder / f"{variant.replace(' ', '-')}-seed{seed}.json", arguments)
            for seed in arguments.seeds
            for variant in arguments.variants
        ]
        for future in futures:
            future.result()
    curves = read_curves(folder)
    write_table(curves, folder / "results.md")
    draw(curves, arguments.task, folder / "results.png")


if __name__ == "__main__":
    main()
