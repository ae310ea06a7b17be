"""Off-policy learning that begins with a dataset: ``pretrain()``, then SB3's own ``learn()``."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TrainFreq
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_qam.common.augmentation import RandomShift
from sb3_qam.common.buffers import (
    DictSequenceReplayBuffer,
    OfflineBuffer,
    SequenceReplayBuffer,
    TransitionBatch,
    n_available,
    sample_union,
)
from sb3_qam.common.checks import (
    SPACES,
    check_arguments,
    check_callback,
    check_environment,
    check_episodic_training,
    check_hyperparameters,
    check_policy_kwargs,
    check_replay_buffer_class,
    check_structure,
    check_wrappers,
    spaces_taken_over,
)
from sb3_qam.common.device_buffer import DeviceOfflineBuffer
from sb3_qam.common.normalization import add_initial_statistics, check_reward_scales
from sb3_qam.common.phases import OBJECTIVES, ONLINE, Phase, SpacesOnlyEnv, still_step, with_progress_bar
from sb3_qam.common.rollouts import StatefulRollouts
from sb3_qam.common.saving import ResumableAlgorithm
from sb3_qam.common.update_monitor import UpdateMonitor
from sb3_qam.datasets.minari import check_dataset_spaces, read_episodes, training_spaces
from sb3_qam.datasets.replay_buffer import ReplayBufferSource, open_replay_buffer
from sb3_qam.datasets.rewards import RewardTransform
from sb3_qam.datasets.sources import OfflineDataset, OpenDataset, open_datasets, storable, with_absolute_folders
from sb3_qam.datasets.storage import map_episodes
from sb3_qam.utils.checks import check_in_range, check_one_of, check_positive_int

# Gradient steps between two outputs of the logger
OFFLINE_LOG_INTERVAL = 1000

SelfOfflineToOnline = TypeVar("SelfOfflineToOnline", bound="OfflineToOnlineAlgorithm")


class OfflineToOnlineAlgorithm(StatefulRollouts, ResumableAlgorithm):
    """
    The base for off-policy algorithms that learn from a fixed dataset, from an environment, or first one and then
    the other. Offline data lives beside the replay buffer; updates draw from the union of both, in sequences of
    steps where returns or actions need them.

    Arguments are those of ``OffPolicyAlgorithm``, and:

    :param chunk_size: Number of actions in a chunk, the unit in which the policy acts and learns
    :param offline_dataset: Id or folder of a Minari dataset, a dataset object, a replay buffer of SB3, or a list of
        these. An id that is not in the local cache is downloaded. With ``env=None`` the model takes its spaces from it.
        Ids and folders are stored with the model, also those of the object of a whole dataset; other objects have to be
        given again to ``load()``.
    :param offline_steps: Gradient steps on the dataset alone before ``learn()`` takes its first environment step.
        Those done by ``pretrain()`` count, and so do those before an interruption.
    :param bc_steps: Gradient steps of ``pretrain(objective="bc")`` that ``learn()`` takes before these, if none
        of these has been taken.
    :param offline_fraction: Share of each online batch that comes from the dataset, in [0, 1]. ``None`` draws
        uniformly from the union of offline and online data.
    :param offline_storage: ``"memory"``; ``"memmap"`` for datasets that do not fit into it: they are written to files
        once, and batches are read from there; or ``"cuda"`` to have them on the GPU as well, where batches are
        gathered without a copy.
    :param reward_transform: What to make of rewards and terminations, offline and online: a ``RewardTransform``, or
        its arguments as a dict.
    :param random_shift: Shift the images of training batches by up to that many pixels at random, 0 for not at all
    :raises ValueError: if an argument is out of range, the dataset is unusable or does not fit the environment
    :raises FileNotFoundError: if the dataset is not in the local Minari cache and cannot be downloaded
    :raises TypeError: if ``env`` is not an environment, or ``offline_dataset`` not a dataset
    """

    reward_transform: RewardTransform | None
    # Outlives a dataset object, which is not saved
    _offline_dataset_id: str | None = None
    # Whether VecNormalize normalized what the networks have learned from
    _observations_normalized = False
    # What trains now
    _phase: Phase = ONLINE
    # When the logger was last written
    _logged_at = 0
    # What the networks were made for, to compare at loading
    _structure: dict[str, Any] | None = None

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule,
        *args: Any,
        chunk_size: int = 1,
        offline_dataset: OfflineDataset | None = None,
        offline_steps: int = 0,
        bc_steps: int = 0,
        offline_fraction: float | None = None,
        offline_storage: str = "memory",
        reward_transform: RewardTransform | dict[str, Any] | None = None,
        random_shift: int = 0,
        **kwargs: Any,
    ) -> None:
        check_arguments(type(self), policy, kwargs)
        kwargs |= {"sde_support": False, "support_multi_env": True}
        super().__init__(policy, env, learning_rate, *args, **kwargs)  # type: ignore[arg-type]
        # The caller's dict stays as it is
        self.policy_kwargs = self.policy_kwargs.copy()
        self.replay_buffer_kwargs = self.replay_buffer_kwargs.copy()
        self.chunk_size = chunk_size
        self.offline_dataset = with_absolute_folders(offline_dataset)
        self.offline_steps = offline_steps
        self.bc_steps = bc_steps
        self.offline_fraction = offline_fraction
        self.offline_storage = offline_storage
        self.reward_transform = RewardTransform.make(reward_transform)
        self.random_shift = random_shift
        # Of the last updates; it is saved, because it says who acts
        self._objective = ONLINE.objective
        self._n_offline_steps_done = 0
        self._n_bc_steps_done = 0

    # ------------------------------------------------------------------ set-up

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # Here, because SB3 asserts what we want to explain
        if not hasattr(env, "action_space"):
            raise TypeError(f"Expected a Gymnasium environment or a VecEnv, got {type(env).__name__}: {env!r}.")
        check_environment(env)
        wrapped = OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_wrappers(wrapped)
        return wrapped

    def _check_hyperparameters(self) -> None:
        """:raises ValueError: naming the first argument that is out of range"""
        check_hyperparameters(self)

    def _setup_model(self) -> None:
        self._check_hyperparameters()
        if not hasattr(self, "observation_space"):
            self._take_spaces_from_dataset()
        if not callable(self.learning_rate):
            self.learning_rate = float(self.learning_rate)
        self.reward_transform = RewardTransform.make(self.reward_transform)
        is_dict = isinstance(self.observation_space, spaces.Dict)
        if self.sequence_length > 1 and self.replay_buffer_class in (None, ReplayBuffer, DictReplayBuffer):
            self.replay_buffer_class = DictSequenceReplayBuffer if is_dict else SequenceReplayBuffer
        buffer_class = self.replay_buffer_class or (DictReplayBuffer if is_dict else ReplayBuffer)
        check_replay_buffer_class(self, buffer_class)
        # Seeding concerns a new model; one that is being loaded resumes where it was
        n_steps, random_state = self.n_steps, self._random_state
        if issubclass(buffer_class, SequenceReplayBuffer):
            self.replay_buffer_kwargs.update(self._sequence_kwargs())
            # This buffer makes the n-step returns; SB3 would warn that it does not know that
            self.n_steps = 1
        check_structure(self, self._network_structure())
        policy_kwargs, acting_kwargs = self.policy_kwargs, self._acting_kwargs()
        check_policy_kwargs(self, acting_kwargs)
        self.policy_kwargs = {**policy_kwargs, **acting_kwargs}
        super()._setup_model()
        # Restore the user's: load(policy_kwargs=...) compares them
        self.policy_kwargs = policy_kwargs
        self.n_steps, self._random_state = n_steps, random_state
        self._monitor = UpdateMonitor.for_device(self.device)
        self._augmentation = RandomShift(self.observation_space, self.random_shift, self.policy.normalize_images)

    def _network_structure(self) -> dict[str, Any]:
        """:return: What the networks are made for, by argument: a saved model can only be loaded with the same"""
        return {"chunk_size": self.chunk_size}

    def _acting_kwargs(self) -> dict[str, Any]:
        """:return: Arguments of the algorithm that the policy needs to act on its own"""
        return {"chunk_size": self.chunk_size}

    def _convert_train_freq(self) -> None:
        if not isinstance(self.train_freq, TrainFreq):
            is_pair = isinstance(self.train_freq, (tuple, list)) and len(self.train_freq) == 2
            frequency, unit = self.train_freq if is_pair else (self.train_freq, "step")  # type: ignore[misc]
            check_positive_int("train_freq", frequency)
            self.train_freq = (int(frequency), unit)  # type: ignore[arg-type]
        super()._convert_train_freq()
        check_episodic_training(self.train_freq, self.n_envs)  # type: ignore[arg-type]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Checks the validity of the environment, and if it is coherent, set it as the current environment.

        :param env: The environment for learning a policy. A model that has had none takes any number of them
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior.
        :raises ValueError: if the spaces are not the model's (bounds may be infinite in one, the floating-point type
            may be another), or the number of environments is not that of the replay buffer, or images are transposed
            outside of ``VecNormalize``
        :raises TypeError: if it is not an environment
        """
        env = self._wrap_env(env, self.verbose)
        others = spaces_taken_over(env, {name: getattr(self, name) for name in SPACES})
        if env.num_envs != self.n_envs:
            if self.env is not None or self.replay_buffer is None or self.replay_buffer.size() > 0:
                raise ValueError(
                    f"The model has {self.n_envs} environment(s) and cannot be given {env.num_envs}: "
                    f"save it and use {type(self).__name__}.load(path, env=env)."
                )
            check_episodic_training(self.train_freq, env.num_envs)  # type: ignore[arg-type]
            self.n_envs = env.num_envs
            self.replay_buffer = type(self.replay_buffer)(
                self.buffer_size,
                self.observation_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_envs,
                optimize_memory_usage=self.optimize_memory_usage,
                **self.replay_buffer_kwargs,
            )
        for name, space in others.items():
            space.seed(self.seed)
            setattr(self, name, space)
            setattr(self.policy, name, space)
        super().set_env(env, force_reset)

    # ------------------------------------------------------------------ data

    @property
    def sequence_length(self) -> int:
        """How many successive steps a sample covers."""
        return max(self.n_steps, self.chunk_size)

    def _sequence_kwargs(self) -> dict[str, Any]:
        return {"n_steps": self.sequence_length, "gamma": self.gamma, "chunk_size": self.chunk_size}

    def _take_spaces_from_dataset(self) -> None:
        if self.offline_dataset is None:
            raise ValueError(
                "Neither env nor offline_dataset was given, so the observation and action spaces are unknown: "
                "pass one of them."
            )
        self.observation_space, self.action_space = training_spaces(open_datasets(self.offline_dataset)[0])
        self.n_envs = 1

    def _check_offline_dataset(self) -> None:
        """Refuse a dataset that cannot be used when the model is made, and not only when training begins."""
        if self.offline_dataset is not None:
            self._open_offline_data(self.offline_dataset)

    def _open_offline_data(self, dataset: OfflineDataset) -> list[OpenDataset]:
        opened = open_datasets(dataset)
        for each in opened:
            check_dataset_spaces(each, self.observation_space, self.action_space)
        return opened

    def make_offline_buffer(self, dataset: OfflineDataset) -> OfflineBuffer:
        """
        Read a dataset as the model reads its own; the model stays as it is.

        :param dataset: As ``offline_dataset`` of the constructor
        :return: Its data
        :raises ValueError: if it is unusable or does not fit the model's spaces
        :raises FileNotFoundError: if it is neither in the local Minari cache nor to be downloaded
        """
        buffer_class = DeviceOfflineBuffer if self.offline_storage == "cuda" else OfflineBuffer
        read = map_episodes if self.offline_storage == "memmap" else read_episodes
        return buffer_class(
            read(*self._open_offline_data(dataset), transform=self.reward_transform),
            self.observation_space,
            self.action_space,
            device=self.device,
            **self._sequence_kwargs(),
        )

    def _load_offline_data(self, dataset: OfflineDataset) -> None:
        """Read a dataset into the offline buffer; where it is refused, the model stays as it was."""
        self.offline_buffer = self.make_offline_buffer(dataset)
        self._offline_dataset_id = self.offline_buffer.name
        self.offline_dataset = with_absolute_folders(dataset)

    def _require_offline_data(self, needed_by: str | None) -> None:
        """
        Make sure that the data the model was made for is there before training begins.

        :param needed_by: What cannot do without; ``None`` for online learning, which can if it draws none of it
        """
        if self.offline_buffer is not None or (self.offline_fraction == 0 and needed_by is None):
            return
        if self.offline_dataset is not None:
            self._load_offline_data(self.offline_dataset)
        elif self._offline_dataset_id is not None:
            raise ValueError(
                f"This model was trained with dataset '{self._offline_dataset_id}', which is not stored in its file. "
                f"Give it again, {type(self).__name__}.load(path, offline_dataset=...) or pretrain(dataset), "
                "or continue without it by offline_fraction=0.0."
            )
        elif needed_by is not None:
            raise ValueError(
                f"{needed_by} needs offline data: pass {type(self).__name__}(..., offline_dataset=...), or a Minari "
                "dataset or a replay buffer to pretrain()."
            )

    @property
    def has_training_data(self) -> bool:
        """Whether there is anything to draw batches from."""
        assert self.replay_buffer is not None  # for mypy
        uses_offline_data = self._phase.is_offline or self.offline_fraction != 0
        return (self.offline_buffer is not None and uses_offline_data) or n_available(self.replay_buffer) > 0

    def _sample_batch(self, batch_size: int) -> TransitionBatch:
        """
        :param batch_size: Number of samples
        :return: A batch of the union of offline and online data, as an update sees it
        """
        return self._augmentation(self.draw_batch(batch_size))

    def draw_batch(self, batch_size: int) -> TransitionBatch:
        """
        :param batch_size: Number of samples
        :return: A batch of the union of offline and online data, images as they were recorded
        """
        assert self.replay_buffer is not None  # for mypy
        # A share of nothing concerns online batches: an offline phase has nothing else to learn from
        uniform = self._phase.is_offline and self.offline_fraction == 0
        return sample_union(
            self.offline_buffer,
            self.replay_buffer,
            batch_size,
            None if uniform else self.offline_fraction,
            self.gamma,
            env=self._vec_normalize_env,
        )

    # ------------------------------------------------------------------ training phases

    def pretrain(
        self: SelfOfflineToOnline,
        dataset: OfflineDataset | None = None,
        gradient_steps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = OFFLINE_LOG_INTERVAL,
        progress_bar: bool = False,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        objective: str = "full",
        replay_buffer: ReplayBufferSource | None = None,
    ) -> SelfOfflineToOnline:
        """
        Train on offline data, without an environment. A phase like ``learn()``: callbacks are called once per
        gradient step, ``num_timesteps`` counts gradient steps, and ``learn(reset_num_timesteps=False)`` continues
        that count. Online experience the model already has is part of the union that batches are drawn from.

        :param dataset: As ``offline_dataset`` of the constructor, which it replaces; needed if there was none
        :param gradient_steps: Number of updates; by default what is left of ``offline_steps``
        :param callback: callback(s) called at every gradient step with state of the algorithm.
        :param log_interval: Number of gradient steps between two outputs of the logger; one more is at the end
        :param progress_bar: Display a progress bar using tqdm and rich.
        :param tb_log_name: the name of the run for TensorBoard logging, by default the name of the algorithm
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param objective: ``"full"``, or ``"bc"`` to train the behavior flow alone: the model then acts as a
            clone of the data, and later training starts its policy from there. Clone steps do not count as
            ``offline_steps``
        :param replay_buffer: In place of a dataset, a replay buffer of SB3, of whatever algorithm, or the path of one
            by ``save_replay_buffer()``; such a file is a pickle: load only those that you trust. ``reward_transform``
            applies to it, too
        :return: the trained model
        :raises ValueError: if there is no dataset, it is unusable or does not fit the model's spaces, there is a
            replay buffer besides, ``gradient_steps`` is not positive or ``objective`` is unknown
        :raises TypeError: if a callback is not one, ``dataset`` is not a dataset, or ``replay_buffer`` not one
        :raises FileNotFoundError: if the dataset is not in the local Minari cache and cannot be downloaded
        :raises FloatingPointError: if a loss is no longer finite
        """
        check_one_of("objective", objective, OBJECTIVES)
        if isinstance(dataset, (int, float)):
            raise TypeError(f"dataset must be a Minari dataset, got {dataset!r}: pass gradient_steps={dataset!r}.")
        if gradient_steps is None and objective == "bc":
            raise ValueError("pretrain(objective='bc') needs gradient_steps=..., the number of updates.")
        if gradient_steps is None:
            gradient_steps = self.offline_steps - self._n_offline_steps_done
            if gradient_steps <= 0:
                raise ValueError(
                    f"pretrain() has no steps to do: offline_steps={self.offline_steps}, "
                    f"{self._n_offline_steps_done} of them done. Pass gradient_steps=..."
                )
        check_positive_int("gradient_steps", gradient_steps)
        check_positive_int("log_interval", log_interval)
        if replay_buffer is not None:
            if dataset is not None:
                raise ValueError("pretrain() takes either dataset or replay_buffer: a list of datasets may have both.")
            dataset = open_replay_buffer(replay_buffer)
        if dataset is not None:
            self._load_offline_data(dataset)
        self._require_offline_data("pretrain()")
        phase = Phase(objective, gradient_steps)
        tb_log_name = tb_log_name or type(self).__name__
        self._train_offline(phase, 0, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return self

    def learn(
        self: SelfOfflineToOnline,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOfflineToOnline:
        """
        What is left of ``bc_steps`` and ``offline_steps``, then ``total_timesteps`` environment steps. All phases
        share one axis of timesteps and the callbacks. After an offline phase the policy acts from the first step on:
        there is no random warm-up.

        :param total_timesteps: The number of environment steps to train on
        :param callback: callback(s) called at every step with state of the algorithm.
        :param log_interval: Number of episodes between two outputs of the logger (every 1000 steps offline)
        :param tb_log_name: the name of the run for TensorBoard logging, by default the name of the algorithm
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        :raises ValueError: if there is no environment, or offline data the model was made for is missing or unusable
        :raises TypeError: if a callback is not one
        :raises FileNotFoundError: if the dataset is not in the local Minari cache and cannot be downloaded
        :raises FloatingPointError: if a loss is no longer finite
        """
        if self.env is None:
            raise ValueError(
                "learn() needs an environment: call set_env(env) first, or pretrain() to train on offline data alone."
            )
        check_in_range("total_timesteps", total_timesteps, 0)
        tb_log_name = tb_log_name or type(self).__name__
        phases = self._offline_phases_left()
        needed_by = "bc_steps" if phases and phases[0].objective == "bc" else "offline_steps"
        self._require_offline_data(f"{needed_by}={getattr(self, needed_by)}" if phases else None)
        for number, phase in enumerate(phases, start=1):
            if self.verbose >= 1:
                print(f"{phase.name.capitalize()} phase: {phase.gradient_steps} gradient steps")
            steps_afterwards = sum(later.gradient_steps for later in phases[number:]) + total_timesteps
            may_continue = self._train_offline(
                phase, steps_afterwards, callback, OFFLINE_LOG_INTERVAL, tb_log_name, reset_num_timesteps, progress_bar
            )
            if not may_continue:
                return self
            reset_num_timesteps = False
        if phases and self.verbose >= 1:
            print(f"Online phase: {total_timesteps} environment steps")
        callback = with_progress_bar(callback) if progress_bar else callback
        super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps)
        self._monitor.check()
        if log_interval is not None and self._logged_at < self.num_timesteps and self._monitor.has_values:
            # What came after the last episodes that were logged
            self.dump_logs()
        return self

    def _offline_phases_left(self) -> list[Phase]:
        """:return: What ``learn()`` does before its first environment step, in order"""
        bc_steps = 0 if self._n_offline_steps_done > 0 else self.bc_steps - self._n_bc_steps_done
        offline_steps = self.offline_steps - self._n_offline_steps_done
        return [phase for phase in (Phase("bc", bc_steps), Phase("full", offline_steps)) if phase.is_offline]

    def _train_offline(
        self,
        phase: Phase,
        steps_afterwards: int,
        callback: MaybeCallback,
        log_interval: int,
        tb_log_name: str,
        reset_num_timesteps: bool,
        progress_bar: bool,
    ) -> bool:
        """
        :param phase: The phase
        :param steps_afterwards: Length of what follows, for schedules, which run over both
        :return: Whether training may continue: no callback stopped it
        """
        with self._during(phase):
            callback = with_progress_bar(callback) if progress_bar else callback
            _, callback = self._setup_learn(
                phase.gradient_steps + steps_afterwards, callback, reset_num_timesteps, tb_log_name
            )
            total_timesteps = self.num_timesteps + phase.gradient_steps
            assert self.env is not None  # for mypy
            step = still_step(self.policy, self.env.num_envs, self._last_obs)
            callback.on_training_start({**locals(), **step}, globals())

            may_continue = True
            while may_continue and self.num_timesteps < total_timesteps:
                self.train(gradient_steps=1, batch_size=self.batch_size)
                self.num_timesteps += 1
                self._n_gradient_timesteps += 1
                self._n_offline_steps_done += phase.objective == "full"
                self._n_bc_steps_done += phase.objective == "bc"
                self._has_learned = True
                callback.update_locals({**locals(), **step})
                may_continue = callback.on_step()
                self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
                is_last = not may_continue or self.num_timesteps == total_timesteps
                if is_last or self.num_timesteps % log_interval == 0:
                    self._dump_offline_logs()

            callback.on_training_end()
        self._monitor.check()
        return may_continue

    def _set_objective(self, objective: str) -> None:
        """:param objective: What the coming updates train, one of OBJECTIVES"""
        self._objective = objective

    @contextmanager
    def _during(self, phase: Phase) -> Iterator[None]:
        """:param phase: The offline phase, which needs no environment"""
        has_no_env = self.env is None
        if has_no_env:
            self.env = DummyVecEnv([lambda: SpacesOnlyEnv(self.observation_space, self.action_space)])
        self._phase = phase
        try:
            yield
        finally:
            self._phase = ONLINE
            if has_no_env:
                self.env, self._last_obs = None, None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check_callback(callback)
        check_reward_scales(self._vec_normalize_env, self.reward_transform)
        if self.offline_buffer is not None and self._vec_normalize_env is not None:
            add_initial_statistics(self._vec_normalize_env, self.offline_buffer)
        are_normalized = getattr(self._vec_normalize_env, "norm_obs", False)
        if self._observations_normalized and not are_normalized:
            warnings.warn(
                "The model has learned from observations that VecNormalize normalized, and now they are not. "
                f"Load it with its environment in the VecNormalize that has its statistics, {type(self).__name__}.load("
                "path, env=env)."
            )
        self._observations_normalized = are_normalized
        self._begin_rollouts(reset_num_timesteps)
        if reset_num_timesteps:
            self._n_gradient_timesteps = self._logged_at = 0
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        # A checkpoint is written before SB3 updates the schedules
        self._update_current_progress_remaining(self.num_timesteps, max(self._total_timesteps, 1))
        self._resume_random_state()
        # Last: what fails before leaves the model as it was
        self._set_objective(self._phase.objective)
        return result

    # ------------------------------------------------------------------ logging

    def _record_updates(self) -> None:
        """Hand the means of what the updates reported since the last time to the logger."""
        for name, mean in self._monitor.read_means().items():
            self.logger.record(f"train/{name}", mean)

    def dump_logs(self) -> None:
        self._record_updates()
        self._logged_at = self.num_timesteps
        super().dump_logs()

    def _dump_offline_logs(self) -> None:
        assert self.offline_buffer is not None  # for mypy
        self.logger.record("offline/episodes", self.offline_buffer.n_episodes, exclude="tensorboard")
        self.logger.record("offline/transitions", self.offline_buffer.size(), exclude="tensorboard")
        self.logger.record("offline/gradient_steps", self._n_offline_steps_done + self._n_bc_steps_done)
        # time/fps counts gradient steps here
        self.dump_logs()

    # ------------------------------------------------------------------ files

    def _stand_ins(self) -> dict[str, Any]:
        return {**super()._stand_ins(), "offline_dataset": storable(self.offline_dataset)}

    def _excluded_save_params(self) -> list[str]:
        own = ("offline_buffer", "_monitor", "_augmentation", "_phase", "_restore_statistics", "_logged_at")
        return [*super()._excluded_save_params(), *own]
