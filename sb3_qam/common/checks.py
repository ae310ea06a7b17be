"""Checks of what users give to an algorithm, each raising one clear error."""

import copy
from inspect import signature
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize, VecTransposeImage
from stable_baselines3.her import HerReplayBuffer

from sb3_qam.common.buffers import SequenceReplayBuffer
from sb3_qam.datasets.storage import STORAGES
from sb3_qam.utils.checks import (
    FLOAT32_MAX,
    check_action_space,
    check_in_range,
    check_observation_space,
    check_one_of,
    check_positive_int,
    check_same_space,
)
from sb3_qam.utils.names import arguments_of, closest

# What a model and its environment have to agree on, by attribute
SPACES = ("observation_space", "action_space")
# Arguments of SB3's base class that are for other policies, or for the algorithms made of it
NOT_TAKEN = {
    *("use_sde", "sde_sample_freq", "use_sde_at_warmup"),
    *("sde_support", "support_multi_env", "supported_action_spaces"),
}


def check_arguments(algorithm: type[OffPolicyAlgorithm], policy: Any, kwargs: dict[str, Any]) -> None:
    """
    :param algorithm: An offline-to-online algorithm
    :param policy: Its first argument
    :param kwargs: What it is about to hand to SB3's base class
    :raises ValueError: if there is no policy of that name
    :raises TypeError: if SB3 has no such argument
    """
    if isinstance(policy, str):
        check_one_of(f"policy of {algorithm.__name__}", policy, algorithm.policy_aliases)
    known = arguments_of(algorithm) - NOT_TAKEN
    for name in sorted(kwargs.keys() - (signature(OffPolicyAlgorithm).parameters.keys() - NOT_TAKEN)):
        raise TypeError(f"{algorithm.__name__} has no argument '{name}'{closest(name, known)}")


def check_load_arguments(algorithm: type[OffPolicyAlgorithm], kwargs: dict[str, Any]) -> None:
    """
    SB3 makes attributes of whatever it is given.

    :param algorithm: An offline-to-online algorithm
    :param kwargs: What is to replace the arguments that a saved model was made with
    :raises TypeError: if the constructor has no such argument, or it has no effect on a saved model
    """
    only_new = {"policy", "stats_window_size", "_init_setup_model"}
    known = arguments_of(algorithm) - only_new | {"num_timesteps", "replay_buffer"}
    for name in kwargs.keys() - known:
        if name in only_new:
            raise TypeError(
                f"{algorithm.__name__}.load() has no argument '{name}', which is for new models: leave it out."
            )
        if not name.startswith("_"):
            raise TypeError(f"{algorithm.__name__}.load() has no argument '{name}'{closest(name, known)}")


def check_hyperparameters(model: Any) -> None:
    """
    :param model: An offline-to-online algorithm
    :raises ValueError: naming the first argument that is out of range, or two that exclude each other
    """
    policy_class = model.policy_aliases.get("MlpPolicy", BasePolicy)
    if not issubclass(model.policy_class, policy_class):
        found, name = model.policy_class, type(model).__name__
        raise ValueError(
            f"The policy of {name} must be a {policy_class.__module__}.{policy_class.__name__}, got "
            f"{found.__module__}.{found.__name__}. A saved model is loaded by the class that it was made by "
            "(--algo on the command line)."
        )
    for name in ("buffer_size", "batch_size", "n_steps", "chunk_size"):
        check_positive_int(name, getattr(model, name))
    for name in ("learning_starts", "offline_steps", "bc_steps", "random_shift"):
        check_positive_int(name, getattr(model, name), minimum=0)
    check_positive_int("gradient_steps", model.gradient_steps, minimum=-1)
    check_in_range("gamma", model.gamma, 0, 1)
    check_in_range("tau", model.tau, 0, 1)
    if not callable(model.learning_rate):
        # Not excluded: with 0 RL Zoo loads models that are to act
        check_in_range("learning_rate", model.learning_rate, 0)
    if model.offline_fraction is not None:
        check_in_range("offline_fraction", model.offline_fraction, 0, 1)
    if model.action_noise is not None and not isinstance(model.action_noise, ActionNoise):
        raise ValueError(
            f"action_noise must be an ActionNoise of SB3, such as NormalActionNoise(mean, sigma), or None, got "
            f"{model.action_noise!r}."
        )
    check_one_of("offline_storage", model.offline_storage, STORAGES)
    if model.offline_storage == "cuda" and model.device.type != "cuda":
        raise ValueError(
            f"offline_storage='cuda' keeps the data beside the networks, and these are on '{model.device}': pass "
            "device='cuda', or another offline_storage, also to load()."
        )
    if model.chunk_size > 1 and model.n_steps > 1:
        raise ValueError(
            f"chunk_size={model.chunk_size} and n_steps={model.n_steps} exclude each other: the return of a chunk is "
            "that of its own steps. Leave n_steps at 1, or chunk_size."
        )


def check_structure(model: Any, structure: dict[str, Any]) -> None:
    """
    :param model: An offline-to-online algorithm whose networks are about to be made
    :param structure: What they are made for, by argument
    :raises ValueError: if the model was made with other networks
    """
    saved = model._structure or structure
    for name, value in structure.items():
        if saved[name] != value:
            start = ", and let load_behavior(path) start it from the saved clone" * hasattr(model, "load_behavior")
            raise ValueError(
                f"The networks were made for {name}={saved[name]} and do not fit {name}={value}. "
                f"Make a new model{start}."
            )
    model._structure = {**saved, **structure}


def check_policy_kwargs(model: Any, acting_kwargs: dict[str, Any]) -> None:
    """
    :param model: An offline-to-online algorithm
    :param acting_kwargs: What it passes to its policy itself
    :raises ValueError: if its ``policy_kwargs`` say otherwise
    """
    given = sorted(name for name, value in acting_kwargs.items() if model.policy_kwargs.get(name, value) != value)
    if given:
        name = type(model).__name__
        raise ValueError(
            f"policy_kwargs={model.policy_kwargs} sets what {name} sets itself ({', '.join(given)}): pass it to {name}."
        )


def check_replay_buffer_class(model: Any, buffer_class: type[ReplayBuffer]) -> None:
    """
    :param model: An offline-to-online algorithm
    :param buffer_class: The class of its replay buffer
    :raises ValueError: if it cannot do what the other arguments ask for
    """
    is_dict = isinstance(model.observation_space, spaces.Dict)
    gives_sequences = issubclass(buffer_class, SequenceReplayBuffer)
    if model.chunk_size > 1 and not gives_sequences:
        raise ValueError(
            f"chunk_size={model.chunk_size} needs a replay buffer that gives sequences, and {buffer_class.__name__} "
            "gives single transitions: use chunk_size=1, or leave replay_buffer_class to the algorithm."
        )
    if model.optimize_memory_usage and (is_dict or gives_sequences):
        raise ValueError(f"{buffer_class.__name__} does not support optimize_memory_usage=True, leave it False.")
    if model.optimize_memory_usage and model.replay_buffer_kwargs.get("handle_timeout_termination", True):
        raise ValueError(
            "optimize_memory_usage=True cannot tell truncations from terminations: pass "
            "replay_buffer_kwargs=dict(handle_timeout_termination=False) beside it, or leave it False."
        )
    if issubclass(buffer_class, HerReplayBuffer) and model.reward_transform is not None:
        raise ValueError(
            "HerReplayBuffer takes its rewards from the environment's compute_reward(), where reward_transform has "
            "no say: wrap the environment instead."
        )
    if issubclass(buffer_class, HerReplayBuffer) and model.env is None:
        raise ValueError("HerReplayBuffer computes rewards with the environment: pass env=..., also to load().")
    # A custom class may hold Dicts in its own way
    holds_dicts = issubclass(buffer_class, DictReplayBuffer)
    is_known = holds_dicts or gives_sequences or buffer_class is ReplayBuffer
    if is_known and is_dict != holds_dicts:
        fitting = ("Dict" if is_dict else "") + ("Sequence" if gives_sequences else "") + "ReplayBuffer"
        raise ValueError(
            f"replay_buffer_class={buffer_class.__name__} does not hold observations of "
            f"{model.observation_space}: use {fitting}, or leave it out."
        )


def check_episodic_training(train_freq: TrainFreq, n_envs: int) -> None:
    """
    :param train_freq: How often to train
    :param n_envs: Number of environments
    :raises ValueError: if it is given in episodes, and there are several environments
    """
    if train_freq.unit == TrainFrequencyUnit.EPISODE and n_envs > 1:
        raise ValueError(
            f"train_freq=({train_freq.frequency}, 'episode') needs a single environment, got {n_envs}: "
            "give it in steps."
        )


def check_callback(callback: Any) -> None:
    """
    SB3 would find out at the first step.

    :param callback: What ``learn()`` was given
    :raises TypeError: if it is not what ``learn()`` takes
    """
    for each in callback if isinstance(callback, list) else [callback]:
        if each is not None and not isinstance(each, BaseCallback) and not callable(each):
            raise TypeError(f"callback must be an SB3 callback, a list of them or a function, got {each!r}.")


def check_environment(env: Any) -> None:
    """
    :param env: An environment with spaces
    :raises TypeError: if it is a vectorized environment of Gymnasium's, which SB3 does not take
    :raises ValueError: if SB3 cannot scale its actions, or encode its observations
    """
    if isinstance(env, VectorEnv):
        raise TypeError(
            f"Expected a Gymnasium environment or a VecEnv of SB3, got {env!r}: use "
            "stable_baselines3.common.env_util.make_vec_env(id, n_envs) instead of gymnasium.make_vec()."
        )
    check_action_space(env.action_space)
    check_observation_space(env.observation_space)


def check_wrappers(env: VecEnv) -> None:
    """
    :param env: A VecEnv, with the wrappers of the user and those that SB3 adds around them
    :raises ValueError: if images are transposed or frames are stacked outside of ``VecNormalize``: what SB3's
        off-policy algorithms store is what went into that, and it would not fit the replay buffer; or if observations
        in it have no axis, which SB3 cannot store
    """
    is_transposed = is_stacked = False
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and env.observation_space.shape == ():
            raise ValueError(
                f"SB3 stores no observations of {env.observation_space} from VecNormalize: leave the wrapper out."
            )
        if isinstance(env, VecNormalize) and is_transposed:
            raise ValueError(
                "VecNormalize has images with their channels last, which replay buffers hold channels first: "
                "transpose them inside of it, VecNormalize(VecTransposeImage(env))."
            )
        if isinstance(env, VecNormalize) and is_stacked:
            raise ValueError(
                "VecNormalize has single frames, and replay buffers hold what it has: stack them inside of it, "
                "VecNormalize(VecFrameStack(env, n)). In RL Zoo that is, instead of frame_stack, "
                "env_wrapper: {sb3_qam.datasets.StackFrames: {n_stack: n}}."
            )
        is_transposed = is_transposed or isinstance(env, VecTransposeImage)
        is_stacked = is_stacked or isinstance(env, VecFrameStack)
        env = env.venv


def spaces_taken_over(env: VecEnv, model_spaces: dict[str, spaces.Space]) -> dict[str, spaces.Space]:
    """
    A model acts in the spaces of its environment, as one does that is made with it.

    :param env: The environment that a model is given
    :param model_spaces: The model's ``observation_space`` and ``action_space``
    :return: Those that it takes over from the environment, with another floating-point type, or bounds where one of the
        two has none
    :raises ValueError: if one differs in more than that
    """
    others = {}
    for name, own in model_spaces.items():
        given = getattr(env, name)
        check_same_space(name.removesuffix("_space"), own, given)
        if own != given:
            # The model seeds its own
            others[name] = copy.deepcopy(given)
    return others


def check_finite_values(what: str, values: np.ndarray, consequence: str) -> None:
    """
    :param what: What they are, for the error
    :param values: shape (n_envs, ...)
    :param consequence: What was not done, for the error
    :raises ValueError: if one of them is not finite in float32, naming its environment
    """
    is_finite = np.abs(values) <= FLOAT32_MAX
    if not is_finite.all():
        env = int(np.argwhere(~is_finite)[0, 0])
        raise ValueError(
            f"The {what} of environment {env} is not finite: {values[~is_finite][0]}. {consequence}. Check what "
            "computes it."
        )


def check_finite_observation(observation: Any, space: spaces.Space, consequence: str = "No action was taken") -> None:
    """
    NaN in, NaN out: a robot would move on that action.

    :param observation: One observation or a batch of them, as for ``predict()``
    :param space: Observation space of the model
    :param consequence: What was not done, for the error
    :raises ValueError: if a value is not finite in float32, naming its key and its environment
    """
    if isinstance(observation, tuple):
        # What reset() returns, which SB3 explains
        return
    for key, values in observation.items() if isinstance(observation, dict) else [(None, observation)]:
        array = np.asarray(values)
        if array.dtype.kind != "f" or (is_finite := np.abs(array) <= FLOAT32_MAX).all():
            continue
        shape = space[key].shape if isinstance(space, spaces.Dict) and key in space.spaces else space.shape
        # The first one, in the first environment that has one
        env, *position = np.argwhere(~is_finite.reshape(-1, *(shape or ())))[0].tolist()
        raise ValueError(
            f"The observation{'' if key is None else f' {key!r}'} of environment {env} is not finite: "
            f"{array[~is_finite][0]} at {position}. {consequence}. Check what produces it: a sensor, the "
            "simulation, or the statistics of VecNormalize."
        )
