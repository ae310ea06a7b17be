"""One episode of a policy in an environment, as a function of a seed and of the episode's number alone."""

import copy
import numbers
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.utils import set_random_seed

from sb3_qam.datasets.episodes import map_space, stack_values
from sb3_qam.datasets.rewards import SUCCESS_KEYS
from sb3_qam.recording.scripted import ScriptedPolicy
from sb3_qam.recording.staging import write_episode

ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
# Booleans, integers and floating-point numbers
NUMERIC_KINDS = "biuf"


def check_storable(name: str, space: spaces.Space) -> None:
    """
    :param name: "observation" or "action"
    :param space: The space of an environment
    :raises ValueError: if its values are not arrays, or dicts and tuples of these, or a key cannot be stored
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, part in space.items() if isinstance(space, spaces.Dict) else enumerate(space):
            if not is_storable_key(str(key)) or "/" in str(key):
                raise ValueError(
                    f"The {name} space has the key {key!r}, which no hdf5 file can hold: rename it in a wrapper."
                )
            check_storable(name, part)
    elif not isinstance(space, ARRAY_SPACES):
        raise ValueError(
            f"The {name} space has {space}, which no dataset here can hold: expected "
            f"{', '.join(each.__name__ for each in ARRAY_SPACES)}, or Dict and Tuple of these. Wrap the environment."
        )


def is_storable_key(key: str) -> bool:
    """:param key: A key of an info, or several of nested ones with slashes between them: a path, in an hdf5 file"""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in key and not {"", "."} & set(key.split("/"))


def record_episode(
    env: gym.Env, number: int, *, policy: ScriptedPolicy, seed: int, record_infos: bool, folder: Path
) -> list[str]:
    """
    Record an episode, and stage it.

    :return: The keys of the infos that cannot be stored
    :raises ValueError: as :func:`roll_out` does
    """
    episode, left_out = roll_out(env, number, policy, seed, record_infos)
    write_episode(folder, number, episode)
    return left_out


def roll_out(
    env: gym.Env, number: int, policy: ScriptedPolicy, seed: int, record_infos: bool = True, attempt: int = 0
) -> tuple[EpisodeBuffer, list[str]]:
    """
    Every generator that the environment or the policy may draw from is seeded with the seed of the collection and the
    number of the episode, so that it does not matter which were recorded before, nor in which process.

    :param env: The environment
    :param number: Number of the episode
    :param policy: What acts
    :param seed: Seed of the collection
    :param record_infos: Whether to keep infos
    :param attempt: Others give the episode other random numbers
    :return: The episode, and the keys of the infos that cannot be stored
    :raises ValueError: if an observation or an action is not of its space's shape, if one of them or a reward is not
        finite, or an action is not in its space
    """
    # Sums of seed and number would make collections with neighboring seeds share episodes. Zeros at the end of a
    # sequence change nothing
    env_seed, policy_seed = map(int, np.random.SeedSequence([seed, number, attempt]).generate_state(2))
    set_random_seed(policy_seed)
    for each in (env, env.unwrapped):
        each.action_space.seed(policy_seed)
    rng = np.random.default_rng(policy_seed)
    observation, info = env.reset(seed=env_seed, options=policy.reset_options(env, rng))
    # Some environments make them again whenever they are asked
    observation_space, action_space = env.observation_space, env.action_space
    observation = _observed(observation_space, observation, f"Episode {number}, reset")
    policy.reset(observation, info, env, rng)
    observations, infos = [observation], [info]
    steps: list[tuple[Any, float, bool, bool]] = []
    done = False
    while not done:
        where = f"Episode {number}, step {len(steps)}"
        action = policy.select_action(observation, info)
        action = map_space(partial(_action_part, where=where), action_space, action, name="action")
        # A copy, because an environment may change what it is given
        observation, reward, terminated, truncated, info = env.step(copy.deepcopy(action))
        observation = _observed(observation_space, observation, where)
        _check_finite(float(reward), "reward", where)
        observations.append(observation)
        infos.append(info)
        steps.append((action, float(reward), bool(terminated), bool(truncated)))
        done = terminated or truncated
    actions, rewards, terminations, truncations = map(list, zip(*steps, strict=True))
    stacked, left_out = stack_infos(infos) if record_infos else (None, [])
    episode = EpisodeBuffer(
        seed=env_seed,
        observations=stack_values(observation_space, observations),
        actions=stack_values(action_space, actions),
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        infos=stacked,
    )
    return episode, left_out


def _observed(space: spaces.Space, observation: Any, where: str) -> Any:
    return map_space(partial(_part, where=where), space, observation, name="observation")


def _part(space: spaces.Space, value: Any, name: str, where: str) -> Any:
    """:return: A copy of a part of an observation or action in the space's own type, as SB3's environments give it"""
    array = np.array(value, dtype=space.dtype)
    if array.shape != space.shape:
        raise ValueError(f"{where}: {name} has the shape {array.shape}, and {space} asks for {space.shape}: {value!r}.")
    _check_finite(array, name, where)
    # A number where the space is Discrete
    return array[()]


def _check_finite(value: Any, name: str, where: str) -> None:
    # Training would refuse the whole dataset
    if not np.isfinite(value).all():
        raise ValueError(
            f"{where}: {name} is not finite, {value!r}. Find out whether the policy or the environment makes it; what "
            "was finished before is kept, and the same call resumes there."
        )


def _action_part(space: spaces.Space, value: Any, name: str, where: str) -> Any:
    """
    :return: As above, with bounds that were missed by rounding alone. A model's ``predict()`` clips, a function may not
    """
    action = _part(space, value, name, where)
    if isinstance(space, spaces.Box):
        clipped = np.clip(action, space.low, space.high)
        # Nearly always equal, and found out much faster
        if (action == clipped).all() or np.allclose(action, clipped):
            return clipped
        bounds = f"bounds {space.low} and {space.high}: clip it, np.clip(action, space.low, space.high),"
    elif space.contains(action):
        return action
    else:
        bounds = f"values of {space}: correct it"
    raise ValueError(f"{where}: {name} {action!r} lies beyond the {bounds} in the policy.")


def stack_infos(infos: list[dict[str, Any]]) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """
    What steps say that resets do not, and success at steps that do not mention it, is 0.

    :param infos: Of the reset and of each step
    :return: Arrays with one entry for each, of what has the same shape at every step, by their paths in an hdf5 file,
        ``None`` if there is nothing; and the keys that hdf5 has no place for
    """
    leaves = [dict(_leaves(info)) for info in infos]
    stacked: dict[str, np.ndarray] = {}
    left_out = []
    # In a fixed order: that of a set changes from process to process
    for path in dict.fromkeys(path for each in leaves for path in each):
        # Slashes in a key nest as well, in a file
        key = "/".join(path)
        present = [each[path] for each in leaves if path in each]
        is_complete = key in SUCCESS_KEYS or all(path in each for each in leaves[1:])
        if not is_complete or len({array.shape for array in present}) > 1:
            continue
        is_taken = any(f"{key}/".startswith(f"{other}/") or other.startswith(f"{key}/") for other in stacked)
        if is_taken or not is_storable_key(key):
            left_out.append(key)
        else:
            stacked[key] = np.stack([each.get(path, np.zeros_like(present[0])) for each in leaves])
    return stacked or None, left_out


def _leaves(info: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """:return: The arrays and numbers, and where each is"""
    for key, value in info.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, str(key)))
        elif isinstance(value, np.ndarray | np.generic | numbers.Number):
            # Copied, because an environment may write into it later
            array = np.array(value)
            if array.dtype.kind in NUMERIC_KINDS:
                yield (*path, str(key)), array
