"""What is typed after a command of RL Zoo, as the zoo's own parser takes it."""

import argparse
from pathlib import Path

import gymnasium as gym

from sb3_qam.environments import find_environment
from sb3_qam.utils.plain_yaml import read_yaml
from sb3_qam.variants import find_algorithm
from sb3_qam.zoo import search


def zoo_arguments(command: str, arguments: list[str]) -> list[str]:
    """
    ``train --small`` makes a search one for small machines. Algorithms may be written in any way, and environments be
    given as ``module:Id`` or by the names of OGBench's data. The modules that register environments are imported, also
    those that a run was trained with.

    :param command: Name of one of the zoo's scripts
    :param arguments: What was typed
    :return: The same in the zoo's words
    :raises ValueError: if there is no such algorithm or environment
    :raises ImportError: if a module cannot be imported
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algo")
    parser.add_argument("--env")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("-f", "--folder", default="rl-trained-agents")
    if command == "train":
        parser.add_argument("--small", action="store_true")
    typed, _ = parser.parse_known_args(arguments)
    if command == "train":
        search.for_small_machines = typed.small
        arguments = [each for each in arguments if each != "--small"]
    if typed.algo is not None and (algo := find_algorithm(typed.algo)[0]) != typed.algo:
        arguments = _replaced(arguments, "--algo", algo)
        typed.algo = algo
    if typed.env is None:
        return arguments
    module, _, env_id = typed.env.rpartition(":")
    packages = [*typed.gym_packages, *([module] if module else [])]
    if command != "train" and not packages and env_id not in gym.registry:
        # As the zoo names them
        name = env_id.replace("/", "-")
        for file in Path(typed.folder, typed.algo or "ppo").glob(f"{name}_*/{name}/args.yml"):
            packages += read_yaml(file).get("gym_packages") or []
    find_environment(env_id, packages)
    if env_id != typed.env:
        arguments = _replaced(arguments, "--env", env_id)
    if command == "record_video":
        # Which has no such option
        return _replaced(arguments, "--gym-packages")
    return arguments if packages == typed.gym_packages else _replaced(arguments, "--gym-packages", *packages)


def _replaced(arguments: list[str], option: str, *values: str) -> list[str]:
    """:return: The arguments with the option once, at their end, and without it if there are no values"""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, nargs="+")
    return [*parser.parse_known_args(arguments)[1], *((option, *values) if values else ())]
