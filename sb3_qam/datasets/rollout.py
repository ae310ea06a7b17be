"""One episode of a policy in an environment, as a function of a seed and of the episode's number alone."""

import numbers
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.utils import set_random_seed

from sb3_qam.common.rewards import SUCCESS_KEYS
from sb3_qam.datasets.scripted import ScriptedPolicy

ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
# Booleans, integers and floating-point numbers
NUMERIC_KINDS = "biuf"

InfoPath = tuple[str, ...]


def check_storable(name: str, space: spaces.Space) -> None:
    """
    :param name: "observation" or "action"
    :param space: The space of an environment
    :raises ValueError: if its values are not arrays, or dicts and tuples of these
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            check_storable(name, part)
    elif not isinstance(space, ARRAY_SPACES):
        raise ValueError(
            f"The {name} space has {space}, which collect() cannot store: expected "
            f"{', '.join(each.__name__ for each in ARRAY_SPACES)}, or Dict and Tuple of these. Wrap the environment."
        )


def record_episode(env: gym.Env, policy: ScriptedPolicy, seed: int, number: int, record_infos: bool) -> EpisodeBuffer:
    """
    Every generator that the environment or the policy may draw from is seeded, so that it does not matter which
    episodes were recorded before, nor in which process.

    :param env: The environment
    :param policy: What acts
    :param seed: Seed of the collection
    :param number: Number of the episode
    :param record_infos: Whether to record infos
    :return: The episode. Observations and infos have one entry more than the rest has
    :raises ValueError: if an observation or an action is not of its space's shape
    """
    # Sums of seed and number would make collections with neighbouring seeds share episodes
    env_seed, policy_seed = map(int, np.random.SeedSequence([seed, number]).generate_state(2))
    set_random_seed(policy_seed)
    for each in (env, env.unwrapped):
        each.action_space.seed(policy_seed)
    rng = np.random.default_rng(policy_seed)
    observation_space, action_space = env.observation_space, env.action_space

    observation, info = env.reset(seed=env_seed, options=policy.reset_options(env, rng))
    observation = as_stored(observation_space, observation, "observation")
    policy.reset(observation, info, env, rng)
    observations, infos, actions, rewards, terminations, truncations = [observation], [info], [], [], [], []
    done = False
    while not done:
        action = as_stored(action_space, policy.select_action(observation, info), "action")
        # A copy, because an environment may change what it is given
        observation, reward, terminated, truncated, info = env.step(as_stored(action_space, action, "action"))
        observation = as_stored(observation_space, observation, "observation")
        observations.append(observation)
        infos.append(info)
        actions.append(action)
        rewards.append(float(reward))
        terminations.append(bool(terminated))
        truncations.append(bool(truncated))
        done = terminated or truncated
    return EpisodeBuffer(
        seed=env_seed,
        observations=_stack(observation_space, observations),
        actions=_stack(action_space, actions),
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        infos=stack_infos(infos) if record_infos else None,
    )


def as_stored(space: spaces.Space, value: Any, name: str) -> Any:
    """
    :param space: The space of the value
    :param value: An observation or an action
    :param name: "observation" or "action"
    :return: A copy in the space's own type, as SB3's environments give it
    :raises ValueError: if it is not of the space's shape
    """
    if isinstance(space, spaces.Dict):
        return {key: as_stored(part, value[key], name) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(as_stored(part, each, name) for part, each in zip(space.spaces, value, strict=True))
    array = np.array(value, dtype=space.dtype)
    if array.shape != space.shape:
        raise ValueError(f"An {name} has the shape {array.shape}, and {space} asks for {space.shape}: {value!r}.")
    # A number where the space is Discrete
    return array[()]


def _stack(space: spaces.Space, values: list[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _stack(part, [each[key] for each in values]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_stack(part, [each[i] for each in values]) for i, part in enumerate(space.spaces))
    return np.stack(values)


def stack_infos(infos: list[dict[str, Any]]) -> dict[str, Any] | None:
    """
    What steps say that resets do not, and success at steps that do not mention it, is 0.

    :param infos: Of the reset and of each step
    :return: Arrays with one entry for each, of what has the same shape at every step; none if there is nothing
    """
    leaves = [_leaves(info) for info in infos]
    stacked: dict[str, Any] = {}
    # In a fixed order: that of a set changes from process to process
    for path in dict.fromkeys(path for each in leaves for path in each):
        present = [each[path] for each in leaves if path in each]
        may_be_missing = path in {(key,) for key in SUCCESS_KEYS}
        if len({array.shape for array in present}) > 1 or not (
            may_be_missing or all(path in each for each in leaves[1:])
        ):
            continue
        parent = stacked
        for key in path[:-1]:
            parent = parent.setdefault(key, {})
        parent[path[-1]] = np.stack([each.get(path, np.zeros_like(present[0])) for each in leaves])
    return stacked or None


def _leaves(info: dict[str, Any], prefix: InfoPath = ()) -> dict[InfoPath, np.ndarray]:
    """
    :return: The arrays and numbers, by where they are
    """
    leaves: dict[InfoPath, np.ndarray] = {}
    for key, value in info.items():
        path = (*prefix, str(key))
        if isinstance(value, dict):
            leaves.update(_leaves(value, path))
        elif isinstance(value, np.ndarray | np.generic | numbers.Number):
            # Copied, because an environment may go on writing into it
            array = np.array(value)
            if array.dtype.kind in NUMERIC_KINDS:
                leaves[path] = array
    return leaves
