"""Runs as tasks of a Ray cluster."""

import importlib.util
import os
import platform
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sb3_qam.suite.resources import Resources
from sb3_qam.suite.runs import OUTPUT, Run, execute

# What runs depend on beside their own settings; everything else is as the node has it
PASSED_ON = ("MINARI_DATASETS_PATH", "MUJOCO_GL", "PYTHONPATH")


def run_on_ray(runs: list[Run], root: Path, resources: Resources) -> Iterator[tuple[Run, bool]]:
    """
    Each run is a task, in a process of its own that Ray ends with this one, however this one ends. Nodes see the same
    files: the suite's folder, the working folder, Minari's cache; and have the same packages.

    :param runs: What to do
    :param root: The suite's folder
    :param resources: ``address`` is by default what ``ray.init()`` makes of none: ``RAY_ADDRESS``, the cluster that was
        started last on this machine, or a new one of its cores alone
    :return: Each run, as it ends, and whether it has come to its end
    :raises ImportError: without Ray
    :raises ConnectionError: if there is no cluster at the address
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("--launcher ray needs Ray: pip install 'sb3-qam[ray]', here and on all nodes.")
    import ray

    address = resources.address or os.environ.get("RAY_ADDRESS")
    try:
        if address not in (None, "auto", "local"):
            _knock(address)
        ray.init(address)
    except (ValueError, RuntimeError, OSError) as error:
        raise ConnectionError(
            f"There is no Ray cluster to join at {address} ({error}): give --address HOST:PORT as `ray start --head` "
            "prints it, or leave it out for the cluster that runs on this machine, if any, or its cores alone."
        ) from error
    root, environment = root.absolute(), {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # A process that has trained is not as new: max_calls
    task = ray.remote(max_calls=1, num_gpus=resources.gpus)(_run_in_task)
    waiting = runs[::-1]
    pending: dict[Any, Run] = {}
    try:
        while waiting or pending:
            while waiting and len(pending) < (resources.jobs or len(runs)):
                run = waiting.pop()
                reference = task.options(name=str(run), num_cpus=n_threads(run)).remote(
                    run, root, Path.cwd(), environment
                )
                pending[reference] = run
            ended, _ = ray.wait(list(pending))
            for reference in ended:
                run = pending.pop(reference)
                yield run, _outcome(reference, run.folder(root))
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        ray.shutdown()


def _knock(address: str) -> None:
    """
    Ray itself tries for a quarter of an hour.

    :raises OSError: if nobody is at home
    :raises ValueError: if it is no address
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def n_threads(run: Run) -> int:
    """
    :param run: A run
    :return: How many threads it has been given, 1 where that is left to PyTorch
    """
    return max(1, run.options.get("num-threads", 1))


def _run_in_task(run: Run, root: Path, working_folder: Path, environment: dict[str, str]) -> bool:
    """
    What happens on a node.
    """
    import ray

    os.environ.update(environment)
    os.chdir(working_folder)
    folder = run.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Ray's own files are those of the whole node
    for stream in (1, 2):
        os.dup2(output, stream)
    print(f"On {platform.node()}, node {ray.get_runtime_context().get_node_id()} of Ray", flush=True)
    try:
        execute(run, root)
    except BaseException:
        traceback.print_exc()
        return False
    return True


def _outcome(reference: Any, folder: Path) -> bool:
    """
    :return: Whether a task has succeeded; what Ray says of one that has not been able to tell goes where its output is
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / OUTPUT).open("a") as output:
            print(error, file=output)
        return False
