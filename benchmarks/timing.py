"""What the benchmarks share: turns in one process, and memory."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def take_turns(
    functions: dict[str, Callable[[], Any]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each function by the clock, called in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def resident_megabytes(field: str) -> float:
    """Of this process: VmRSS is what it has now, VmHWM the most it has had."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(field))
