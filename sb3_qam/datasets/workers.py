"""Processes that record episodes."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_qam.common.random_state import get_random_state, set_random_state
from sb3_qam.datasets.rollout import record_episode
from sb3_qam.datasets.scripted import ScriptedPolicy
from sb3_qam.datasets.staging import write_episode

# How long a worker may take to close its environment
CLOSING_SECONDS = 10.0


@dataclass
class Job:
    """
    What to record. Nothing in it depends on which process does.

    :param make_env: Makes the environment
    :param policy: What acts
    :param seed: Seed of the collection
    :param record_infos: Whether to record infos
    :param folder: Where to stage episodes
    """

    make_env: Callable[[], gym.Env]
    policy: ScriptedPolicy
    seed: int
    record_infos: bool
    folder: Path

    def record(self, env: gym.Env, number: int) -> None:
        """
        :param env: What ``make_env`` made
        :param number: Number of the episode to record and stage
        """
        write_episode(self.folder, number, record_episode(env, self.policy, self.seed, number, self.record_infos))


def record_here(job: Job, env: gym.Env, numbers: Iterable[int]) -> Iterator[int]:
    """
    :param job: What to record
    :param env: The environment
    :param numbers: The numbers of the episodes
    :return: Each number, when its episode is staged
    """
    # Seeding every episode is nobody else's business
    device = th.device("cuda" if th.cuda.is_initialized() else "cpu")
    random_state = get_random_state(env.action_space, device)
    n_threads = th.get_num_threads()
    # As in the workers: results would differ in the last digits
    th.set_num_threads(1)
    try:
        for number in numbers:
            job.record(env, number)
            yield number
    finally:
        th.set_num_threads(n_threads)
        set_random_state(random_state, env.action_space, device)


def record_in_processes(job: Job, numbers: Iterable[int], n_processes: int) -> Iterator[int]:
    """
    :param job: What to record
    :param numbers: The numbers of the episodes
    :param n_processes: Number of processes
    :return: Each number, when its episode is staged, in the order in which they end
    :raises ValueError: if the job cannot be sent to another process
    :raises RuntimeError: if an episode fails, or a process dies
    """
    try:
        payload = pickle.dumps(CloudpickleWrapper(job))
    except Exception as error:
        raise ValueError(
            f"The policy or the environment cannot be sent to another process ({error}): use n_processes=1, or give "
            "env as an id or a function that makes it."
        ) from error
    # As in SB3's SubprocVecEnv: processes that are forked from one with threads may hang
    has_forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_forkserver else "spawn")
    todo = deque(numbers)
    processes: dict[Connection, BaseProcess] = {}
    recording: dict[Connection, int] = {}
    try:
        for _ in range(n_processes):
            connection, of_worker = context.Pipe()
            process = context.Process(target=_work, args=(of_worker, payload), daemon=True)  # type: ignore[attr-defined]
            process.start()
            of_worker.close()
            processes[connection] = process
        for connection in processes:
            _assign(connection, todo, recording)
        while recording:
            ready = wait(list(recording))
            for connection in [each for each in recording if each in ready]:
                number = recording.pop(connection)
                _receive(connection, processes[connection], number)
                _assign(connection, todo, recording)
                yield number
    except BaseException:
        for process in processes.values():
            process.terminate()
        raise
    finally:
        for connection, process in processes.items():
            connection.close()
            process.join(CLOSING_SECONDS)
            process.kill()


def _assign(connection: Connection, todo: deque[int], recording: dict[Connection, int]) -> None:
    if todo:
        recording[connection] = todo.popleft()
        # Where it died, receiving from it says so
        with suppress(OSError):
            connection.send(recording[connection])


def _receive(connection: Connection, process: BaseProcess, number: int) -> None:
    """
    :raises RuntimeError: if the episode failed
    """
    try:
        failure = connection.recv()
    except (EOFError, OSError):
        process.join(CLOSING_SECONDS)
        raise RuntimeError(
            f"A worker process died at episode {number}, with exit code {process.exitcode}: killed, out of memory, or "
            "a script without `if __name__ == '__main__':`? What was finished is kept, and the same call goes on from "
            "there."
        ) from None
    if failure is not None:
        raise RuntimeError(f"Episode {number} failed in a worker process:\n{failure}")


def _work(connection: Connection, payload: bytes) -> None:
    """
    Record the episodes whose numbers arrive, until the connection is closed; answer ``None``, or the traceback.
    """
    # Ctrl-C reaches every process of a terminal; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    th.set_num_threads(1)
    env: Any = None
    try:
        job = None
        while True:
            number = connection.recv()
            if job is None:
                job = pickle.loads(payload).var
                env = job.make_env()
            job.record(env, number)
            connection.send(None)
    except EOFError:
        pass
    except Exception:
        connection.send(traceback.format_exc())
    finally:
        if env is not None:
            env.close()


def _exit_with_parent() -> None:
    """
    Nobody tells a worker that its parent was killed.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
