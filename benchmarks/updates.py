"""What an update costs: ``python benchmarks/updates.py [--sizes small mid paper claims] [--json FILE] [--plot FILE]``.

An update of QAM is a known amount of matrix products: with N flow steps 7N + 3 evaluations of a velocity field (4N + 1
forward, 2N + 1 input gradients, N + 1 weight gradients) and 6 of the ensemble of critics. Printed for each size, each
the median of several runs that take turns in the same process,

* updates per second of ``model.train()`` on a dataset of random numbers,
* updates per second of those products alone, with ``torch.addmm``, ``mm`` and ``baddbmm`` at their shapes: the floor,
* the ratio of the two, the share of each phase, and the peak of resident memory above what there was before the model.

Only ratios mean something on a machine that does other things too, and the ratio to the floor only on one kind of
processor: printed are its name, and the rates of a product by BLAS, which the floor has, and by oneDNN, which the
updates have where there is AVX-512. SQAM, FQL and BC take turns with QAM (``--variants``), each beside its
multiply-adds as a share of QAM's, and so do models with other arguments of QAM (``--compare NAME=VALUE``, such as
``precision="'bf16'"``). ``--plot`` draws how the cost of the size
"mid" grows with each number. ``--device cuda`` has data, networks and the products of the floor on a GPU; where there
is none it says so and measures nothing.
"""

import argparse
import ast
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import minari
import numpy as np
import torch as th
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from timing import resident_megabytes, take_turns

from sb3_qam import QAM
from sb3_qam.networks.cpu_kernels import HAS_ONEDNN
from sb3_qam.qam import qam

EPISODE_LENGTH, N_EPISODES = 1000, 10


@dataclass(frozen=True)
class Size:
    """Everything that the products' shapes depend on."""

    obs_dim: int
    action_dim: int
    chunk_size: int
    depth: int
    width: int
    n_critics: int
    flow_steps: int = 10
    batch_size: int = 256


SIZES = {
    "small": Size(28, 5, 1, 2, 256, 2),
    "mid": Size(28, 5, 5, 4, 256, 2),
    "paper": Size(37, 5, 5, 4, 512, 10),
    # Of benchmarks/claims
    "claims": Size(40, 5, 5, 4, 256, 2),
}
# Arguments of QAM by what they make of it; BC trains the behavior flow alone
VARIANTS: dict[str, dict[str, Any]] = {
    "qam": {},
    "sqam": {"adjoint": "scalar", "kl_budget": 0.5, "value_penalty": 0.3},
    "fql": {"inverse_temperature": 0.0, "distill_coef": 300.0, "max_grad_norm": float("inf")},
    "bc": {},
}
# How often they evaluate, differentiate by inputs and by weights: the networks of actions, and the ensemble of critics
PRODUCTS: dict[str, Callable[[int], tuple[list[int], list[int]]]] = {
    "qam": lambda n: ([4 * n + 1, 2 * n + 1, n + 1], [3, 2, 1]),
    # No vector-Jacobian products, and another forward and backward pass of the critics for the penalty
    "sqam": lambda n: ([4 * n + 1, n + 1, n + 1], [4, 3, 2]),
    # The flow that is distilled, the one-step policy twice, and cloning
    "fql": lambda n: ([n + 3, 2, 2], [3, 2, 1]),
    "bc": lambda n: ([1, 1, 1], [0, 0, 0]),
}
# What the plot varies, one at a time
GROWTH = {
    "flow_steps": [5, 10, 20],
    "n_critics": [2, 5, 10],
    "batch_size": [64, 256, 1024],
    "width": [128, 256, 512],
    "chunk_size": [1, 5, 10],
}


def make_dataset(size: Size) -> minari.MinariDataset:
    """A dataset of random numbers."""
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            observations=rng.normal(size=(EPISODE_LENGTH + 1, size.obs_dim)).astype(np.float32),
            actions=rng.uniform(-1, 1, (EPISODE_LENGTH, size.action_dim)).astype(np.float32),
            rewards=rng.normal(size=EPISODE_LENGTH),
            terminations=np.zeros(EPISODE_LENGTH, bool),
            truncations=np.arange(EPISODE_LENGTH) == EPISODE_LENGTH - 1,
        )
        for _ in range(N_EPISODES)
    ]
    return minari.create_dataset_from_buffers(
        f"benchmark/random{time.monotonic_ns()}-v0",
        buffers,
        observation_space=spaces.Box(-np.inf, np.inf, (size.obs_dim,)),
        action_space=spaces.Box(-1.0, 1.0, (size.action_dim,)),
        algorithm_name="random",
        author="benchmark",
        author_email="benchmark",
        code_permalink="benchmarks/updates.py",
        description="Random numbers.",
    )


def make_model(size: Size, dataset: minari.MinariDataset, arguments: dict[str, Any], device: str = "cpu") -> QAM:
    """A model that is ready for ``train()``."""
    return QAM(
        "FlowPolicy",
        offline_dataset=dataset,
        chunk_size=size.chunk_size,
        flow_steps=size.flow_steps,
        batch_size=size.batch_size,
        buffer_size=1000,
        device=device,
        offline_storage="memory" if device == "cpu" else "cuda",
        policy_kwargs={"net_arch": [size.width] * size.depth, "n_critics": size.n_critics},
        **arguments,
    )


def layer_products(
    rows: int, sizes: list[int], products: set[str], members: int | None = None
) -> list[Callable[[], Any]]:
    """
    The matrix products of the layers of a network, at ``rows`` rows.

    :param rows: Number of rows
    :param sizes: Sizes of the network's input, hidden layers and output
    :param products: Which of forward, input gradient and weight gradient
    :param members: Number of members of an ensemble, ``None`` for a single network
    :return: One function for each product
    """
    stack = () if members is None else (members,)
    functions: list[Callable[[], Any]] = []
    for n_in, n_out in pairwise(sizes):
        x, y = th.randn(*stack, rows, n_in), th.randn(*stack, rows, n_out)
        # PyTorch's linear layers have (out, in), the ensemble's have (in, out)
        weight = th.randn(n_out, n_in).T if members is None else th.randn(members, n_in, n_out)
        bias = th.randn(n_out) if members is None else th.randn(members, 1, n_out)
        add, multiply = (th.addmm, th.mm) if members is None else (th.baddbmm, th.bmm)
        grad_x, grad_weight = th.empty_like(x), th.empty(*stack, n_in, n_out)
        if "forward" in products:
            functions.append(partial(add, bias, x, weight, out=y))
        if "input gradient" in products:
            functions.append(partial(multiply, y, weight.mT, out=grad_x))
        if "weight gradient" in products:
            functions.append(partial(multiply, x.mT, y, out=grad_weight))
    return functions


def make_floor(size: Size) -> Callable[[], None]:
    """
    All products of one update, in the largest pieces that the mathematics allows: what a step makes of the one
    before has the rows of a batch, all else has those of all steps at once.

    :return: Does them once
    """
    forward, of_input, of_weight = {"forward"}, {"input gradient"}, {"weight gradient"}
    n, batch = size.flow_steps, size.batch_size
    action_dim = size.chunk_size * size.action_dim
    flow = [size.obs_dim + action_dim + 1, *[size.width] * size.depth, action_dim]
    critic = [size.obs_dim + action_dim, *[size.width] * size.depth, 1]
    # Target sampling, rollout and its last step, cloning, the policy's velocity at the last point of the path
    sequential = [*layer_products(batch, flow, forward)] * (n + (n - 1) + 1 + 1 + 1)
    # Adjoint and cloning
    sequential += [*layer_products(batch, flow, of_input)] * (n + 1)
    at_once = [
        # The behavior's target at both times of each point, but the last one at its own, where the rollout took it
        *layer_products((2 * n - 1) * batch, flow, forward),
        # Matching, and the weights of cloning
        *layer_products(n * batch, flow, of_input | of_weight),
        *layer_products(batch, flow, of_weight),
        # The target for y, what is trained, the target for the adjoint
        *layer_products(batch, critic, forward, size.n_critics) * 3,
        *layer_products(batch, critic, of_input, size.n_critics) * 2,
        *layer_products(batch, critic, of_weight, size.n_critics),
    ]
    products = sequential + at_once

    def run() -> None:
        for product in products:
            product()

    return run


def multiply_adds(size: Size, variant: str) -> int:
    """Multiply-adds of the products of an update, for each row of the batch."""
    action_dim, hidden = size.chunk_size * size.action_dim, [size.width] * size.depth
    flow, critic = [size.obs_dim + action_dim + 1, *hidden, action_dim], [size.obs_dim + action_dim, *hidden, 1]
    of_flow, of_critic = (sum(n_in * n_out for n_in, n_out in pairwise(sizes)) for sizes in (flow, critic))
    flows, critics = PRODUCTS[variant](size.flow_steps)
    return sum(flows) * of_flow + sum(critics) * size.n_critics * of_critic


class PhaseClock:
    """Seconds of each phase, without those of the phases inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = ["other"]
        self._since = time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return timed


def time_phases(model: QAM, batch_size: int, n_updates: int) -> dict[str, float]:
    """Share of each phase in the time of an update."""
    clock = PhaseClock()
    phases: list[tuple[Any, str, str]] = [
        (model, "_sample_batch", "batch"),
        (model, "_sample_noise", "batch"),
        (model, "_update", "critic"),
        (model.policy, "sample_actions", "sampling"),
        (qam, "flow_matching_loss", "cloning"),
        (model.adjoint_method, "path", "path"),
        (model.adjoint_method, "terminal", "adjoint"),
        (model.adjoint_method, "adjoints", "adjoint"),
        (model.adjoint_method, "loss", "matching"),
        (model, "_optimize", "backward"),
        (model, "_clip_gradients", "optimizer"),
        (model.policy.optimizer, "step", "optimizer"),
    ]
    with ExitStack() as stack:
        for owner, attribute, name in phases:
            timed = clock.wrap(getattr(owner, attribute), name)
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        model.train(gradient_steps=n_updates, batch_size=batch_size)
    del clock.seconds["other"]
    total = sum(clock.seconds.values())
    return {name: seconds / total for name, seconds in clock.seconds.items()}


def until_done(function: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The function, and the wait for what a GPU still has to do."""

    def run() -> None:
        function()
        if device != "cpu":
            th.cuda.synchronize()

    return run


def clock_for(device: str) -> Callable[[], float]:
    """On one thread of a CPU the processor's time, which other work on the machine disturbs less."""
    return time.process_time if device == "cpu" and th.get_num_threads() == 1 else time.perf_counter


def measure(
    size: Size, compared: dict[str, dict[str, Any]], n_updates: int, repetitions: int, device: str = "cpu"
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """
    Time one size.

    :param size: The size
    :param compared: Arguments of QAM by name, the default's first
    :param n_updates: Number of updates in a turn
    :param repetitions: Number of turns
    :param device: Where to measure
    :return: Rates of each model, and the phases of the first
    """
    dataset = make_dataset(size)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM reset: the peak is that of this size
    before = resident_megabytes("VmRSS")
    results: list[dict[str, Any]] = []
    turns: dict[str, Callable[[], Any]] = {}
    for name, arguments in compared.items():
        model = make_model(size, dataset, arguments, device)
        # Enough for a CUDA graph to be recorded
        model.pretrain(gradient_steps=6, objective="bc" if name == "bc" else "full")
        turns[name] = until_done(partial(model.train, n_updates, size.batch_size), device)
        if not results:
            # On a GPU what was asked for is done later
            phases = time_phases(model, size.batch_size, 2 * n_updates) if device == "cpu" else {}
        results.append({"arguments": name, "peak_mb": resident_megabytes("VmHWM") - before})
    with th.device(device):
        floor = make_floor(size)
    floor()
    turns["floor"] = until_done(lambda: [floor() for _ in range(n_updates)], device)
    medians = take_turns(turns, repetitions, clock_for(device))
    floor_rate = n_updates / medians["floor"]
    for result in results:
        rate = n_updates / medians[str(result["arguments"])]
        result.update(updates_per_s=rate, floor_updates_per_s=floor_rate, ratio=floor_rate / rate)
        result["time_of_first"] = results[0]["updates_per_s"] / rate
        if result["arguments"] in PRODUCTS:
            result["products_of_qam"] = multiply_adds(size, result["arguments"]) / multiply_adds(size, "qam")
    return results, phases


def processor() -> str:
    """Its name, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def product_rates(size: Size, repetitions: int) -> dict[str, float]:
    """GFLOP/s of a product of a hidden layer, by BLAS and by oneDNN."""
    rows, width = size.batch_size, size.width
    x, weight, bias = th.randn(rows, width), th.randn(width, width), th.randn(width)
    products: dict[str, Callable[[], Any]] = {"BLAS": lambda: th.addmm(bias, x, weight.t())}
    if HAS_ONEDNN:
        products["oneDNN"] = lambda: th.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    turns: dict[str, Callable[[], Any]] = {
        name: partial(lambda product: [product() for _ in range(50)], each) for name, each in products.items()
    }
    medians = take_turns(turns, repetitions, clock_for("cpu"))
    return {name: 50 * 2e-9 * rows * width**2 / seconds for name, seconds in medians.items()}


def plot_growth(file: Path, repetitions: int) -> None:
    """Seconds of an update over each number of the size "mid", and of the products alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(GROWTH), figsize=(3 * len(GROWTH), 3), sharey=True, layout="constrained")
    for axis, (name, values) in zip(axes, GROWTH.items(), strict=True):
        rows = [measure(replace(SIZES["mid"], **{name: value}), {"qam": {}}, 2, repetitions) for value in values]
        for rate, label in {"updates_per_s": "update", "floor_updates_per_s": "its products alone"}.items():
            axis.plot(values, [1000 / results[0][rate] for results, _ in rows], marker="o", label=label)
        axis.set(xlabel=name, xscale="log", yscale="log", xticks=values, xticklabels=values)
        axis.minorticks_off()
    milliseconds = [10, 20, 50, 100, 200]
    axes[0].set(ylabel="milliseconds", yticks=milliseconds, yticklabels=milliseconds)
    axes[0].legend()
    figure.savefig(file, dpi=120)


def parse_arguments_of_qam(text: str) -> dict[str, Any]:
    """``compile=True,precision='bf16'`` as keyword arguments."""
    call = ast.parse(f"f({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of QAM")
    parser.add_argument("--updates", type=int, default=3, help="updates in a turn")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not th.cuda.is_available():
        print("Skipped: this machine has no GPU that PyTorch can use.")
        return
    compared: dict[str, dict[str, Any]] = {
        **{name: VARIANTS[name] for name in arguments.variants},
        **{text: parse_arguments_of_qam(text) for text in arguments.compare},
    }

    rows = []
    print(f"{processor()}, {th.get_num_threads()} threads, PyTorch {th.__version__}")
    # Nothing is left in the user's cache
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        for name in arguments.sizes:
            results, phases = measure(SIZES[name], compared, arguments.updates, arguments.repetitions, arguments.device)
            for result in results:
                products = (
                    f" ({result['products_of_qam']:4.2f} of QAM's products)" if "products_of_qam" in result else ""
                )
                rows.append({"size": name, **result, "threads": th.get_num_threads(), **asdict(SIZES[name])})
                print(
                    f"{name:6} {result['arguments']:24} {result['updates_per_s']:6.2f} updates/s, "
                    f"floor {result['floor_updates_per_s']:6.2f}, ratio {result['ratio']:5.2f}, "
                    f"{result['time_of_first']:4.2f} of {results[0]['arguments']}'s time{products}, "
                    f"{result['peak_mb']:5.0f} MB"
                )
            rows[-len(results)]["phases"] = phases
            if arguments.device == "cpu":
                rates = product_rates(SIZES[name], arguments.repetitions)
                rows[-len(results)]["gflops"] = rates
                print(f"{'':6} " + ", ".join(f"{kind} {rate:.0f} GFLOP/s" for kind, rate in rates.items()))
            print(f"{'':6} " + ", ".join(f"{phase} {share:.0%}" for phase, share in phases.items()))
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1))
        if arguments.plot:
            plot_growth(arguments.plot, 5)


if __name__ == "__main__":
    main()
