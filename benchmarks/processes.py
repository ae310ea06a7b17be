"""What a second process gains: ``python benchmarks/processes.py [--sizes small mid paper] [--turns 5]``.

Updates per second of ``pretrain()`` with the same batch by one process of one thread, by one process of N threads, and
by N processes of one thread that ``torchrun`` starts. They take turns, each in new processes; printed are medians, and
their ratio to one thread. Only ratios mean something on a machine that does other things too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import torch as th
from updates import SIZES, make_dataset, make_model

N_WARM_UP = 3


def updates_per_second(size: str, n_updates: int) -> float | None:
    """Of this process, or of those that it is one of: then the first of them says it."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MINARI_DATASETS_PATH"] = cache
        model = make_model(SIZES[size], make_dataset(SIZES[size]), {"seed": 0})
        model.pretrain(gradient_steps=N_WARM_UP)
        start = time.perf_counter()
        model.pretrain(gradient_steps=n_updates)
        return n_updates / (time.perf_counter() - start) if model.replicas.is_first else None


def measure(size: str, n_updates: int, n_processes: int, n_threads: int) -> float:
    """The same, in new processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    command = [sys.executable, *(launcher if n_processes > 1 else []), __file__, "--measure", size, str(n_updates)]
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads)}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(output.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--processes", type=int, default=2, help="N")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--updates", type=int, default=40, help="of each measurement")
    parser.add_argument("--measure", nargs=2, metavar=("SIZE", "UPDATES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        speed = updates_per_second(args.measure[0], int(args.measure[1]))
        if speed is not None:
            print(speed)
        return
    n = args.processes
    ways = {"1 process, 1 thread": (1, 1), f"1 process, {n} threads": (1, n), f"{n} processes, 1 thread each": (n, 1)}
    print(f"PyTorch {th.__version__}, {os.cpu_count()} cores; updates/s, and ratio to one thread")
    for size in args.sizes:
        seen: dict[str, list[float]] = defaultdict(list)
        for _ in range(args.turns):
            for way, (n_processes, n_threads) in ways.items():
                seen[way].append(measure(size, args.updates, n_processes, n_threads))
        medians = {way: statistics.median(speeds) for way, speeds in seen.items()}
        first = next(iter(medians.values()))
        for way, speed in medians.items():
            print(f"{size:6} {way:28} {speed:8.2f} {speed / first:6.2f}", flush=True)


if __name__ == "__main__":
    main()
