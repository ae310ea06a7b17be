"""Recording episodes, here or in other processes."""

import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection

import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_qam.utils.random_state import preserved_rng

# What records and stages an episode, given an environment and a number, and returns the keys that it left out
Job = Callable[[gym.Env, int], list[str]]
# The number of each episode, when it is staged, and the keys
Recorded = Iterator[tuple[int, list[str]]]


def record_here(job: Job, env: gym.Env, numbers: Iterable[int]) -> Recorded:
    """Record episodes one after the other, and leave the global random generators as they are."""
    n_threads = th.get_num_threads()
    # As in the workers: results would differ in the last digits
    th.set_num_threads(1)
    try:
        with preserved_rng(env.action_space, th.device("cuda" if th.cuda.is_initialized() else "cpu")):
            for number in numbers:
                yield number, job(env, number)
    finally:
        th.set_num_threads(n_threads)


def record_in_processes(
    job: Job, make_env: Callable[[], gym.Env], numbers: Iterable[int], n_processes: int
) -> Recorded:
    """
    Record episodes in several processes, each with its own environment.

    :raises ValueError: if the job cannot be sent to another process
    :raises RuntimeError: if an episode fails, or a process dies
    """
    try:
        payload = pickle.dumps(CloudpickleWrapper((job, make_env)))
    except Exception as error:
        raise ValueError(
            f"The policy or the environment cannot be sent to another process ({error}): use n_processes=1, or give "
            "env as an id or a function that makes it."
        ) from error
    # As in SB3's SubprocVecEnv: processes that are forked from one with threads may hang
    has_forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_forkserver else "spawn")
    alive, of_parent = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(n_processes, context, initializer=_begin, initargs=(alive, payload))
    try:
        futures = {pool.submit(_record, number): number for number in numbers}
        for future in as_completed(futures):
            try:
                left_out = future.result()
            except BrokenProcessPool:
                raise RuntimeError(
                    "A worker process died: killed, out of memory, or a script without "
                    "`if __name__ == '__main__':`? What was finished is kept, and the same call resumes there."
                ) from None
            if isinstance(left_out, str):
                raise RuntimeError(f"Episode {futures[future]} failed in a worker process:\n{left_out}")
            yield futures[future], left_out
        pool.shutdown()
    finally:
        # After an error or Ctrl-C, workers end in the middle of their episodes
        of_parent.close()
        pool.shutdown(cancel_futures=True)


# Of a worker process: the pickled job, and what records an episode, once there is an environment
_payload = b""
_recorder: Callable[[int], list[str]] | None = None


def _begin(alive: Connection, payload: bytes) -> None:
    global _payload
    # Ctrl-C reaches every process of a terminal; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    th.set_num_threads(1)
    _payload = payload


def _end_with_parent(alive: Connection) -> None:
    """Nobody tells a worker that its parent was killed, but then the pipe is closed."""
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


def _record(number: int) -> list[str] | str:
    """:return: The keys of the infos that cannot be stored, or the traceback: not all exceptions can be sent"""
    global _recorder
    try:
        if _recorder is None:
            job, make_env = pickle.loads(_payload).var
            env = make_env()
            # What is called when a worker ends
            multiprocessing.util.Finalize(None, env.close, exitpriority=0)
            _recorder = partial(job, env)
        return _recorder(number)
    except BaseException:
        return traceback.format_exc()
