"""Runs on the cores of this machine, each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from sb3_qam.suite.resources import Resources
from sb3_qam.suite.runs import OUTPUT, Run


def run_locally(runs: list[Run], root: Path, resources: Resources) -> Iterator[tuple[Run, bool]]:
    """
    :param runs: What to do
    :param root: The suite's folder
    :param resources: ``jobs`` is by default the number of cores
    :return: Each run, as it ends, and whether it has come to its end
    :raises ValueError: if something is asked for that only a cluster has
    """
    resources.check_local()
    with ThreadPoolExecutor(resources.jobs or os.cpu_count()) as pool:
        futures = {pool.submit(_run_in_process, run, root): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            # Those that have not begun, when the suite is interrupted
            pool.shutdown(cancel_futures=True)


def _run_in_process(run: Run, root: Path) -> bool:
    folder = run.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sb3_qam.suite.runs", str(root), json.dumps(asdict(run))]
    with (folder / OUTPUT).open("a") as output:
        return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode == 0
