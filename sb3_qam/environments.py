"""The environments of the configurations, as far as their packages are installed, and those of the user."""

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import gymnasium as gym

from sb3_qam.presets import DOMAINS
from sb3_qam.recording.ogbench import SINGLE_TASK, split_task_id
from sb3_qam.utils.names import closest

__all__ = ["OGBENCH_TASKS", "find_environment", "register_environments"]

# The ids of the paper, which name the data besides the environment
OGBENCH_TASKS = [f"{domain}-singletask-task{task}-v0" for domain in DOMAINS for task in range(1, 6)]


def register_environments() -> None:
    """
    Make the environments of gymnasium_robotics and OGBench known to Gymnasium, and OGBench's single tasks also under
    the ids that their data has: ``cube-double-play-singletask-task1-v0`` is ``cube-double-singletask-task1-v0``.
    """
    for package in ("gymnasium_robotics", "ogbench"):
        # The former prints a notice on three of its environments, whatever it is imported for
        with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
            gym.register_envs(import_module(package))
    for task_id in OGBENCH_TASKS:
        _register_as_its_data(task_id)


def find_environment(env_id: str, packages: Sequence[str] = ()) -> str:
    """
    Make an environment known to Gymnasium, as the commands do: those of :func:`register_environments`, and those that
    importing a module registers, which may lie in the current folder.

    :param env_id: An id, also that of an OGBench data set with one of its tasks, or ``module:Id``
    :param packages: Further modules to import
    :return: The id under which it is registered
    :raises ValueError: if it is not
    :raises ImportError: if a module cannot be imported
    """
    register_environments()
    module, _, env_id = env_id.rpartition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # Last: no file here takes the place of an installed module
        sys.path.append(os.getcwd())
    for name in [*packages, *([module] if module else [])]:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"The module '{name}' with the environment '{env_id}' cannot be imported ({error}): install it, or run "
                "the command in its folder."
            ) from error
    if SINGLE_TASK in env_id:
        with contextlib.suppress(ValueError):
            _register_as_its_data(env_id)
    if env_id not in gym.registry:
        # RL Zoo's own, and those of packages that it imports
        with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
            import_module("rl_zoo3.import_envs")
    if env_id not in gym.registry:
        of_your_own = "" if module or packages else f" One of your own needs its module, MODULE:{env_id}."
        raise ValueError(f"There is no environment '{env_id}'{closest(env_id, gym.registry)}{of_your_own}")
    return env_id


def _register_as_its_data(task_id: str) -> None:
    """:raises ValueError: if it is not the id of a single task"""
    spec = gym.registry.get(split_task_id(task_id)[0])
    if spec is not None:
        gym.registry[task_id] = dataclasses.replace(spec, id=task_id)
