"""Every transition of a replay buffer becomes one of the offline store."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qam import QAM
from sb3_qam.common.buffers import OfflineBuffer
from sb3_qam.datasets import describe, open_datasets, wrap_dataset
from sb3_qam.datasets.minari import read_episodes
from sb3_qam.datasets.replay_buffer import ReplayBufferDataset
from tests.contract.conftest import small

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float32)


def filled(n_steps: int, buffer_size: int, n_envs: int, seed: int, optimized: bool, as_dict: bool) -> ReplayBuffer:
    """A buffer as SB3 fills it: some episodes terminate, some time out, some are cut by a reset that nobody tells."""
    rng = np.random.default_rng(seed)
    space = spaces.Dict({"a": OBSERVATIONS, "b": OBSERVATIONS}) if as_dict else OBSERVATIONS
    buffer_class = DictReplayBuffer if as_dict else ReplayBuffer
    kwargs: dict[str, Any] = {"optimize_memory_usage": True, "handle_timeout_termination": False} if optimized else {}
    buffer = buffer_class(buffer_size * n_envs, space, ACTIONS, n_envs=n_envs, device="cpu", **kwargs)

    def draw() -> Any:
        values = [rng.normal(size=(n_envs, 2)).astype(np.float32) for _ in range(2)]
        return dict(zip("ab", values, strict=True)) if as_dict else values[0]

    observation = draw()
    for _ in range(n_steps):
        successor = draw()
        dones = rng.random(n_envs) < 0.3
        infos = [{"TimeLimit.truncated": bool(done and rng.random() < 0.5)} for done in dones]
        action = rng.uniform(-1, 1, (n_envs, 2)).astype(np.float32)
        buffer.add(observation, successor, action, rng.normal(size=n_envs), dones, infos)
        begins = dones | (rng.random() < 0.1)
        fresh, was_dict = draw(), isinstance(successor, dict)
        keys = "ab" if was_dict else [...]
        observation = {} if was_dict else successor.copy()
        for key in keys:
            observation[key] = np.where(begins[:, None], fresh[key], successor[key])
    return buffer


def rows_of(batch: Any, done: np.ndarray, with_successor: np.ndarray) -> list[tuple]:
    """Transitions, in an order of their own. Where a successor does not matter it is left out."""

    def flat(observations: Any) -> np.ndarray:
        parts = (
            [observations[key] for key in sorted(observations)] if isinstance(observations, dict) else [observations]
        )
        return np.concatenate([np.asarray(part) for part in parts], axis=-1).round(5)

    following = np.where(with_successor[:, None], flat(batch.next_observations), 0)
    columns = flat(batch.observations), np.asarray(batch.actions).round(5), following
    rewards = np.asarray(batch.rewards).reshape(-1, 1).round(5)
    return sorted(map(tuple, np.concatenate([*columns, rewards, done[:, None]], axis=1).tolist()))


@settings(max_examples=60)
@given(
    n_steps=st.integers(2, 40),
    buffer_size=st.integers(3, 20),
    n_envs=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["plain", "optimized", "dict"]),
)
def test_every_transition_arrives_with_its_successor_reward_and_termination(n_steps, buffer_size, n_envs, seed, kind):
    buffer = filled(n_steps, buffer_size, n_envs, seed, kind == "optimized", kind == "dict")
    dataset = ReplayBufferDataset(buffer)
    offline = OfflineBuffer(read_episodes(dataset), buffer.observation_space, ACTIONS, device="cpu")
    found = offline._get_samples(np.arange(offline.size()))
    # What SB3 gives of each row, of which an optimized buffer that is full has one less
    overwritten = kind == "optimized" and buffer.full
    indices = np.array([row for row in range(buffer.size()) if not (overwritten and row == buffer.pos)])
    expected = []
    for env in range(n_envs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *_, size, env=env, **__: np.full(size, env))
            samples = buffer._get_samples(indices)
        dones = samples.dones.numpy().flatten()
        expected += rows_of(samples, dones, dones == 0)
    terminated = 1 - found.masks.numpy()
    assert rows_of(found, terminated, terminated == 0) == sorted(expected)
    # Of a plain buffer the successors of terminal states are there, too
    if kind == "plain":
        assert set(map(tuple, found.next_observations.numpy())) == set(
            map(tuple, buffer.next_observations[: buffer.size()].reshape(-1, 2))
        )


def test_sequences_do_not_cross_resets_and_the_seam():
    buffer = ReplayBuffer(6, OBSERVATIONS, ACTIONS, device="cpu")
    state = [np.full((1, 2), number, np.float32) for number in range(20)]
    # The buffer is full after 6, and then there is a reset from 8 to 10
    for number in [*range(8), 10]:
        buffer.add(state[number], state[number + 1], np.zeros((1, 2)), np.ones(1) * number, np.zeros(1), [{}])
    episodes = [episode for _, episode in ReplayBufferDataset(buffer).episodes()]
    assert [episode.observations[:, 0].tolist() for episode in episodes] == [[3, 4, 5, 6, 7, 8], [10, 11]]
    assert [episode.rewards.tolist() for episode in episodes] == [[3, 4, 5, 6, 7], [10]]


@pytest.fixture(scope="module")
def sac(tmp_path_factory: pytest.TempPathFactory) -> tuple[SAC, Path]:
    """A buffer as SB3 has it, behind VecNormalize, and its file."""
    env = VecNormalize(make_vec_env(lambda: gym.make("Pendulum-v1", max_episode_steps=20), n_envs=2, seed=0))
    model = SAC("MlpPolicy", env, learning_starts=50, buffer_size=100, seed=0).learn(240)
    model.save_replay_buffer(tmp_path_factory.mktemp("sac") / "buffer")
    return model, tmp_path_factory.getbasetemp()


def test_a_model_pretrains_on_what_sac_has_seen(sac, tmp_path: Path):
    model = sac[0]
    model.save_replay_buffer(tmp_path / "buffer")
    of_object, of_file, of_argument = (QAM("MlpPolicy", "Pendulum-v1", **small(seed=0)) for _ in range(3))
    of_object.pretrain(gradient_steps=3, replay_buffer=model.replay_buffer)
    of_file.pretrain(gradient_steps=3, replay_buffer=tmp_path / "buffer")
    of_argument.pretrain([model.replay_buffer], gradient_steps=3)
    for trained in (of_object, of_file, of_argument):
        np.testing.assert_allclose(
            np.sort(trained.offline_buffer.actions[:, 0]), np.sort(model.replay_buffer.actions.ravel()), atol=1e-6
        )
        # Raw, and not normalized
        assert trained.offline_buffer.rewards.min() < -5
        assert (np.abs(trained.offline_buffer.observations[:, 2]) > 1).any()
        assert not trained.offline_buffer.terminations.any()
    assert of_file._offline_dataset_id == str(tmp_path / "buffer")
    # As any dataset object, it is not saved
    of_file.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="Give it again"):
        loaded.pretrain(gradient_steps=1)
    loaded.pretrain(gradient_steps=1, replay_buffer=model.replay_buffer)


def test_a_buffer_stands_where_a_dataset_may_stand(sac):
    buffer = sac[0].replay_buffer
    assert describe(buffer).lengths.sum() == 100
    assert describe(buffer).lengths.max() == 20
    model = QAM("FlowPolicy", offline_dataset=buffer, **small(n_steps=3, reward_transform={"scale": 0.1}))
    model.pretrain(gradient_steps=1)
    np.testing.assert_allclose(model.offline_buffer.rewards.sum(), 0.1 * buffer.rewards.sum(), rtol=1e-5)


def test_what_is_no_replay_buffer_is_refused(sac, tmp_path: Path):
    model = QAM("MlpPolicy", "Pendulum-v1", **small())
    buffer = sac[0].replay_buffer
    with pytest.raises(TypeError, match="Expected a replay buffer of SB3"):
        model.pretrain(replay_buffer=3, gradient_steps=1)
    with pytest.raises(FileNotFoundError, match="absent"):
        model.pretrain(replay_buffer=tmp_path / "absent", gradient_steps=1)
    (tmp_path / "text.pkl").write_text("text")
    with pytest.raises(ValueError, match="cannot be read"):
        model.pretrain(replay_buffer=str(tmp_path / "text.pkl"), gradient_steps=1)
    with pytest.raises(ValueError, match="either dataset or replay_buffer"):
        model.pretrain(buffer, replay_buffer=buffer, gradient_steps=1)
    with pytest.raises(TypeError, match="a replay buffer of SB3, or a list of these, got RolloutBuffer"):
        model.pretrain(RolloutBuffer(2, OBSERVATIONS, ACTIONS), gradient_steps=1)
    with pytest.raises(ValueError, match="'ReplayBuffer' is empty"):
        model.pretrain(ReplayBuffer(5, OBSERVATIONS, ACTIONS), gradient_steps=1)
    with pytest.raises(ValueError, match="does not fit the environment"):
        model.pretrain(filled(5, 5, 1, 0, False, False), gradient_steps=1)
    with pytest.raises(ValueError, match="infos do not say"):
        QAM("FlowPolicy", offline_dataset=buffer, reward_transform={"from_success": True}).pretrain(gradient_steps=1)
    with pytest.raises(ValueError, match="in memory already"):
        QAM("FlowPolicy", offline_dataset=buffer, offline_storage="memmap").pretrain(gradient_steps=1)
    with pytest.raises(TypeError, match="takes no replay buffer"):
        wrap_dataset(buffer, gym.wrappers.FlattenObservation)
    broken = filled(5, 5, 1, 0, False, False)
    broken.observations[2] = np.nan
    with pytest.raises(ValueError, match=r"Dataset 'ReplayBuffer', episode \d+: observations is not finite"):
        read_episodes(*open_datasets(broken))
    assert model.offline_buffer is None
