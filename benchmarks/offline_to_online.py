"""What happens when learning goes online: ``python benchmarks/offline_to_online.py [--seeds 0 1]``.

On the data and with the settings of the quickstart: after the offline phase the same model is trained for another
5,000 environment steps, in two ways: with batches of the union of offline and online data, and with half of each
batch from either. The return is evaluated on the same 50 starts every 500 steps (an episode has a return of 1 if it
reaches the goal, and 0 otherwise). Printed is the lowest online return beside the offline one; the curves go to
``offline_to_online.png`` and ``offline_to_online.json`` in the folder given by ``--output``.

Takes about seven minutes for each seed on two CPU cores.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_qam import QAM

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quickstart

ONLINE_STEPS = 5_000
INTERVAL = 500
# Below this share of the offline return learning online would have done harm
TOLERATED = 0.9
WAYS: dict[str, float | None] = {"union": None, "half and half": 0.5}


class OnlineCurve(BaseCallback):
    """Evaluates the return every INTERVAL environment steps."""

    def __init__(self, starts: VecEnv, offline_return: float) -> None:
        super().__init__()
        self.starts = starts
        self.curve: list[tuple[int, float]] = [(0, offline_return)]

    def _on_step(self) -> bool:
        if self.n_calls % INTERVAL == 0:
            success = quickstart.evaluate(self.model, self.starts)["success"]  # type: ignore[arg-type]
            self.curve.append((self.n_calls, success))
        return True


def measure(seed: int) -> dict[str, list[tuple[int, float]]]:
    """The curve of each way, both from one offline phase."""
    starts = quickstart.make_starts()
    curves: dict[str, list[tuple[int, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = quickstart.make_model(seed).pretrain(gradient_steps=quickstart.OFFLINE_STEPS, progress_bar=True)
        model.save(Path(folder) / "offline")
        offline_return = quickstart.evaluate(model, starts)["success"]
        for way, offline_fraction in WAYS.items():
            env = make_vec_env(quickstart.ENV_ID, env_kwargs=quickstart.ENV_KWARGS, seed=seed)
            model = QAM.load(Path(folder) / "offline", env=env, offline_fraction=offline_fraction)
            callback = OnlineCurve(starts, offline_return)
            model.learn(ONLINE_STEPS, callback=callback, reset_num_timesteps=False, progress_bar=True)
            curves[way] = callback.curve
    return curves


def draw(results: dict[int, dict[str, list[tuple[int, float]]]], path: Path) -> None:
    """One panel for each seed, and the line that no curve may cross."""
    figure, panels = plt.subplots(1, len(results), figsize=(5 * len(results), 3.6), squeeze=False, layout="constrained")
    for axes, (seed, curves) in zip(panels[0], results.items(), strict=True):
        for way, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), "o-", markersize=3, label=way)
        offline_return = next(iter(curves.values()))[0][1]
        axes.axhline(TOLERATED * offline_return, color="tab:red", linestyle=":", label="offline result minus 10%")
        axes.set(xlabel="environment steps", ylabel="return", ylim=(0, 1.05), title=f"seed {seed}")
        axes.legend(loc="lower right", fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    quickstart.collect_data()
    results = {seed: measure(seed) for seed in arguments.seeds}
    for seed, curves in results.items():
        for way, curve in curves.items():
            returns = [each for _, each in curve]
            print(
                f"seed {seed}, {way}: offline {returns[0]:.2f}, lowest online {min(returns[1:]):.2f}, "
                f"last {returns[-1]:.2f}"
            )
    record: dict[str, Any] = {str(seed): curves for seed, curves in results.items()}
    (arguments.output / "offline_to_online.json").write_text(json.dumps(record, indent=1))
    draw(results, arguments.output / "offline_to_online.png")


if __name__ == "__main__":
    main()
