"""What the online loop costs around ``train()``: ``python benchmarks/online_loop.py [--json FILE] [--env ID]``.

Prints the milliseconds of one step of 8 environments in ``learn()`` with one update each, without the time in
``train()``, for QAM and for SAC of Stable-Baselines3 with networks of the same width; both take turns in the same
process. Beside it the time that ``train()`` takes.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_qam import QAM

N_ENVS, WIDTH = 8, 256


def make_model(algorithm: type[QAM] | type[SAC], env_id: str) -> tuple[OffPolicyAlgorithm, list[float]]:
    """A model that has warmed up, and a list to which each of its calls of ``train()`` adds its seconds."""
    model = algorithm(
        "MlpPolicy",
        make_vec_env(env_id, N_ENVS),
        learning_starts=100,
        gradient_steps=1,
        buffer_size=10_000,
        policy_kwargs={"net_arch": [WIDTH, WIDTH]},
        device="cpu",
    )
    train = model.train
    seconds: list[float] = []

    def timed_train(*args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        train(*args, **kwargs)
        seconds.append(time.perf_counter() - start)

    model.train = timed_train  # type: ignore[method-assign]
    model.learn(20 * N_ENVS)
    return model, seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=50, help="steps of all environments in a turn")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    models = {algorithm.__name__: make_model(algorithm, arguments.env) for algorithm in (QAM, SAC)}
    outside: dict[str, list[float]] = {name: [] for name in models}
    inside: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(arguments.repetitions):
        for name, (model, seconds) in models.items():
            seconds.clear()
            start = time.perf_counter()
            model.learn(arguments.steps * N_ENVS, reset_num_timesteps=False)
            total = time.perf_counter() - start
            outside[name].append((total - sum(seconds)) / arguments.steps)
            inside[name].append(sum(seconds) / arguments.steps)
    rows = []
    sac_loop = statistics.median(outside["SAC"])
    sac_step = sac_loop + statistics.median(inside["SAC"])
    for name in models:
        loop, train = statistics.median(outside[name]), statistics.median(inside[name])
        more = loop - sac_loop
        rows.append({"algorithm": name, "loop_ms": 1e3 * loop, "train_ms": 1e3 * train})
        print(
            f"{name}: {1e3 * loop:.2f} ms around train(), {1e3 * train:.2f} ms in it; {more / sac_loop:+.0%} of what "
            f"SAC takes around train(), {more / sac_step:+.0%} of SAC's whole step"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
