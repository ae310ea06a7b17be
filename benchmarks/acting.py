"""What acting costs: ``python benchmarks/acting.py [--json FILE] [--width 256] [--depth 2]``.

Prints the median and the 99th percentile of ``predict()`` for 1, 16 and 256 observations,

* of QAM with 10 Euler steps, sampling, and with ``deterministic=True``,
* of the same policy in an ONNX file (``pip install "sb3-qam[onnx]"``), with as many threads,
* of the matrix products of its velocity field alone, ``torch.addmm`` at their shapes,
* of SAC of Stable-Baselines3 with hidden layers of the same width,

which take turns in the same process, and the ratios of the medians.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC

from sb3_qam import QAM, export_onnx
from sb3_qam.common.phases import SpacesOnlyEnv
from sb3_qam.runtime import OnnxPolicy

OBS_DIM, ACTION_DIM, FLOW_STEPS = 28, 5, 10


def make_products(n_observations: int, net_arch: list[int]) -> Callable[[], None]:
    """
    :return: Does the products of a velocity field, as often as there are flow steps
    """
    products = []
    for n_in, n_out in pairwise([OBS_DIM + ACTION_DIM + 1, *net_arch, ACTION_DIM]):
        x, weight, bias = th.randn(n_observations, n_in), th.randn(n_out, n_in), th.randn(n_out)
        products.append(partial(th.addmm, bias, x, weight.T, out=th.empty(n_observations, n_out)))

    def run() -> None:
        for product in products * FLOW_STEPS:
            product()

    return run


def in_onnxruntime(model: QAM) -> OnnxPolicy:
    """
    :return: What acts in the model, in a file, with as many threads as PyTorch has
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = th.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "policy.onnx")
        return OnnxPolicy(Path(folder) / "policy.onnx", sess_options=options)


def take_turns(
    functions: dict[str, Callable[[], Any]], repetitions: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Median and 99th percentile of the microseconds of each function, called in turns after a few calls."""
    microseconds: dict[str, list[float]] = {name: [] for name in functions}
    for repetition in range(repetitions + 10):
        for name, function in functions.items():
            start = clock()
            function()
            if repetition >= 10:
                microseconds[name].append((clock() - start) * 1e6)
    return {
        name: {"median_us": float(np.median(values)), "p99_us": float(np.percentile(values, 99))}
        for name, values in microseconds.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--observations", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument(
        "--shared", action="store_true", help="Beside other work: count the time on the processor, with one thread"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    if arguments.shared:
        th.set_num_threads(1)
    net_arch = [arguments.width] * arguments.depth
    env = SpacesOnlyEnv(spaces.Box(-np.inf, np.inf, (OBS_DIM,)), spaces.Box(-1.0, 1.0, (ACTION_DIM,)))
    options: dict[str, Any] = dict(device="cpu", buffer_size=1000, policy_kwargs={"net_arch": net_arch})
    qam = QAM("FlowPolicy", env, flow_steps=FLOW_STEPS, **options)
    sac = SAC("MlpPolicy", env, **options)
    onnx = in_onnxruntime(qam)

    rows = []
    for n_observations in arguments.observations:
        observations = np.random.randn(n_observations, OBS_DIM).astype(np.float32)
        times = take_turns(
            {
                "qam": partial(qam.predict, observations),
                "qam deterministic": partial(qam.predict, observations, deterministic=True),
                "onnx": partial(onnx.predict, observations, deterministic=False),
                "onnx deterministic": partial(onnx.predict, observations),
                "products": make_products(n_observations, net_arch),
                "sac": partial(sac.predict, observations),
            },
            arguments.repetitions,
            time.thread_time if arguments.shared else time.perf_counter,
        )
        medians = {name: values["median_us"] for name, values in times.items()}
        for name, values in times.items():
            ratio = values["median_us"] / medians["sac"]
            rows.append({"observations": n_observations, "name": name, **values, "times_sac": ratio})
            print(
                f"{n_observations:4} observations, {name:19} {values['median_us']:7.0f} µs, "
                f"99% below {values['p99_us']:7.0f} µs, {ratio:5.2f} times SAC"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
