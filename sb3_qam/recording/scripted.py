"""What may act while data is collected: one interface for models, functions, random actions and controllers."""

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_qam.utils.names import name_of
from sb3_qam.utils.nested import map_observations


class ScriptedPolicy:
    """
    Base of controllers for :func:`~sb3_qam.recording.collect` that see infos and the environment itself. What
    is random in them has to come from ``rng``, or from the global generators of NumPy, PyTorch or Python, and what they
    remember has to be forgotten in :meth:`reset`: an episode depends on its seed alone.
    """

    #: What ``gymnasium.make`` is given besides an id, unless ``collect`` is told otherwise
    env_kwargs: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @property
    def name(self) -> str:
        """Names the policy in the dataset: a collection resumes with a policy of the same name only."""
        return type(self).__name__

    def check(self, env: gym.Env) -> None:
        """
        :param env: An environment that it is to act in
        :raises ValueError: if it cannot
        """

    def reset_options(self, env: gym.Env, rng: np.random.Generator) -> dict[str, Any] | None:
        """
        :param env: The environment, before it is reset
        :param rng: Generator of the episode
        :return: Options for its ``reset()``
        """
        return None

    def reset(self, observation: Any, info: dict[str, Any], env: gym.Env, rng: np.random.Generator) -> None:
        """
        :param observation: First observation of an episode
        :param info: Info of the reset
        :param env: The environment
        :param rng: Generator of the episode
        """

    def select_action(self, observation: Any, info: dict[str, Any]) -> Any:
        """
        :param observation: Latest observation
        :param info: Latest info
        :return: Action
        """
        raise NotImplementedError


class RandomPolicy(ScriptedPolicy):
    """Samples the action space, whose generator is seeded for every episode."""

    def reset(self, observation: Any, info: dict[str, Any], env: gym.Env, rng: np.random.Generator) -> None:
        self._action_space = env.action_space
        self._action_space.seed(int(rng.integers(2**32)))

    def select_action(self, observation: Any, info: dict[str, Any]) -> Any:
        return self._action_space.sample()


class FunctionPolicy(ScriptedPolicy):
    """:param function: Observation to action"""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    @property
    def name(self) -> str:
        """
        Module and name of the function, or of the object's class.

        :raises ValueError: if it has none: a lambda, for instance
        """
        is_object = not isinstance(self._function, partial) and not hasattr(self._function, "__qualname__")
        name = name_of(type(self._function) if is_object else self._function)
        if name is None:
            raise ValueError(
                f"The policy {self._function!r} has no name by which the same call could recognize it when it resumes: "
                "pass policy_name='...', or define it at the top level of a module."
            )
        return name

    def select_action(self, observation: Any, info: dict[str, Any]) -> Any:
        return self._function(observation)


class PredictPolicy(ScriptedPolicy):
    """
    Anything with SB3's ``predict()``, recurrent or not.

    :param model: A model or a policy
    :param deterministic: Passed to ``predict()``
    """

    def __init__(self, model: Any, deterministic: bool) -> None:
        self._model, self._deterministic = model, deterministic
        self._normalization = model.get_vec_normalize_env() if isinstance(model, BaseAlgorithm) else None

    @property
    def name(self) -> str:
        """With a digest of the parameters: a model that was trained on is another policy."""
        name = type(self._model).__name__
        policy = getattr(self._model, "policy", self._model)
        if not hasattr(policy, "state_dict"):
            return name
        digest = hashlib.sha256()
        for key, value in policy.state_dict().items():
            digest.update(key.encode())
            digest.update(value.cpu().numpy().tobytes())
        if self._normalization is not None:
            digest.update(pickle.dumps(getattr(self._normalization, "obs_rms", None)))
        return f"{name} {digest.hexdigest()[:12]}"

    def check(self, env: gym.Env) -> None:
        check_fits(
            self._model,
            env,
            "Collect in the environment it was trained in; what a VecEnv made of its observations (stacked frames, for "
            "instance), a wrapper of gymnasium.wrappers has to make here.",
        )

    def reset(self, observation: Any, info: dict[str, Any], env: gym.Env, rng: np.random.Generator) -> None:
        self._state: Any = None
        self._episode_start = np.ones(1, dtype=bool)
        if getattr(self._model, "use_sde", False):
            # Its noise would otherwise be what the last rollout or load() left there
            getattr(self._model, "policy", self._model).reset_noise()

    def select_action(self, observation: Any, info: dict[str, Any]) -> Any:
        batch = map_observations(lambda part: np.asarray(part)[None], observation)
        if self._normalization is not None:
            batch = self._normalization.normalize_obs(batch)
        actions, self._state = self._model.predict(batch, self._state, self._episode_start, self._deterministic)
        self._episode_start = np.zeros(1, dtype=bool)
        return actions[0]

    def __getstate__(self) -> dict[str, Any]:
        # Models hold environments and loggers, which cannot be sent to another process; files of theirs can
        state = self.__dict__.copy()
        if isinstance(self._model, BaseAlgorithm):
            file = io.BytesIO()
            self._model.save(file)
            state["_model"] = (type(self._model), file.getvalue(), self._model.device)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._model, tuple):
            algorithm, file, device = self._model
            self._model = algorithm.load(io.BytesIO(file), device=device, **without_buffer(algorithm))


def without_buffer(algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    """
    Acting needs no replay buffer: it takes memory, and some want an environment.

    :param algorithm: Class of a model
    :return: Arguments of its ``load()`` with which it makes none
    """
    # Where one seems to be there already, none is made
    kwargs = {"replay_buffer": False, "replay_buffer_class": None, "n_steps": 1}
    return kwargs if issubclass(algorithm, OffPolicyAlgorithm) else {}


def check_fits(model: Any, env: Any, way_out: str) -> None:
    """
    :param model: What is to act, with spaces of its own or without
    :param env: An environment, or several
    :param way_out: What the user can do
    :raises ValueError: if observations or actions are of other sizes
    """
    for what, attribute in (("observation", "observation_space"), ("action", "action_space")):
        of_env = getattr(env, attribute)
        of_model = getattr(model, attribute, of_env)
        if _sizes(of_model) != _sizes(of_env):
            raise ValueError(
                f"The model's {what} space does not fit the environment: {of_model} against {of_env}. {way_out}"
            )


def _sizes(space: spaces.Space) -> Any:
    """:return: The sizes of observations or actions, or of each key, in any order: SB3 moves the channels of images"""
    if isinstance(space, spaces.Dict):
        return {key: _sizes(part) for key, part in space.items()}
    return sorted(space.shape) if isinstance(space, spaces.Box) else space


def as_scripted(policy: Any, deterministic: bool) -> ScriptedPolicy:
    """
    :param policy: What :func:`~sb3_qam.recording.collect` takes
    :param deterministic: Passed to ``predict()``
    :return: The same behind one interface
    :raises TypeError: if it is something else
    """
    if policy is None:
        return RandomPolicy()
    if isinstance(policy, ScriptedPolicy):
        return policy
    # Models of SB3's are not callable, but its policies are, with another meaning
    if callable(getattr(policy, "predict", None)):
        return PredictPolicy(policy, deterministic)
    if callable(policy):
        return FunctionPolicy(policy)
    raise TypeError(
        "policy must be a model with SB3's predict(), a ScriptedPolicy (such as ogbench_oracle() gives), a function of "
        f"an observation, or None for random actions, got {policy!r}."
    )
