"""
Configurations for RL Zoo: arguments of the algorithms, and the zoo's own (n_timesteps, env_wrapper, callback, ...).

``n_timesteps`` counts environment steps, ``offline_steps`` the gradient steps before them. Those of OGBench's tasks are
the published presets; the others were not tuned and are there to start from.
"""

import copy
from contextlib import suppress
from typing import Any

import gymnasium as gym

from sb3_qam.datasets.sources import OGBENCH_NAMESPACE
from sb3_qam.environments import OGBENCH_TASKS
from sb3_qam.presets import preset
from sb3_qam.recording.ogbench import SINGLE_TASK, split_task_id
from sb3_qam.variants import VARIANTS

Entry = dict[str, Any]

EPISODE_SUCCESS = {"vec_env_wrapper": "sb3_qam.zoo.wrappers.EpisodeSuccess"}


def _with_datasets(settings: Entry, datasets: dict[str, str]) -> dict[str, Entry]:
    """One entry for each environment, whose dataset is given."""
    return {env_id: {**settings, "offline_dataset": dataset} for env_id, dataset in datasets.items()}


# From recorded policies of medium skill (others: simple-v0, expert-v0)
_MUJOCO = {
    f"{name}-v5": f"mujoco/{name.lower()}/medium-v0"
    for name in (
        *("Ant", "HalfCheetah", "Hopper", "Humanoid", "InvertedDoublePendulum", "InvertedPendulum"),
        *("Pusher", "Reacher", "Swimmer", "Walker2d"),
    )
}
_POINTMAZE = {
    f"PointMaze_{maze}{kind}-v3": f"D4RL/pointmaze/{maze.lower()}{'-dense' * bool(kind)}-v2"
    for maze in ("Open", "UMaze", "Medium", "Large")
    for kind in ("", "Dense")
}
# Version 4: the data has no contact forces
_ANTMAZE = {
    "AntMaze_UMaze-v4": "D4RL/antmaze/umaze-v1",
    "AntMaze_Medium-v4": "D4RL/antmaze/medium-play-v1",
    "AntMaze_Medium_Diverse_GR-v4": "D4RL/antmaze/medium-diverse-v1",
    "AntMaze_Large-v4": "D4RL/antmaze/large-play-v1",
    "AntMaze_Large_Diverse_GR-v4": "D4RL/antmaze/large-diverse-v1",
}
# Demonstrations by people (others: cloned-v2, expert-v2)
_ADROIT = {f"AdroitHand{task}-v1": f"D4RL/{task.lower()}/human-v2" for task in ("Door", "Hammer", "Pen", "Relocate")}

ENTRIES: dict[str, Entry] = {
    "default": {"n_timesteps": 100_000},
    # QAM's own defaults, as benchmarks/online.py measures them
    "Pendulum-v1": {"n_timesteps": 10_000},
    # Single random actions do not leave the valley: chunks
    "MountainCarContinuous-v0": {"n_timesteps": 50_000, "learning_starts": 5000, "gamma": 0.9999, "chunk_size": 10},
    **_with_datasets(
        {"n_timesteps": 250_000, "offline_steps": 100_000, "n_steps": 3, "reward_transform": {"scale": 0.1}}, _MUJOCO
    ),
    # 0 and 1 are recorded
    **_with_datasets(
        {"n_timesteps": 50_000, "offline_steps": 100_000, "reward_transform": {"scale": 3.0}, **EPISODE_SUCCESS},
        _POINTMAZE,
    ),
    **_with_datasets(
        {
            "n_timesteps": 250_000,
            "offline_steps": 500_000,
            "gamma": 0.995,
            # 0 and 1 are recorded; below 0 on the way, short ways are better than long ones
            "reward_transform": {"scale": 3.0, "shift": -3.0},
            "policy_kwargs": {"net_arch": [512] * 3},
            **EPISODE_SUCCESS,
        },
        _ANTMAZE,
    ),
    **_with_datasets(
        {
            "n_timesteps": 250_000,
            "offline_steps": 50_000,
            # There are few: half of each batch
            "offline_fraction": 0.5,
            "reward_transform": {"scale": 0.1},
            **EPISODE_SUCCESS,
        },
        _ADROIT,
    ),
    "FrankaKitchen-v1": {
        "n_timesteps": 250_000,
        "offline_steps": 500_000,
        "chunk_size": 5,
        "env_kwargs": {"tasks_to_complete": ["microwave", "kettle", "light switch", "slide cabinet"]},
        # Goals are nested, and the same in every episode. The data is wrapped as the environment is
        "env_wrapper": [
            {"gymnasium.wrappers.FilterObservation": {"filter_keys": ["observation"]}},
            "gymnasium.wrappers.FlattenObservation",
        ],
        "offline_dataset": "D4RL/kitchen/complete-v2",
    },
}


def hyperparams_of(algorithm: str) -> dict[str, Entry]:
    """
    :param algorithm: Name of one of ``VARIANTS``
    :return: Its configurations by environments, which the caller may change
    """
    entries = {**ENTRIES, **_of_ogbench(), **{task_id: _published(algorithm, task_id) for task_id in OGBENCH_TASKS}}
    own = {"policy": VARIANTS[algorithm].policy, **VARIANTS[algorithm].zoo}
    return {env_id: {**own, **copy.deepcopy(entry)} for env_id, entry in entries.items()}


def _of_ogbench() -> dict[str, Entry]:
    """
    Its other tasks, as far as they are registered: those without data online only, and those that have the names of
    their data in the phases of the published runs.
    """
    entries: dict[str, Entry] = {}
    for task_id in gym.registry:
        if f"-{SINGLE_TASK}-" not in task_id:
            continue
        entries[task_id] = {**ENTRIES["default"], **EPISODE_SUCCESS}
        with suppress(ValueError):
            if split_task_id(task_id)[0] in gym.registry:
                phases = {"n_timesteps": 500_000, "offline_steps": 1_000_000}
                entries[task_id] |= {**phases, "offline_dataset": OGBENCH_NAMESPACE + task_id}
    return entries


def _published(algorithm: str, task_id: str) -> Entry:
    """cube-quadruple and puzzle-4x4 were published with 100 million transitions; the usual dataset has one million."""
    published = preset(task_id, algorithm)
    # LogEveryNTimesteps has the curves of both phases, which count gradient and environment steps, on even points
    callback = {"stable_baselines3.common.callbacks.LogEveryNTimesteps": {"n_steps": 5000}}
    return {
        **published.kwargs,
        "n_timesteps": published.online_steps,
        "buffer_size": 500_000,
        "offline_dataset": OGBENCH_NAMESPACE + task_id,
        "callback": [callback],
        **EPISODE_SUCCESS,
        **({"reward_transform": {"sparse": True}} if published.sparse_rewards else {}),
        **({"bc_steps": published.bc_steps} if published.bc_steps > 0 else {}),
    }
