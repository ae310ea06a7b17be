"""Experience: the read-only offline data, online replay of h-step sequences, and batches of their union."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_qam.datasets.episodes import Episodes, Observations
from sb3_qam.datasets.storage import gather
from sb3_qam.utils.nested import map_observations
from sb3_qam.utils.nested import n_rows as n_rows


class TransitionBatch(NamedTuple):
    """
    What one update learns from. ``valid`` is 0 where the h steps would cross the end of a trajectory: such a sample
    takes part in the batch mean with weight 0. ``masks`` is 0 where a termination fell inside the h steps.

    :param observations: s, as SB3's buffers give them
    :param actions: a in [-1, 1], those of a chunk one after the other, shape (batch, chunk_size * action_dim)
    :param next_observations: s', the observations after h steps
    :param rewards: R_h, the discounted sum of h rewards, shape (batch,)
    :param discounts: gamma^h, shape (batch,)
    :param masks: m, shape (batch,)
    :param valid: shape (batch,)
    """

    observations: PyTorchObs
    actions: th.Tensor
    next_observations: PyTorchObs
    rewards: th.Tensor
    discounts: th.Tensor
    masks: th.Tensor
    valid: th.Tensor


def to_tensor(array: np.ndarray | th.Tensor, device: th.device | str) -> th.Tensor:
    """
    :param array: Freshly gathered data; it is not copied again
    :param device: Where to put it
    :return: A tensor of the same type, float64 as float32
    """
    if isinstance(array, np.ndarray) and array.dtype == np.float64:
        array = array.astype(np.float32)
    return th.as_tensor(array, device=device)


def take_rows(observations: Observations, rows: Any) -> Observations:
    """
    :param observations: An array, or a dict of arrays
    :param rows: Any NumPy index
    :return: The same structure, indexed
    """
    return map_observations(lambda part: gather(part, rows), observations)


class SequenceBuffer(BaseBuffer):
    """
    A buffer whose samples are sequences of h steps.

    :param n_steps: Number of steps h of the returns
    :param gamma: Discount factor of one step
    :param chunk_size: How many of the h actions a sample has
    """

    def __init__(self, *args: Any, n_steps: int = 1, gamma: float = 0.99, chunk_size: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_steps, self.gamma, self.chunk_size = n_steps, gamma, chunk_size

    def _make_batch(
        self,
        observations: Any,
        actions: Any,
        next_observations: Any,
        rewards: Any,
        terminations: Any,
        valid: Any,
        env: VecNormalize | None,
    ) -> TransitionBatch:
        """
        Arguments are arrays or tensors, observations also dicts of these.

        :param observations: Observations before the first step
        :param actions: The first actions, shape (batch, chunk_size, action_dim)
        :param next_observations: Observations after the last step
        :param rewards: shape (batch, h), and ``terminations`` too
        :param valid: shape (batch,)
        :param env: Normalizes observations and rewards with its statistics
        """

        def tensors(parts: Any) -> Any:
            return map_observations(lambda part: to_tensor(part, self.device), parts)

        rewards = tensors(self._normalize_reward(rewards, env))
        # It may be the integer 1
        gamma = float(self.gamma)
        discounts = gamma ** th.arange(self.n_steps, device=self.device)
        return TransitionBatch(
            observations=tensors(self._normalize_obs(observations, env)),
            actions=tensors(actions).flatten(start_dim=1),
            next_observations=tensors(self._normalize_obs(next_observations, env)),
            rewards=rewards @ discounts,
            discounts=th.full((len(rewards),), gamma**self.n_steps, device=self.device),
            masks=(~tensors(terminations).any(dim=1)).float(),
            valid=tensors(valid).float(),
        )


class OfflineBuffer(SequenceBuffer):
    """
    The offline data: read-only, never evicted, any number of episodes end to end.

    A trajectory ends where its episode does; a termination inside an episode cuts the bootstrap and nothing else.
    Keyword arguments are those of :class:`SequenceBuffer`.

    :param episodes: The data
    :param observation_space: Observation space of the policy
    :param action_space: Action space of the policy
    :param device: Device of the batches
    :raises ValueError: if the h steps are more than any episode has
    """

    def __init__(
        self,
        episodes: Episodes,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        **kwargs: Any,
    ) -> None:
        self.n_episodes, longest = len(episodes.lengths), int(episodes.lengths.max())
        super().__init__(len(episodes.rewards), observation_space, action_space, device, **kwargs)
        if self.n_steps > longest:
            name = "chunk_size" if self.chunk_size > 1 else "n_steps"
            raise ValueError(
                f"{name}={self.n_steps} is longer than every episode of dataset '{episodes.name}' (at most {longest}): "
                f"there is nothing to train on. Reduce {name}."
            )
        self.pos, self.full = self.buffer_size, True
        self.name = episodes.name
        self.observations, self.actions = episodes.observations, episodes.actions
        self.rewards, self.terminations = episodes.rewards, episodes.terminations
        # The last transition of each episode
        self.last = np.cumsum(episodes.lengths) - 1

    def complete_starts(self) -> np.ndarray:
        """:return: The transitions whose h steps do not cross the end of their episode, in order"""
        starts = np.arange(self.size())
        return starts[starts + self.n_steps - 1 <= self.last[np.searchsorted(self.last, starts)]]

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> TransitionBatch:  # type: ignore[override]
        return self.batch_of(batch_inds, env)

    def batch_of(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> TransitionBatch:
        """
        :param batch_inds: Numbers of transitions
        :param env: Normalizes observations and rewards with its statistics
        :return: The samples that begin with these
        """
        episode = np.searchsorted(self.last, batch_inds)
        last = self.last[episode][:, None]
        steps = batch_inds[:, None] + np.arange(self.n_steps)
        valid = steps[:, -1:] <= last
        # An invalid sample stays inside its own trajectory
        steps = np.minimum(steps, last)
        # An episode of T transitions has T + 1 observations: its own lie one row further for each one before
        first, following, steps, valid = map(
            self._index, (batch_inds + episode, steps[:, -1] + episode + 1, steps, valid[:, 0])
        )
        return self._make_batch(
            observations=self._rows("observations", first),
            actions=self._rows("actions", steps[:, : self.chunk_size]),
            next_observations=self._rows("observations", following),
            rewards=self._rows("rewards", steps),
            terminations=self._rows("terminations", steps),
            valid=valid,
            env=env,
        )

    def _index(self, rows: np.ndarray) -> Any:
        """:return: Row numbers, where the data lies"""
        return rows

    def _rows(self, name: str, rows: Any) -> Any:
        """:return: Rows of one part of the data, where it lies"""
        return take_rows(getattr(self, name), rows)


class SequenceReplayBuffer(SequenceBuffer, ReplayBuffer):
    """
    Online replay with h-step returns that agree with :class:`OfflineBuffer`: a sample whose h steps would cross the
    end of a trajectory, or the position being written, has ``valid`` 0. SB3's ``NStepReplayBuffer`` shortens such
    returns instead. Arguments are those of ``ReplayBuffer`` and of :class:`SequenceBuffer`.

    ``ends`` says where trajectories end, by default where a step is done. A termination inside of one, such as a
    success with ``terminate_on_success``, cuts the bootstrap alone.

    :raises ValueError: if there is no room for h steps of each environment, or with ``optimize_memory_usage=True``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("optimize_memory_usage"):
            raise ValueError(f"{type(self).__name__} does not support optimize_memory_usage=True, leave it False.")
        super().__init__(*args, **kwargs)
        if self.buffer_size < self.n_steps:
            raise ValueError(
                f"A replay buffer with room for {self.buffer_size} steps of each of {self.n_envs} environment(s) "
                f"holds no sequence of {self.n_steps} steps: increase buffer_size."
            )
        self.ends = np.zeros((self.buffer_size, self.n_envs), dtype=bool)

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        self.ends[self.pos] = done
        super().add(obs, next_obs, action, reward, done, infos)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> TransitionBatch:  # type: ignore[override]
        env_inds = np.random.randint(0, self.n_envs, size=len(batch_inds))
        steps = (batch_inds[:, None] + np.arange(self.n_steps)) % self.buffer_size
        of_env = env_inds[:, None]
        oldest = self.pos if self.full else 0
        age_of_first = (batch_inds - oldest) % self.buffer_size
        crosses_write_position = age_of_first + self.n_steps > self.size()
        crosses_end = self.ends[steps[:, :-1], of_env].any(axis=1)
        valid = ~(crosses_write_position | crosses_end)
        if not valid.any():
            self._warn_if_nothing_is_valid()
        dones, timeouts = self.dones[steps, of_env], self.timeouts[steps, of_env]
        return self._make_batch(
            observations=take_rows(self.observations, (batch_inds, env_inds)),
            actions=self.actions[steps[:, : self.chunk_size], of_env],
            next_observations=take_rows(self.next_observations, (steps[:, -1], env_inds)),
            rewards=self.rewards[steps, of_env],
            terminations=np.logical_and(dones, np.logical_not(timeouts)),
            valid=valid,
            env=env,
        )

    def _warn_if_nothing_is_valid(self) -> None:
        """A batch may be without a valid sample by chance, or because no episode has as many steps as a sequence."""
        lengths = np.diff(np.flatnonzero(np.append(True, self.ends[: self.size()].ravel(order="F"))))
        if len(lengths) > 0 and lengths.max() < self.n_steps:
            warnings.warn(
                f"None of the {len(lengths)} episodes in the replay buffer has the {self.n_steps} steps of a sequence "
                f"(at most {lengths.max()}): the updates learn nothing from online experience. Reduce chunk_size or "
                "n_steps.",
            )


class DictSequenceReplayBuffer(SequenceReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """:class:`SequenceReplayBuffer` for Dict observations."""


def end_trajectories(buffer: ReplayBuffer | None) -> None:
    """
    End the trajectories being recorded, where a buffer looks at more than single transitions.

    :param buffer: A replay buffer whose environments are about to be reset
    """
    if isinstance(buffer, SequenceReplayBuffer) and buffer.size() > 0:
        buffer.ends[buffer.pos - 1] = True
    elif isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            # It explains an option of load_replay_buffer()
            warnings.simplefilter("ignore")
            buffer.truncate_last_trajectory()


def n_available(buffer: ReplayBuffer) -> int:
    """
    :param buffer: A replay buffer
    :return: Number of transitions that can be sampled; hindsight replay samples finished episodes only
    """
    if isinstance(buffer, HerReplayBuffer):
        return int((buffer.ep_length > 0).sum())
    return buffer.size() * buffer.n_envs


def as_transition_batch(
    samples: TransitionBatch | ReplayBufferSamples | DictReplayBufferSamples, gamma: float
) -> TransitionBatch:
    """
    :param samples: What any of SB3's replay buffers (or ours) gives
    :param gamma: Discount factor, where the samples bring none
    :return: The same as a batch for an update
    """
    if isinstance(samples, TransitionBatch):
        return samples

    def without_float64(part: th.Tensor) -> th.Tensor:
        return part.float() if part.is_floating_point() else part

    rewards = samples.rewards.flatten().float()
    return TransitionBatch(
        observations=map_observations(without_float64, samples.observations),
        actions=samples.actions.float(),
        next_observations=map_observations(without_float64, samples.next_observations),
        rewards=rewards,
        discounts=th.full_like(rewards, gamma) if samples.discounts is None else samples.discounts.flatten().float(),
        masks=1 - samples.dones.flatten().float(),
        valid=th.ones_like(rewards),
    )


def sample_union(
    offline: OfflineBuffer | None,
    online: ReplayBuffer,
    batch_size: int,
    offline_fraction: float | None,
    gamma: float,
    env: VecNormalize | None = None,
) -> TransitionBatch:
    """
    Draw a batch from offline and online data.

    :param offline: Offline data, if there is any
    :param online: Online data, may be empty
    :param batch_size: Number of samples
    :param offline_fraction: Share of the batch that comes from the offline data, or ``None`` to draw every sample
        uniformly from the union of both. Where one of the two is empty the other gives the whole batch.
    :param gamma: Discount factor of one step
    :param env: Normalizes observations and rewards with its statistics
    :return: The batch
    :raises ValueError: if there is no data at all
    """
    n_offline_data = 0 if offline is None or offline_fraction == 0 else offline.size()
    n_online_data = n_available(online)
    if n_offline_data + online.size() == 0:
        raise ValueError(
            "There is no data to train on: pass offline_dataset=... or call pretrain(dataset), "
            "or let learn() collect experience first."
        )
    if n_offline_data == 0:
        n_offline = 0
    elif n_online_data == 0:
        n_offline = batch_size
    elif offline_fraction is None:
        # The number of offline samples among batch_size independent uniform draws from the union
        n_offline = np.random.binomial(batch_size, n_offline_data / (n_offline_data + n_online_data))
    else:
        n_offline = round(offline_fraction * batch_size)

    if isinstance(online, HerReplayBuffer) and 1 <= n_offline == batch_size - 1:
        # Hindsight replay divides its samples into real and relabeled ones, and cannot divide a single one
        n_offline -= 1

    for buffer in (offline, online):
        if isinstance(buffer, SequenceBuffer):
            # It may have been changed since they were made
            buffer.gamma = gamma
    parts = []
    if n_offline > 0:
        assert offline is not None  # for mypy
        parts.append(offline.sample(n_offline, env=env))
    if n_offline < batch_size:
        parts.append(as_transition_batch(online.sample(batch_size - n_offline, env=env), gamma))
    if len(parts) == 1:
        return parts[0]
    return TransitionBatch(
        *(map_observations(lambda *both: th.cat(both), *columns) for columns in zip(*parts, strict=True))
    )
