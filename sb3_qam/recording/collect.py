"""Collecting datasets: episodes of a policy, in parallel, into Minari, and resumable at any moment."""

import dataclasses
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium as gym
import minari
from gymnasium.envs.registration import EnvSpec
from minari import MinariDataset
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_qam.datasets.sources import check_dataset_id
from sb3_qam.recording.rollout import check_storable, record_episode
from sb3_qam.recording.scripted import ScriptedPolicy, as_scripted
from sb3_qam.recording.staging import Staging
from sb3_qam.recording.workers import record_here, record_in_processes
from sb3_qam.utils.checks import check_action_space, check_positive_int
from sb3_qam.utils.names import name_of, plain


def collect(
    policy: Any,
    env: str | Callable[[], gym.Env] | gym.Env,
    dataset_id: str,
    n_episodes: int,
    *,
    n_processes: int = 1,
    seed: int = 0,
    deterministic: bool = False,
    max_episode_steps: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    record_infos: bool = True,
    progress_bar: bool = False,
    policy_name: str | None = None,
) -> MinariDataset:
    """
    Record episodes of a policy as a Minari dataset in the local cache.

    A collection that was interrupted, by Ctrl-C, an error or ``kill -9``, is resumed by the same call, without lost or
    repeated episodes, and one with more episodes extends it. The dataset can be opened meanwhile: it holds the
    episodes that have been published so far. An episode depends on ``seed`` and on its number alone, neither on the
    number of processes nor on interruptions, as far as the environment draws from the seed of ``reset()`` or from the
    global generators, and forgets earlier episodes when it is reset.

    The same call means: the same environment with the same wrappers, and the same policy. They are told apart by their
    names and by arguments that are plain values, not by their code; SB3's models also by their parameters. Give the
    data of another policy or environment another ``dataset_id``.

    Observations, actions and rewards are stored as the environment gives and takes them: not normalized, images
    channel-last and without compression. Infos are stored where they are arrays or numbers of the same shape at every
    step; success may be missing at some steps, where it is 0, as is at the reset what only steps say. Those that hdf5
    has no name for are left out with a warning. An observation, action or reward that is not finite is an error, as is
    an action beyond its bounds: SB3's models clip theirs, and a function has to.

    :param policy: A model of SB3 or sb3-contrib, recurrent or not; a function of an observation; a
        :class:`~sb3_qam.recording.ScriptedPolicy` such as
        :func:`~sb3_qam.recording.ogbench_oracle` gives; ``None`` for random actions. A model that has a
        ``VecNormalize`` environment sees observations normalized by it, and images need no ``VecTransposeImage``.
    :param env: An id (``module:Id`` imports the module first), a function that makes an environment, or, for one
        process, an environment
    :param dataset_id: Id of the Minari dataset
    :param n_episodes: How many episodes it is to have
    :param n_processes: Number of processes; more than one need a script's ``if __name__ == "__main__":``, as SB3's
        ``SubprocVecEnv`` does
    :param seed: Collections with different seeds have no episodes in common
    :param deterministic: Passed to the model's ``predict()``
    :param max_episode_steps: After how many steps to truncate episodes, by default as the environment does; one that
        never ends needs it
    :param env_kwargs: For ``gymnasium.make``, where ``env`` is an id
    :param record_infos: Whether to store infos
    :param progress_bar: Display a progress bar using tqdm and rich
    :param policy_name: By which the policy is recognized, and which the dataset has for the name of its algorithm. By
        default that of the model's or policy's class, or the module and name of a function, which a lambda and a
        function within a function do not have
    :return: The dataset
    :raises ValueError: if arguments do not fit each other or the environment, the dataset in the cache is not of this
        collection, or, in one process, an episode is not finite or leaves the action space
    :raises TypeError: if the policy or the environment is something else
    :raises RuntimeError: if the dataset is being collected by another process, or a worker process fails
    :raises ImportError: if the progress bar's packages are missing
    """
    check_positive_int("n_episodes", n_episodes)
    check_positive_int("n_processes", n_processes)
    check_positive_int("seed", seed, minimum=0)
    if max_episode_steps is not None:
        check_positive_int("max_episode_steps", max_episode_steps)
    check_dataset_id(dataset_id)
    acting = as_scripted(policy, deterministic)
    make_env = _env_maker(env, acting, env_kwargs, max_episode_steps)
    if n_processes > 1 and isinstance(env, gym.Env):
        raise ValueError(
            f"{n_processes} processes need as many environments: give env as an id or a function that makes one, or "
            "use n_processes=1."
        )
    if progress_bar:
        # Says what to install
        ProgressBarCallback()
        from tqdm.rich import tqdm
    own_env = make_env()
    try:
        check_storable("observation", own_env.observation_space)
        check_storable("action", own_env.action_space)
        acting.check(own_env)
        try:
            check_action_space(own_env.action_space)
        except ValueError as error:
            warnings.warn(f"The algorithms of this package cannot be trained on what is recorded here: {error}")
        name = policy_name or acting.name
        staging = Staging(dataset_id)
        with staging.locked():
            staging.begin(
                {
                    "policy": name,
                    **_describe(own_env),
                    "seed": int(seed),
                    "deterministic": bool(deterministic),
                    "record_infos": bool(record_infos),
                },
                {"algorithm_name": name},
                observation_space=own_env.observation_space,
                action_space=own_env.action_space,
                env_spec=_storable_spec(own_env),
            )
            if staging.n_published > n_episodes:
                raise ValueError(
                    f"Dataset '{dataset_id}' has {staging.n_published} episodes already, more than "
                    f"n_episodes={n_episodes}: open it with minari.load_dataset('{dataset_id}')."
                )
            todo = [number for number in range(n_episodes) if number not in staging.finished]
            folder = staging.episodes_folder
            job = partial(record_episode, policy=acting, seed=seed, record_infos=record_infos, folder=folder)
            if n_processes == 1 or not todo:
                recorded = record_here(job, own_env, todo)
            else:
                recorded = record_in_processes(job, make_env, todo, min(n_processes, len(todo)))
            try:
                with closing(recorded):  # type: ignore[type-var]
                    bar = tqdm(recorded, total=n_episodes, initial=n_episodes - len(todo)) if progress_bar else recorded
                    left_out: set[str] = set()
                    for number, keys in bar:
                        if new := [key for key in keys if key not in left_out]:
                            left_out.update(new)
                            warnings.warn(
                                f"Infos are left out of the dataset, {', '.join(map(repr, new))}: hdf5 takes slashes "
                                "for nested keys, and has neither empty names nor one name for two things. Rename them "
                                "in a wrapper to keep them."
                            )
                        staging.add(number, n_episodes)
            finally:
                staging.publish(n_episodes)
            staging.remove()
    finally:
        if not isinstance(env, gym.Env):
            own_env.close()
    return minari.load_dataset(dataset_id)


def _env_maker(
    env: Any, policy: ScriptedPolicy, env_kwargs: dict[str, Any] | None, max_episode_steps: int | None
) -> Callable[[], gym.Env]:
    """:return: What makes the environment, here or in another process"""
    if isinstance(env, str):
        module, _, env_id = env.rpartition(":")
        if module:
            import_module(module)
        # Unlike an id, a specification is enough for a process that has not imported the environment's package
        kwargs = {**policy.env_kwargs, **(env_kwargs or {})}
        return partial(gym.make, gym.spec(env_id), max_episode_steps=max_episode_steps, **kwargs)
    if env_kwargs is not None:
        raise ValueError(f"env_kwargs are for an env that is given as an id, got {env!r}: give them to it yourself.")
    if not isinstance(env, gym.Env) and not callable(env):
        raise TypeError(
            f"env must be an id, a function that makes a gymnasium.Env, or one itself, got {env!r}. SB3's VecEnvs hold "
            "several: use n_processes."
        )
    return partial(_made, env, max_episode_steps)


def _made(source: gym.Env | Callable[[], gym.Env], max_episode_steps: int | None) -> gym.Env:
    env = source if isinstance(source, gym.Env) else source()
    if not isinstance(env, gym.Env):
        raise TypeError(f"env must make a gymnasium.Env, it made {env!r}.")
    return env if max_episode_steps is None else gym.wrappers.TimeLimit(env, max_episode_steps)


def _describe(env: gym.Env) -> dict[str, str]:
    """:return: What an episode depends on in the environment, as far as it has a name"""
    wrappers = []
    inner = env
    while isinstance(inner, gym.Wrapper):
        # RL Zoo replaces TimeLimit by PatchedTimeLimit
        name = type(inner).__qualname__.removeprefix("Patched")
        wrappers.append(f"{name} {_plain(getattr(inner, '_saved_kwargs', {}))}")
        inner = inner.env
    spec = env.spec
    return {
        "env": type(inner).__qualname__ if spec is None else f"{spec.id} {_plain(spec.kwargs)}",
        "max_episode_steps": str(None if spec is None else spec.max_episode_steps),
        "wrappers": ", ".join(wrappers),
        "observations": str(env.observation_space),
        "actions": str(env.action_space),
    }


def _plain(arguments: Any) -> str:
    return plain(arguments) or ", ".join(arguments)


def _storable_spec(env: gym.Env) -> EnvSpec | None:
    spec = env.spec
    if spec is None:
        return None
    entry_point: Any = spec.entry_point
    if callable(entry_point) and name_of(entry_point) is not None:
        # As a string, which says the same, it can be stored
        spec = dataclasses.replace(spec, entry_point=f"{entry_point.__module__}:{entry_point.__qualname__}")
    try:
        spec.to_json()
        return spec
    except (TypeError, ValueError) as error:
        warnings.warn(
            f"The environment '{spec.id}' cannot be stored with the dataset, which then does not know it: {error}"
        )
        return None
