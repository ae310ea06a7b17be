"""Where the runs of a suite take place. Each run is a process, which ends with the one that launched it."""

import importlib.util
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sb3_qam.suite.runs import OUTPUT, Run

# What runs on other machines depend on besides their settings; everything else is as the machine has it
PASSED_ON = ("MINARI_DATASETS_PATH", "MUJOCO_GL", "PYTHONPATH")


def run_locally(
    runs: list[Run], root: Path, jobs: int | None = None, timeout: float | None = None
) -> Iterator[tuple[Run, bool]]:
    """
    :param runs: What to do
    :param root: The suite's folder
    :param jobs: Number of runs side by side, by default the number of cores
    :param timeout: Seconds after which a run is stopped
    :return: Each run, as it ends, and whether it is finished
    """
    waiting, processes = runs[::-1], dict[subprocess.Popen[bytes], Run]()
    try:
        while waiting or processes:
            while waiting and len(processes) < (jobs or os.cpu_count() or 1):
                run = waiting.pop()
                processes[_start(run, root, timeout)] = run
            for process in [each for each in processes if each.poll() is not None]:
                run = processes.pop(process)
                yield run, run.is_finished(root)
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _start(run: Run, root: Path, timeout: float | None, **kwargs: Any) -> "subprocess.Popen[bytes]":
    run.folder(root).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sb3_qam.suite", str(root), json.dumps(asdict(run)), json.dumps(timeout)]
    with (run.folder(root) / OUTPUT).open("a") as output:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, **kwargs)


def run_on_ray(
    runs: list[Run],
    root: Path,
    jobs: int | None = None,
    timeout: float | None = None,
    address: str | None = None,
    gpus: float = 0.0,
) -> Iterator[tuple[Run, bool]]:
    """
    Each run is a task of a Ray cluster. Nodes see the same files: the suite's folder, the working folder, Minari's
    cache; and have the same packages.

    :param runs: What to do
    :param root: The suite's folder
    :param jobs: Number of runs side by side, by default as many as there is room for
    :param timeout: Seconds after which a run is stopped
    :param address: Of the cluster, by default what ``ray.init()`` makes of none: ``RAY_ADDRESS``, the cluster that was
        started last on this machine, or a new one of its cores alone
    :param gpus: Share of a GPU that each run asks Ray for
    :return: Each run, as it ends, and whether it is finished
    :raises ImportError: without Ray
    :raises ConnectionError: if there is no cluster at the address
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("--launcher ray needs Ray: pip install 'sb3-qam[ray]', here and on all nodes.")
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address not in (None, "auto", "local"):
            # Ray itself tries for a quarter of an hour
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address)
    except (ValueError, RuntimeError, OSError) as error:
        raise ConnectionError(
            f"There is no Ray cluster to join at {address} ({error}): give --address HOST:PORT as `ray start --head` "
            "prints it, or leave it out for the cluster that runs on this machine, if any, or its cores alone."
        ) from error
    root, environment = root.absolute(), {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    waiting, pending = runs[::-1], dict[Any, Run]()
    try:
        while waiting or pending:
            while waiting and len(pending) < (jobs or len(runs)):
                run = waiting.pop()
                n_threads = max(1, run.options.get("num-threads", 1))
                task = ray.remote(_run_in_task).options(name=str(run), num_cpus=n_threads, num_gpus=gpus)
                pending[task.remote(run, root, timeout, Path.cwd(), environment)] = run
            ended, _ = ray.wait(list(pending))
            for reference in ended:
                run = pending.pop(reference)
                try:
                    yield run, ray.get(reference)
                except ray.exceptions.RayError as error:
                    run.folder(root).mkdir(parents=True, exist_ok=True)
                    with (run.folder(root) / OUTPUT).open("a") as output:
                        print(error, file=output)
                    yield run, False
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        ray.shutdown()


def _run_in_task(
    run: Run, root: Path, timeout: float | None, working_folder: Path, environment: dict[str, str]
) -> bool:
    """What happens on a node."""
    import ray

    run.folder(root).mkdir(parents=True, exist_ok=True)
    with (run.folder(root) / OUTPUT).open("a") as output:
        print(f"On {platform.node()}, node {ray.get_runtime_context().get_node_id()} of Ray", file=output)
    _start(run, root, timeout, cwd=working_folder, env={**os.environ, **environment}).wait()
    return run.is_finished(root)
