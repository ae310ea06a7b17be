"""The environments of the configurations, as far as their packages are installed."""

import dataclasses
from contextlib import suppress
from importlib import import_module

import gymnasium as gym

from sb3_qam.presets import DOMAINS
from sb3_qam.recording.ogbench import split_task_id

__all__ = ["OGBENCH_TASKS", "register_environments"]

# The ids of the paper, which name the data besides the environment
OGBENCH_TASKS = [f"{domain}-singletask-task{task}-v0" for domain in DOMAINS for task in range(1, 6)]


def register_environments() -> None:
    """
    Make the environments of gymnasium_robotics and OGBench known to Gymnasium, and OGBench's single tasks also under
    the ids that their data has: ``cube-double-play-singletask-task1-v0`` is ``cube-double-singletask-task1-v0``.
    """
    for package in ("gymnasium_robotics", "ogbench"):
        with suppress(ImportError):
            gym.register_envs(import_module(package))
    for task_id in OGBENCH_TASKS:
        spec = gym.registry.get(split_task_id(task_id)[0])
        if spec is not None:
            gym.registry[task_id] = dataclasses.replace(spec, id=task_id)
