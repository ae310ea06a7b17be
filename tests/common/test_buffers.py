"""Every sample of every buffer against a naive loop over steps."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_qam import QAM
from sb3_qam.common.buffers import (
    DictSequenceReplayBuffer,
    OfflineBuffer,
    SequenceReplayBuffer,
    TransitionBatch,
    as_transition_batch,
    end_trajectories,
    map_observations,
    n_available,
    sample_union,
)
from sb3_qam.common.device_buffer import DeviceOfflineBuffer
from sb3_qam.common.normalization import add_initial_statistics
from sb3_qam.common.phases import SpacesOnlyEnv
from sb3_qam.datasets.episodes import Episodes
from sb3_qam.datasets.minari import read_episodes
from tests.conftest import record, write_dataset

OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (2,))
ACTION_SPACE = spaces.Box(-1.0, 1.0, (1,))
GAMMA = 0.9


def make_episodes(lengths: list[int], terminations: np.ndarray | None = None) -> Episodes:
    """Observation = (episode, step), action = running number / 1000, reward = running number."""
    n = sum(lengths)
    return Episodes(
        name="test",
        lengths=np.array(lengths),
        observations=np.array(
            [(e, t) for e, length in enumerate(lengths) for t in range(length + 1)], dtype=np.float32
        ).reshape(-1, 2),
        actions=np.arange(n, dtype=np.float32)[:, None] / 1000,
        rewards=np.arange(n, dtype=np.float32),
        terminations=np.zeros(n, dtype=bool) if terminations is None else terminations,
    )


def check_sample(
    batch: TransitionBatch, row: int, transitions: list[dict[str, Any]], n_steps: int, chunk_size: int
) -> None:
    """Compare one row with the sequence that begins at the transition its first action numbers."""
    start = round(batch.actions[row, 0].item() * 1000)
    sequence = transitions[start : start + n_steps]
    np.testing.assert_array_equal(batch.observations[row], transitions[start]["obs"])
    assert batch.discounts[row].item() == pytest.approx(GAMMA**n_steps)
    same_trajectory = all(each["trajectory"] == sequence[0]["trajectory"] for each in sequence)
    assert bool(batch.valid[row]) == (len(sequence) == n_steps and same_trajectory)
    if batch.valid[row]:
        expected_return = sum(GAMMA**k * each["reward"] for k, each in enumerate(sequence))
        assert batch.rewards[row].item() == pytest.approx(expected_return, rel=1e-5)
        assert bool(batch.masks[row]) == (not any(each["terminated"] for each in sequence))
        np.testing.assert_array_equal(batch.next_observations[row], sequence[-1]["next_obs"])
        numbers = [round(action * 1000) for action in batch.actions[row].tolist()]
        assert numbers == list(range(start, start + chunk_size))


@settings(max_examples=60)
@given(data=st.data())
def test_offline_sequences_equal_a_naive_loop(data: st.DataObject):
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    n_steps = data.draw(st.integers(1, min(5, max(lengths))))
    chunk_size = data.draw(st.sampled_from([1, n_steps]))
    n = sum(lengths)
    terminations = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    buffer_class = data.draw(st.sampled_from([OfflineBuffer, DeviceOfflineBuffer]))
    buffer = buffer_class(
        make_episodes(lengths, terminations),
        OBSERVATION_SPACE,
        ACTION_SPACE,
        "cpu",
        n_steps=n_steps,
        gamma=GAMMA,
        chunk_size=chunk_size,
    )
    transitions = [
        {"obs": (e, t), "next_obs": (e, t + 1), "trajectory": e, "reward": None, "terminated": None}
        for e, length in enumerate(lengths)
        for t in range(length)
    ]
    for number, transition in enumerate(transitions):
        transition |= {"reward": number, "terminated": terminations[number]}

    assert buffer.size() == n
    # every transition, not a random choice
    batch = buffer._get_samples(np.arange(n))
    for row in range(n):
        assert round(batch.actions[row, 0].item() * 1000) == row
        check_sample(batch, row, transitions, n_steps, chunk_size)


@settings(max_examples=100)
@given(data=st.data())
def test_online_sequences_equal_a_naive_loop(data: st.DataObject):
    n_envs = data.draw(st.integers(1, 3))
    buffer_size = data.draw(st.integers(1, 12)) * n_envs
    n_steps = data.draw(st.integers(1, min(5, buffer_size // n_envs)))
    chunk_size = data.draw(st.sampled_from([1, n_steps]))
    n_added = data.draw(st.integers(1, 30))
    is_dict = data.draw(st.booleans())
    buffer_class = DictSequenceReplayBuffer if is_dict else SequenceReplayBuffer
    space = spaces.Dict({"a": OBSERVATION_SPACE}) if is_dict else OBSERVATION_SPACE
    sequences = {"n_steps": n_steps, "gamma": GAMMA, "chunk_size": chunk_size}
    buffer = buffer_class(buffer_size, space, ACTION_SPACE, "cpu", n_envs=n_envs, **sequences)

    def stacked(observations: list[tuple[float, float]]) -> np.ndarray | dict[str, np.ndarray]:
        array = np.array(observations, dtype=np.float32)
        return {"a": array} if is_dict else array

    streams: list[list[dict[str, Any]]] = [[] for _ in range(n_envs)]
    trajectory = [0] * n_envs
    for step in range(n_added):
        ends = [data.draw(st.sampled_from(["no", "no", "terminated", "truncated"])) for _ in range(n_envs)]
        reset_follows = data.draw(st.integers(0, 9)) == 0
        for env in range(n_envs):
            streams[env].append(
                {
                    "obs": (env, step),
                    "next_obs": (env, step + 0.5),
                    "reward": 10 * step + env,
                    "trajectory": trajectory[env],
                    "terminated": ends[env] == "terminated",
                }
            )
            if ends[env] != "no" or reset_follows:
                trajectory[env] += 1
        last = [stream[-1] for stream in streams]
        buffer.add(
            stacked([each["obs"] for each in last]),
            stacked([each["next_obs"] for each in last]),
            np.full((n_envs, 1), step / 1000, dtype=np.float32),
            np.array([each["reward"] for each in last]),
            np.array([end != "no" for end in ends]),
            [{"TimeLimit.truncated": end == "truncated"} for end in ends],
        )
        if reset_follows:
            end_trajectories(buffer)

    oldest = max(0, n_added - buffer.buffer_size)
    # What has been overwritten is there no more
    kept = [[None] * oldest + stream[oldest:] for stream in streams]
    for _ in range(3):
        batch = buffer.sample(20)
        if is_dict:
            batch = batch._replace(observations=batch.observations["a"], next_observations=batch.next_observations["a"])
        for row in range(20):
            env = int(batch.observations[row, 0])
            assert round(batch.actions[row, 0].item() * 1000) >= oldest
            check_sample(batch, row, kept[env], n_steps, chunk_size)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_sequences_use_the_statistics_of_vec_normalize(n_steps: int):
    env = VecNormalize(DummyVecEnv([lambda: SpacesOnlyEnv(OBSERVATION_SPACE, ACTION_SPACE)]))
    env.obs_rms.mean[:], env.obs_rms.var[:] = 2.0, 4.0
    env.ret_rms.var = 9.0
    buffer = OfflineBuffer(make_episodes([6]), OBSERVATION_SPACE, ACTION_SPACE, "cpu", n_steps=n_steps, gamma=GAMMA)
    plain, normalized = (buffer._get_samples(np.arange(3), env=each) for each in (None, env))
    th.testing.assert_close(normalized.observations, (plain.observations - 2) / 2, atol=1e-5, rtol=1e-5)
    th.testing.assert_close(normalized.next_observations, (plain.next_observations - 2) / 2, atol=1e-5, rtol=1e-5)
    clipped = [min(reward / 3, 10.0) for reward in range(6)]
    expected = [sum(GAMMA**k * clipped[i + k] for k in range(n_steps)) for i in range(3)]
    th.testing.assert_close(normalized.rewards, th.tensor(expected), atol=1e-5, rtol=1e-5)


def test_any_replay_buffer_of_sb3_makes_a_batch():
    dict_space = spaces.Dict({"a": OBSERVATION_SPACE, "image": spaces.Box(0, 255, (3, 4, 4), np.uint8)})
    buffer = DictReplayBuffer(10, dict_space, ACTION_SPACE, "cpu")
    obs = {"a": np.ones((1, 2)), "image": np.full((1, 3, 4, 4), 7, np.uint8)}
    infos = [{"TimeLimit.truncated": True}]
    buffer.add(obs, obs, np.zeros((1, 1)), np.array([5.0]), np.array([True]), infos)
    batch = as_transition_batch(buffer.sample(4), gamma=GAMMA)
    assert batch.observations["image"].dtype == th.uint8
    assert batch.observations["a"].dtype == th.float32
    # a truncation bootstraps
    th.testing.assert_close(batch.masks, th.ones(4))
    th.testing.assert_close(batch.rewards, th.full((4,), 5.0))
    th.testing.assert_close(batch.discounts, th.full((4,), GAMMA))
    th.testing.assert_close(batch.valid, th.ones(4))


@pytest.fixture
def offline() -> OfflineBuffer:
    return OfflineBuffer(make_episodes([30]), OBSERVATION_SPACE, ACTION_SPACE, "cpu", gamma=GAMMA)


def online_buffer(n: int, n_envs: int = 1) -> ReplayBuffer:
    buffer = ReplayBuffer(100, OBSERVATION_SPACE, ACTION_SPACE, "cpu", n_envs=n_envs)
    for _ in range(n):
        obs = np.full((n_envs, 2), -1.0)
        buffer.add(obs, obs, np.zeros((n_envs, 1)), np.zeros(n_envs), np.zeros(n_envs), [{}] * n_envs)
    return buffer


def offline_share(
    offline: OfflineBuffer | None, online: ReplayBuffer, fraction: float | None, size: int = 500
) -> float:
    batch = sample_union(offline, online, size, fraction, GAMMA)
    assert len(batch.actions) == len(batch.observations) == size
    return (batch.observations[:, 0] >= 0).float().mean().item()


@pytest.mark.parametrize(("n_online", "n_envs"), [(10, 1), (30, 1), (5, 6)])
def test_union_is_uniform_over_all_transitions(offline: OfflineBuffer, n_online: int, n_envs: int):
    np.random.seed(0)
    share = np.mean([offline_share(offline, online_buffer(n_online, n_envs), None) for _ in range(40)])
    expected = 30 / (30 + n_online * n_envs)
    # 20,000 independent draws: five standard deviations
    assert share == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 20_000) ** 0.5)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_offline_fraction_is_exact(offline: OfflineBuffer, fraction: float):
    assert offline_share(offline, online_buffer(10), fraction) == pytest.approx(fraction)


def test_hindsight_replay_without_a_finished_episode_counts_as_empty(offline: OfflineBuffer):
    env = DummyVecEnv([lambda: BitFlippingEnv(n_bits=4, continuous=True)])
    online = HerReplayBuffer(100, env.observation_space, env.action_space, env, "cpu")
    obs = env.reset()
    for _ in range(3):
        online.add(obs, obs, np.zeros((1, 4)), np.zeros(1), np.zeros(1, bool), [{}])
        assert n_available(online) == 0
        batch = sample_union(offline, online, 8, 0.5, GAMMA)
        assert len(batch.actions) == 8
    end_trajectories(online)
    assert n_available(online) == 3
    assert online.timeouts[2] == 1
    end_trajectories(online)
    assert n_available(online) == 3


def test_hindsight_replay_is_never_asked_for_a_single_sample():
    """SB3 would relabel none of it, and not every environment can compute the rewards of nothing."""
    env = BitFlippingEnv(n_bits=4, continuous=True, max_steps=6)
    dataset = write_dataset(record(env, 5), env.observation_space, env.action_space)
    offline = OfflineBuffer(read_episodes(dataset), env.observation_space, env.action_space, "cpu")
    vec_env = DummyVecEnv([lambda: env])
    online = HerReplayBuffer(100, env.observation_space, env.action_space, vec_env, "cpu")
    obs = vec_env.reset()
    for step in range(6):
        online.add(obs, obs, np.zeros((1, 4)), np.zeros(1), np.array([step == 5]), [{}])
    for fraction in (None, 0.8):
        for _ in range(50):
            assert len(sample_union(offline, online, 5, fraction, GAMMA).actions) == 5


def test_sequences_that_fit_nowhere_are_refused():
    with pytest.raises(ValueError, match=r"n_steps=4 is longer than every episode of dataset 'test' \(at most 3"):
        OfflineBuffer(make_episodes([3, 2]), OBSERVATION_SPACE, ACTION_SPACE, "cpu", n_steps=4)
    with pytest.raises(ValueError, match=r"chunk_size=4 is longer than every episode of dataset 'test'"):
        OfflineBuffer(make_episodes([3, 2]), OBSERVATION_SPACE, ACTION_SPACE, "cpu", n_steps=4, chunk_size=4)
    with pytest.raises(
        ValueError, match=r"room for 2 steps of each of 3 environment.*sequence of 4 steps: increase buffer_size"
    ):
        SequenceReplayBuffer(7, OBSERVATION_SPACE, ACTION_SPACE, "cpu", n_envs=3, n_steps=4)


def test_where_one_of_the_two_is_empty_the_other_gives_the_whole_batch(offline: OfflineBuffer):
    assert offline_share(offline, online_buffer(0), 0.5) == 1.0
    assert offline_share(None, online_buffer(3), 0.5) == 0.0
    with pytest.raises(ValueError, match="no data to train on"):
        sample_union(None, online_buffer(0), 4, None, GAMMA)
    with pytest.raises(ValueError, match="no data to train on"):
        sample_union(offline, online_buffer(0), 4, 0.0, GAMMA)


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("normalize", [None, {"norm_reward": False}, {}])
def test_data_on_the_device_gives_the_same_batches(is_dict: bool, normalize: dict[str, Any] | None):
    episodes = make_episodes([4, 2, 7])
    observations = np.random.default_rng(0).normal(3, 2, episodes.observations.shape).astype(np.float32)
    space: spaces.Space = OBSERVATION_SPACE
    if is_dict:
        observations = {"a": observations, "b": np.arange(len(observations))[:, None]}
        space = spaces.Dict({"a": OBSERVATION_SPACE, "b": spaces.Discrete(len(observations["b"]))})
        normalize = None if normalize is None else {**normalize, "norm_obs_keys": ["a"]}
    episodes = dataclasses.replace(episodes, observations=observations)
    arguments = (episodes, space, ACTION_SPACE, "cpu")
    sequences = {"n_steps": 3, "gamma": GAMMA, "chunk_size": 3}
    in_memory, on_device = OfflineBuffer(*arguments, **sequences), DeviceOfflineBuffer(*arguments, **sequences)
    env = None
    if normalize is not None:
        env = VecNormalize(DummyVecEnv([lambda: SpacesOnlyEnv(space, ACTION_SPACE)]), **normalize)
        add_initial_statistics(env, in_memory)
    for buffer in (in_memory, on_device):
        np.random.seed(0)
        buffer.batch = buffer.sample(50, env=env)
    for expected, got in zip(in_memory.batch, on_device.batch, strict=True):
        map_observations(lambda a, b: th.testing.assert_close(b, a, rtol=1e-6, atol=1e-6), expected, got)


@pytest.mark.gpu
def test_training_with_data_on_the_gpu(pendulum_dataset):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, offline_storage="cuda", device="cuda")
    model.pretrain(gradient_steps=2)
    assert model.offline_buffer.sample(4).observations.is_cuda


def test_data_on_the_device_needs_the_networks_there(pendulum_dataset):
    with pytest.raises(ValueError, match=r"offline_storage='cuda' .* on 'cpu': pass device='cuda'"):
        QAM("FlowPolicy", offline_dataset=pendulum_dataset, offline_storage="cuda", device="cpu")
