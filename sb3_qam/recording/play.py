"""OGBench's data of manipulation, recorded again: its oracles play, and what they do is written as OGBench does."""

import itertools
import json
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_qam.recording.ogbench import SINGLE_TASK, read_rows
from sb3_qam.recording.oracles import ManipulationOracle, ogbench_oracle
from sb3_qam.recording.rollout import roll_out
from sb3_qam.recording.workers import record_here, record_in_processes
from sb3_qam.utils.atomic import atomic_write
from sb3_qam.utils.checks import check_positive_int

# Of the state that OGBench relabels: of every environment, and of those with buttons
STATE_KEYS = ("qpos", "qvel", "button_states")
# In the file, beside OGBench's own arrays, which its loader picks out
RECORDED = "recorded"
# Of a scene's block, y in meters: beyond its reach, and where only the drawer is, with the heights it has inside
Y_MAX, Y_DRAWER, Z_DRAWER = 0.29, -0.3, (0.06, 0.08)
BLOCK_QPOS = slice(14, 17)
N_TASKS = 5


def record_ogbench(
    env_id: str,
    path: str | Path,
    n_episodes: int = 1000,
    *,
    n_processes: int = 1,
    seed: int = 0,
    max_episode_steps: int = 1001,
    progress_bar: bool = False,
) -> Path:
    """
    Record data as OGBench's ``play`` data sets were, in the same format, for where they cannot be downloaded or other
    seeds are wanted: the oracles of :func:`ogbench_oracle` follow noisy plans to one random target after the other.
    In a scene, an episode in which the block gets out of reach is recorded again. ``import_ogbench(TASK, path=...)``
    gives it the rewards of any task.

    A recording that was interrupted is resumed by the same call. An episode depends on ``seed`` and on its number
    alone, so the file is the same, byte by byte on machines of the same kind, whatever the number of processes and
    interruptions. Finished episodes lie in a folder beside the file until all are there.

    :param env_id: Id of a manipulation environment, such as ``scene-v0``, ``cube-double-v0`` or ``puzzle-3x3-v0``
    :param path: The npz file. It has an array of each of ``observations``, ``actions``, ``terminals``, ``qpos``,
        ``qvel`` and, of scenes and puzzles, ``button_states``, with a row for every step
    :param n_episodes: Number of episodes
    :param n_processes: Number of processes; more than one need a script's ``if __name__ == "__main__":``
    :param seed: Recordings with different seeds have no episodes in common
    :param max_episode_steps: Rows of an episode; the last one only shows where the action before it has led
    :param progress_bar: Display a progress bar using tqdm and rich
    :return: The file
    :raises ValueError: if OGBench has no oracle for the environment, or the file is there already and is not what
        this call would write
    :raises RuntimeError: if a worker process fails
    :raises ImportError: if the package ``ogbench`` or the progress bar's packages are missing
    """
    for name, value in {"n_episodes": n_episodes, "n_processes": n_processes}.items():
        check_positive_int(name, value)
    check_positive_int("seed", seed, minimum=0)
    check_positive_int("max_episode_steps", max_episode_steps, minimum=2)
    oracle = ogbench_oracle(env_id)
    if not isinstance(oracle, ManipulationOracle):
        raise ValueError(
            f"OGBench's play data is of manipulation, got '{env_id}': expected one of its cube, scene and puzzle "
            "environments. collect() records the others."
        )
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end with .npz, as OGBench's files do, got {path}.")
    recorded = json.dumps({"env": env_id, "policy": oracle.name, "seed": int(seed), "steps": int(max_episode_steps)})
    if path.exists():
        if _recorded(path) == (recorded, n_episodes):
            return path
        raise ValueError(
            f"{path} is there already, and is not what this call would write: remove it, or choose another."
        )
    if progress_bar:
        # Says what to install
        ProgressBarCallback()
        from tqdm.rich import tqdm
    # With other arguments, episodes lie elsewhere
    folder = path.with_name(f"{path.name}.episodes") / f"{env_id}_seed_{seed}_steps_{max_episode_steps}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{number}.npz" for number in range(n_episodes)]
    todo = [number for number, part in enumerate(parts) if not part.exists()]
    make_env = partial(gym.make, gym.spec(env_id), max_episode_steps=max_episode_steps, **oracle.env_kwargs)
    job = partial(record_part, policy=oracle, seed=seed, folder=folder)
    if todo:
        with ExitStack() as stack:
            if n_processes == 1:
                env = stack.enter_context(closing(make_env()))
                done = record_here(job, env, todo)
            else:
                done = record_in_processes(job, make_env, todo, min(n_processes, len(todo)))
            # Ends workers after an error or Ctrl-C
            stack.enter_context(closing(done))  # type: ignore[type-var]
            for _ in tqdm(done, total=n_episodes, initial=n_episodes - len(todo)) if progress_bar else done:
                pass
    rows: dict[str, list[np.ndarray]] = {}
    for part in parts:
        with np.load(part) as file:
            for key in file.files:
                rows.setdefault(key, []).append(file[key])
    with atomic_write(path) as unfinished:
        arrays = {key: np.concatenate(each) for key, each in rows.items()}
        np.savez_compressed(unfinished, **arrays, **{RECORDED: np.array(recorded)})  # type: ignore[arg-type]
    for part in parts:
        part.unlink()
    for empty in (folder, folder.parent):
        if not any(empty.iterdir()):
            empty.rmdir()
    return path


def _recorded(path: Path) -> tuple[str, int] | None:
    """:return: What a file says of how it was recorded, and its number of episodes"""
    try:
        with np.load(path) as file:
            return str(file[RECORDED]), int(file["terminals"].sum())
    except Exception:
        # NumPy raises anything of a file that is something else; OGBench's own do not say
        return None


def record_part(env: gym.Env, number: int, *, policy: ManipulationOracle, seed: int, folder: Path) -> list[str]:
    """
    Record an episode until it is healthy, and write its rows.

    :param env: The environment
    :param number: Number of the episode
    :param policy: What acts
    :param seed: Seed of the recording
    :param folder: Where to write it
    :return: Nothing is left out
    """
    for attempt in itertools.count():
        episode, _ = roll_out(env, number, policy, seed, attempt=attempt)
        infos: Any = episode.infos
        if not hasattr(env.unwrapped, "_target_drawer_pos") or is_healthy(infos["qpos"]):
            break
    rows = {"observations": episode.observations, "actions": episode.actions, "terminals": episode.truncations}
    rows |= {key: infos[key] for key in STATE_KEYS if key in infos}
    n_rows = len(rows["actions"])
    # OGBench's types; images and the states of buttons stay integers
    rows = {
        key: np.asarray(values[:n_rows], np.float32 if np.asarray(values).dtype.kind == "f" else None)
        for key, values in rows.items()
    }
    with atomic_write(folder / f"{number}.npz") as path:
        np.savez(path, **rows)
    return []


def is_healthy(qpos: np.ndarray) -> bool:
    """
    :param qpos: Of a scene, shape (n, n_joints)
    :return: Whether its block is within reach all the time: not too far to one side, nor to the other unless it lies in
        the drawer
    """
    _, y, z = qpos[:, BLOCK_QPOS].T
    beside_drawer = (y <= Y_DRAWER) & ((z < Z_DRAWER[0]) | (z > Z_DRAWER[1]))
    return not ((y >= Y_MAX) | beside_drawer).any()


def success_shares(env_id: str, path: str | Path) -> dict[str, float]:
    """
    :param env_id: Id of a manipulation environment
    :param path: Its data, OGBench's npz file
    :return: The share of transitions in which each of OGBench's tasks is solved, by the ids of the tasks' environments
    :raises ValueError: if the file cannot be read, or is not of this environment
    :raises ImportError: if the package ``ogbench`` is not installed
    """
    # Registers the environments
    ogbench_oracle(env_id)
    name, version = env_id.rsplit("-", 1)
    shares = {}
    for number in range(1, N_TASKS + 1):
        task_id = f"{name}-{SINGLE_TASK}-task{number}-{version}"
        env = gym.make(task_id)
        shares[task_id] = float((read_rows(path, env, task_id)["masks"] == 0).mean())
        env.close()
    return shares
