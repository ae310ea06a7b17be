"""Collecting datasets: episodes of a policy, in parallel, into Minari, and resumable at any moment."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import minari
from gymnasium.envs.registration import EnvSpec
from minari import MinariDataset
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_qam.datasets.sources import check_dataset_id
from sb3_qam.recording.rollout import check_storable
from sb3_qam.recording.scripted import ScriptedPolicy, as_scripted, identify
from sb3_qam.recording.staging import Description, Staging
from sb3_qam.recording.workers import Job, record_here, record_in_processes
from sb3_qam.utils.checks import check_positive_int


@dataclass
class EnvMaker:
    """
    Makes the environment, here or in another process.

    :param source: Its specification, a function, or the environment itself
    :param kwargs: For ``gymnasium.make``
    :param max_episode_steps: After how many steps to truncate episodes
    :raises TypeError: when called, if the function makes something else
    """

    source: EnvSpec | Callable[[], gym.Env] | gym.Env
    kwargs: dict[str, Any]
    max_episode_steps: int | None

    def __call__(self) -> gym.Env:
        if isinstance(self.source, EnvSpec):
            return gym.make(self.source, max_episode_steps=self.max_episode_steps, **self.kwargs)
        env = self.source if isinstance(self.source, gym.Env) else self.source()
        if not isinstance(env, gym.Env):
            raise TypeError(f"env must make a gymnasium.Env, it made {env!r}.")
        return env if self.max_episode_steps is None else gym.wrappers.TimeLimit(env, self.max_episode_steps)


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
) -> MinariDataset:
    """
    Record episodes of a policy as a Minari dataset in the local cache.

    A collection that was interrupted, by Ctrl-C, an error or ``kill -9``, is continued by the same call, without lost
    or repeated episodes, and one with more episodes extends it. The dataset can be opened meanwhile: it holds the
    episodes that have been published so far. An episode depends on ``seed`` and on its number alone, neither on the
    number of processes nor on interruptions, as far as the environment draws from the seed of ``reset()`` or from the
    global generators, and forgets earlier episodes when it is reset.

    The same call means: the same environment with the same wrappers, and the same policy. Functions are told apart by
    their code, defaults and enclosed values, not by the globals that they use, objects with a ``__call__()`` or a
    ``predict()`` of their own by their class alone: give the data of another policy another ``dataset_id``.

    Observations, actions and rewards are stored as the environment gives and takes them: not normalized, images
    channel-last and without compression. Infos are stored where they are arrays or numbers of the same shape at every
    step; success may be missing at some steps, where it is 0, as is at the reset what only steps say. Those that hdf5
    has no name for are left out with a warning. An observation, action or reward that is not finite is an error, as is
    an action beyond its bounds: SB3's models clip theirs, and a function has to.

    :param policy: A model of SB3 or sb3-contrib, recurrent or not; a function of an observation; a
        :class:`~sb3_qam.recording.scripted.ScriptedPolicy` such as
        :func:`~sb3_qam.recording.oracles.ogbench_oracle` gives; ``None`` for random actions. A model that has a
        ``VecNormalize`` environment sees observations normalized by it, and images need no ``VecTransposeImage``.
    :param env: An id, a function that makes an environment, or, for one process, an environment
    :param dataset_id: Id of the Minari dataset
    :param n_episodes: How many episodes it shall have
    :param n_processes: Number of processes; more than one need a script's ``if __name__ == "__main__":``, as SB3's
        ``SubprocVecEnv`` does
    :param seed: Collections with different seeds have no episodes in common
    :param deterministic: Passed to the model's ``predict()``
    :param max_episode_steps: After how many steps to truncate episodes, by default as the environment does; one that
        never ends needs it
    :param env_kwargs: For ``gymnasium.make``, where ``env`` is an id
    :param record_infos: Whether to store infos
    :param progress_bar: Display a progress bar using tqdm and rich
    :return: The dataset
    :raises ValueError: if arguments do not fit each other or the environment, the dataset in the cache is not of this
        collection, or, in one process, an episode is not finite or leaves the action space
    :raises TypeError: if the policy or the environment is something else
    :raises RuntimeError: if the dataset is being collected by another process, or a worker process fails
    :raises ImportError: if the progress bar's packages are missing
    """
    for name, value in {"n_episodes": n_episodes, "n_processes": n_processes}.items():
        check_positive_int(name, value)
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
    own_env = make_env()
    try:
        _check_env(own_env, acting)
        staging = Staging(dataset_id)
        with staging.locked():
            staging.begin(_describe(own_env, env, max_episode_steps, acting, seed, deterministic, record_infos))
            if staging.n_published > n_episodes:
                raise ValueError(
                    f"Dataset '{dataset_id}' has {staging.n_published} episodes already, more than "
                    f"n_episodes={n_episodes}: open it with minari.load_dataset('{dataset_id}')."
                )
            publish = partial(
                staging.publish,
                metadata={"algorithm_name": acting.name},
                observation_space=own_env.observation_space,
                action_space=own_env.action_space,
                env_spec=_storable_spec(own_env),
            )
            todo = [number for number in range(n_episodes) if number not in staging.finished]
            job = Job(make_env, acting, seed, record_infos, staging.episodes_folder)
            if n_processes == 1:
                recorded = record_here(job, own_env, todo)
            else:
                recorded = record_in_processes(job, todo, min(n_processes, len(todo)))
            try:
                _stage(recorded, staging, n_episodes, publish, progress_bar)
            finally:
                publish(staging.n_ready(n_episodes))
            staging.remove()
    finally:
        if not isinstance(env, gym.Env):
            own_env.close()
    return minari.load_dataset(dataset_id)


def _env_maker(
    env: Any, policy: ScriptedPolicy, env_kwargs: dict[str, Any] | None, max_episode_steps: int | None
) -> EnvMaker:
    """
    :raises ValueError: if there are arguments for an environment that is not made here
    :raises TypeError: if it is no environment
    """
    if isinstance(env, str):
        # Unlike an id, a specification is enough for a process that has not imported the environment's package
        return EnvMaker(gym.spec(env), {**policy.env_kwargs, **(env_kwargs or {})}, max_episode_steps)
    if env_kwargs is not None:
        raise ValueError(f"env_kwargs are for an env that is given as an id, got {env!r}: give them to it yourself.")
    if not isinstance(env, gym.Env) and not callable(env):
        raise TypeError(
            f"env must be an id, a function that makes a gymnasium.Env, or one itself, got {env!r}. SB3's VecEnvs hold "
            "several: use n_processes."
        )
    return EnvMaker(env, {}, max_episode_steps)


def _check_env(env: gym.Env, policy: ScriptedPolicy) -> None:
    """
    :raises ValueError: if its spaces cannot be stored, or the policy cannot act in it
    """
    check_storable("observation", env.observation_space)
    check_storable("action", env.action_space)
    policy.check(env)


def _describe(
    env: gym.Env,
    source: Any,
    max_episode_steps: int | None,
    policy: ScriptedPolicy,
    seed: int,
    deterministic: bool,
    record_infos: bool,
) -> Description:
    """
    :return: All that an episode depends on, as far as it has a name
    """
    if env.spec is None:
        is_class = isinstance(source, gym.Env | type)
        name = type(env.unwrapped).__qualname__ if is_class else identify(source)
        limit = max_episode_steps
    else:
        name = f"{env.spec.id}, {identify(env.spec.kwargs)}"
        limit = env.spec.max_episode_steps
    return {
        "policy": policy.name,
        "env": f"{name}, max_episode_steps={limit}",
        "wrappers": ", ".join(_names_of_wrappers(env)),
        "observations": str(env.observation_space),
        "actions": str(env.action_space),
        "seed": int(seed),
        "deterministic": bool(deterministic),
        "record_infos": bool(record_infos),
    }


def _names_of_wrappers(env: gym.Env) -> Iterator[str]:
    """
    :return: From the outermost to the innermost, with their arguments, where they know these
    """
    while isinstance(env, gym.Wrapper):
        arguments = getattr(env, "_saved_kwargs", {})
        yield f"{type(env).__qualname__}({', '.join(f'{key}={identify(value)}' for key, value in arguments.items())})"
        env = env.env


def _storable_spec(env: gym.Env) -> EnvSpec | None:
    if env.spec is None:
        return None
    try:
        env.spec.to_json()
    except (TypeError, ValueError) as error:
        warnings.warn(
            f"The environment '{env.spec.id}' cannot be stored with the dataset, which then does not know it: {error}"
        )
        return None
    return env.spec


def _stage(
    recorded: Iterator[int],
    staging: Staging,
    n_episodes: int,
    publish: Callable[[int], None],
    progress_bar: bool,
) -> None:
    """
    Record episodes, and publish them whenever there are twice as many as there were: each time, the dataset is copied.
    """
    with closing(recorded), closing(_Progress(n_episodes, staging, progress_bar)) as progress:  # type: ignore[type-var]
        for number in recorded:
            staging.finished.add(number)
            progress.update()
            n_ready = staging.n_ready(n_episodes)
            if n_ready >= 2 * max(staging.n_published, 1):
                publish(n_ready)


class _Progress:
    """
    A progress bar, or none.

    :raises ImportError: if its packages are missing
    """

    def __init__(self, n_episodes: int, staging: Staging, is_shown: bool) -> None:
        self._bar = None
        if is_shown:
            # Says what to install
            ProgressBarCallback()
            from tqdm.rich import tqdm

            n_finished = sum(number < n_episodes for number in staging.finished)
            self._bar = tqdm(total=n_episodes, initial=n_finished, unit="episode")

    def update(self) -> None:
        """One episode more."""
        if self._bar is not None:
            self._bar.update(1)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
