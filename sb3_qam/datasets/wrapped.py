"""Datasets behind the wrappers of their environment."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari import MinariDataset
from minari.dataset.episode_data import EpisodeData
from minari.dataset.minari_storage import MinariStorage

from sb3_qam.datasets.checks import Place, readable_episodes
from sb3_qam.datasets.episodes import map_space, stack_values
from sb3_qam.datasets.rewards import SUCCESS_KEYS
from sb3_qam.utils.names import name_of

EnvWrapper = Callable[[gym.Env], gym.Env]


class WrappedDataset:
    """
    A dataset as its environment would have given it behind wrappers: each episode is replayed through them, so that
    observations and rewards are those that a policy meets in the wrapped environment. Whatever wraps an environment
    will do, as long as it needs nothing but what is recorded, and leaves the actions alone.

    What it does not know (``id``, ``total_steps``, ``env_spec``, ...), it asks the dataset.

    :param dataset: The dataset
    :param wrappers: Wrapper classes, or functions of an environment, applied in this order: the first one lies
        directly around the environment
    :param key: Names what the wrappers do, see :func:`~sb3_qam.datasets.wrap_dataset`
    :raises ValueError: if a wrapper cannot be used
    """

    def __init__(self, dataset: MinariDataset, *wrappers: EnvWrapper, key: str | None = None) -> None:
        self.dataset = dataset
        self.wrappers = wrappers
        self._key = key
        self._recorded_space = dataset.observation_space
        serialized = MinariStorage.read_raw_metadata(dataset.storage.data_path).get("observation_space")
        if serialized is not None:
            self._recorded_space = _in_recorded_order(self._recorded_space, json.loads(serialized))
        _, env = self._replay_chain()
        #: Observation space behind the wrappers
        self.observation_space = env.observation_space
        if env.action_space != dataset.action_space:
            raise self._error(
                f"changes the actions, from {dataset.action_space} to {env.action_space}, and only those of the "
                "environment are recorded"
            )

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":
            # Asked for while it is copied
            raise AttributeError(name)
        if name in ("iterate_episodes", "sample_episodes"):
            raise AttributeError(f"{name}() has the recorded episodes: episodes() has those behind the wrappers.")
        return getattr(self.dataset, name)

    @property
    def key(self) -> str:
        """
        Names what the wrappers do; mapped files belong to it.

        :raises ValueError: if it was not given, and a wrapper has no name under which it could be imported
        """
        names = [name_of(wrapper) for wrapper in self.wrappers]
        if self._key is None and None in names:
            raise ValueError(
                f"Mapped files of dataset '{self.id}' belong to its wrappers, and {self.wrappers[names.index(None)]!r} "
                "has no name under which they are found again: use wrap_dataset(..., key='...'), with another key "
                "whenever a wrapper does something else, or define it at the top level of a module."
            )
        return self._key or ", ".join(map(str, names))

    def _replay_chain(self) -> tuple["_ReplayEnv", gym.Env]:
        """:return: What replays episodes, and that behind new wrappers: some have a state that outlives episodes"""
        replay = _ReplayEnv(self._recorded_space, self.dataset.action_space, self.dataset.env_spec)
        try:
            return replay, self._wrap(replay)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".rstrip(".: ")
            raise self._error(f"cannot be put around recorded episodes: {reason}") from error

    def _wrap(self, env: gym.Env) -> gym.Env:
        for wrapper in self.wrappers:
            env = wrapper(env)
        return env

    def _error(self, complaint: str) -> ValueError:
        names = ", ".join(getattr(wrapper, "__name__", repr(wrapper)) for wrapper in self.wrappers)
        return ValueError(
            f"Dataset '{self.id}': the wrapper {names} {complaint}. Use wrappers of observations and rewards alone, "
            "such as FlattenObservation or TransformReward."
        )

    def filter_episodes(self, condition: Callable[[EpisodeData], bool]) -> "WrappedDataset":
        """
        :param condition: Whether to keep an episode, as it was recorded
        :return: Those that it keeps, behind the same wrappers
        """
        return WrappedDataset(self.dataset.filter_episodes(condition), *self.wrappers, key=self._key)

    def recover_environment(self) -> gym.Env:
        """:return: The environment of the dataset, wrapped"""
        return self._wrap(self.dataset.recover_environment())

    def episodes(self) -> Iterator[tuple[Place, EpisodeData]]:
        """
        :return: The episodes as they are behind the wrappers, and where each lies
        :raises ValueError: if one cannot be read, or a wrapper cannot be used
        """
        replay, env = self._replay_chain()
        for place, episode in readable_episodes(self.dataset, with_infos=True):
            replay.episode = episode
            try:
                observation, info = env.reset()
                # Wrappers may write the next observation into the same array
                observations, infos, steps = [copy.deepcopy(observation)], [info], []
                for step in range(place.n_steps):
                    observation, reward, terminated, _, info = env.step(episode.actions[step])
                    observations.append(copy.deepcopy(observation))
                    infos.append(info)
                    steps.append((reward, terminated))
                    if replay.position != step + 1:
                        raise RuntimeError("it takes other steps than it is asked for")
            except Exception as error:
                raise self._error(f"failed in episode {episode.id}: {type(error).__name__}: {error}") from error
            rewards, terminations = zip(*steps, strict=True)
            said = [key for key in SUCCESS_KEYS if any(key in info for info in infos)]
            yield (
                place,
                EpisodeData(
                    id=episode.id,
                    observations=stack_values(self.observation_space, observations),
                    actions=episode.actions,
                    rewards=np.array(rewards, dtype=np.float64),
                    terminations=np.array(terminations, dtype=bool),
                    truncations=episode.truncations,
                    infos={key: np.array([info.get(key, False) for info in infos]) for key in said},
                ),
            )


def _in_recorded_order(space: spaces.Space, serialized: dict[str, Any]) -> spaces.Space:
    """
    Reading a space, Gymnasium sorts the keys of a Dict. Observations are flattened in the order that the space had when
    Minari wrote it down, which is that of the environment.

    :param space: A space
    :param serialized: As Minari wrote it
    :return: The space with its keys in that order
    """
    if not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict([(key, _in_recorded_order(space[key], part)) for key, part in serialized["subspaces"].items()])


class _ReplayEnv(gym.Env):
    """Goes through recorded episodes again, whatever the actions."""

    episode: EpisodeData

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, env_spec: EnvSpec | None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        # Wrappers look there for the time limit
        self.spec = env_spec
        self.position = 0

    def _now(self) -> tuple[Any, dict[str, Any]]:
        observations, infos = self.episode.observations, self.episode.infos
        observation = map_space(lambda _, part, name: part[self.position], self.observation_space, observations)
        return observation, _info_at(infos or {}, self.position, len(self.episode.rewards) + 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = 0
        return self._now()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        step = self.position
        if not np.array_equal(action, self.episode.actions[step]):
            raise RuntimeError(f"it changes the action {self.episode.actions[step]} to {action}")
        self.position += 1
        is_last = self.position == len(self.episode.rewards)
        observation, info = self._now()
        return observation, float(self.episode.rewards[step]), bool(self.episode.terminations[step]), is_last, info


def _info_at(infos: dict[str, Any], position: int, n_positions: int) -> dict[str, Any]:
    """
    :return: What infos say at a position; where they do not begin with the reset, their last rows are those of the last
        steps
    """
    info = {}
    for key, value in infos.items():
        if isinstance(value, dict):
            info[key] = _info_at(value, position, n_positions)
        elif np.ndim(value) == 0:
            # Of the whole episode
            info[key] = value
        elif position >= n_positions - len(value):
            info[key] = value[position - n_positions]
    return info
