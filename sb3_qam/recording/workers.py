"""Processes that record episodes."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_qam.recording.rollout import record_episode
from sb3_qam.recording.scripted import ScriptedPolicy
from sb3_qam.recording.staging import write_episode
from sb3_qam.utils.random_state import get_random_state, set_random_state

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

    def record(self, env: gym.Env, number: int) -> list[str]:
        """
        :param env: What ``make_env`` made
        :param number: Number of the episode to record and stage
        :return: The keys of the infos that cannot be stored
        """
        episode, left_out = record_episode(env, self.policy, self.seed, number, self.record_infos)
        write_episode(self.folder, number, episode)
        return left_out


class Recorded(NamedTuple):
    """
    What a worker says of an episode.

    :param number: Its number
    :param left_out: The keys of the infos that cannot be stored
    """

    number: int
    left_out: list[str]


class LeftOut:
    """Warns of infos that cannot be stored, once of each."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def warn(self, keys: list[str]) -> None:
        """
        :param keys: Keys of infos that were left out of an episode
        """
        new = [key for key in keys if key not in self._keys]
        self._keys.update(new)
        if new:
            warnings.warn(
                f"Infos are left out of the dataset, {', '.join(map(repr, new))}: hdf5 takes slashes for nested keys, "
                "and has neither empty names nor one name for two things. Rename them in a wrapper to keep them."
            )


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
    left_out = LeftOut()
    try:
        for number in numbers:
            left_out.warn(job.record(env, number))
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
    todo = list(numbers)
    # Workers take numbers themselves: they need not wait while this process publishes
    n_taken = context.Value("q", 0)
    processes: dict[Connection, BaseProcess] = {}
    # What each worker is at, None before its first episode
    recording: dict[Connection, int | None] = {}
    left_out = LeftOut()
    try:
        for _ in range(n_processes):
            connection, of_worker = context.Pipe()
            process = context.Process(  # type: ignore[attr-defined]
                target=_work, args=(of_worker, payload, todo, n_taken), daemon=True
            )
            process.start()
            of_worker.close()
            processes[connection] = process
            recording[connection] = None
        while recording:
            ready = wait(list(recording))
            for connection in [each for each in recording if each in ready]:
                message = _receive(connection, processes[connection], recording[connection])
                if message is None:
                    del recording[connection]
                elif isinstance(message, int):
                    recording[connection] = message
                else:
                    left_out.warn(message.left_out)
                    yield message.number
    except BaseException:
        for process in processes.values():
            process.terminate()
        raise
    finally:
        for connection, process in processes.items():
            connection.close()
            process.join(CLOSING_SECONDS)
            process.kill()


def _receive(connection: Connection, process: BaseProcess, number: int | None) -> int | Recorded | None:
    """
    :return: What the worker says: the episode it begins with, or has recorded, or that none is left for it
    :raises RuntimeError: if the episode failed
    """
    try:
        message = connection.recv()
    except (EOFError, OSError):
        process.join(CLOSING_SECONDS)
        where = "before its first episode" if number is None else f"at episode {number}"
        raise RuntimeError(
            f"A worker process died {where}, with exit code {process.exitcode}: killed, out of memory, or "
            "a script without `if __name__ == '__main__':`? What was finished is kept, and the same call goes on from "
            "there."
        ) from None
    if isinstance(message, str):
        where = "A worker process could not begin" if number is None else f"Episode {number} failed in a worker process"
        raise RuntimeError(f"{where}:\n{message}")
    return message


def _work(connection: Connection, payload: bytes, todo: list[int], n_taken: Any) -> None:
    """
    Record episodes until all are taken. What is said of each: its number, and what was left out of it; in the end
    ``None``, or the traceback.
    """
    # Ctrl-C reaches every process of a terminal; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    th.set_num_threads(1)
    env: Any = None
    try:
        job = pickle.loads(payload).var
        env = job.make_env()
        while True:
            with n_taken.get_lock():
                position = n_taken.value
                n_taken.value += 1
            if position >= len(todo):
                break
            connection.send(todo[position])
            connection.send(Recorded(todo[position], job.record(env, todo[position])))
        connection.send(None)
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
