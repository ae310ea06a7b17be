"""Minari datasets arrive in the offline buffer as they were recorded."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from sb3_qam import QAM
from sb3_qam.datasets.hdf5 import UNCOMPRESSED
from sb3_qam.datasets.minari import read_episodes, training_spaces
from sb3_qam.datasets.sources import open_dataset
from tests.conftest import needs_uncompressed_images, record, write_dataset

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = spaces.Box(np.array([0.0, -5.0], np.float32), np.array([10.0, 5.0], np.float32))


def random_episode(length: int, rng: np.random.Generator, **changes) -> dict:
    return {
        "observations": rng.normal(size=(length + 1, 3)),
        "actions": rng.uniform(ACTIONS.low, ACTIONS.high, (length, 2)).astype(np.float32),
        "rewards": rng.normal(size=length),
        "terminations": [False] * (length - 1) + [True],
        **changes,
    }


def test_every_value_is_read_and_actions_are_scaled():
    rng = np.random.default_rng(0)
    episodes = [random_episode(length, rng) for length in (4, 1, 7)]
    data = read_episodes(write_dataset(episodes, BOX, ACTIONS, "test/read-v0"))
    assert data.name == "test/read-v0"
    np.testing.assert_array_equal(data.lengths, [4, 1, 7])
    stacked = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    np.testing.assert_allclose(data.observations, stacked["observations"], rtol=1e-6)
    assert data.observations.dtype == np.float32
    np.testing.assert_allclose(data.actions, stacked["actions"] / 5 - [1, 0], atol=1e-6)
    np.testing.assert_allclose(data.rewards, stacked["rewards"], rtol=1e-6)
    np.testing.assert_array_equal(data.terminations, stacked["terminations"])


def test_an_id_and_a_filtered_dataset_are_opened():
    rng = np.random.default_rng(0)
    dataset = write_dataset([random_episode(length, rng) for length in (4, 1, 7)], BOX, ACTIONS, "test/open-v0")
    assert open_dataset("test/open-v0").total_steps == 12
    long_ones = dataset.filter_episodes(lambda episode: len(episode) > 3)
    np.testing.assert_array_equal(read_episodes(open_dataset(long_ones)).lengths, [4, 7])


def test_dict_observations_keep_their_keys():
    space = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "contact": spaces.Discrete(3)})
    rng = np.random.default_rng(0)
    observations = {"position": rng.uniform(-1, 1, (6, 2)).astype(np.float32), "contact": rng.integers(0, 3, 6)}
    dataset = write_dataset([random_episode(5, rng, observations=observations)], space, ACTIONS)
    data = read_episodes(dataset)
    np.testing.assert_array_equal(data.observations["position"], observations["position"])
    np.testing.assert_array_equal(data.observations["contact"], observations["contact"][:, None])
    QAM("FlowPolicy", offline_dataset=dataset, batch_size=8).pretrain(gradient_steps=2)
    QAM("MultiInputPolicy", offline_dataset=dataset, batch_size=8).pretrain(gradient_steps=2)


@needs_uncompressed_images
def test_images_stay_uint8_and_arrive_as_the_environment_gives_them():
    rng = np.random.default_rng(0)
    space = spaces.Box(0, 255, (40, 36, 3), np.uint8)
    images = rng.integers(0, 256, (4, 40, 36, 3), np.uint8)
    dataset = write_dataset([random_episode(3, rng, observations=images)], space, ACTIONS, **UNCOMPRESSED)
    observation_space, _ = training_spaces(dataset)

    class ImageEnv(gym.Env):
        observation_space, action_space = space, ACTIONS

        def reset(self, *, seed=None, options=None):
            return images[0], {}

    env = VecTransposeImage(DummyVecEnv([ImageEnv]))
    assert observation_space == env.observation_space
    data = read_episodes(dataset)
    assert data.observations.dtype == np.uint8
    np.testing.assert_array_equal(data.observations[:1], env.reset())
    model = QAM("CnnPolicy", offline_dataset=dataset, batch_size=4, policy_kwargs={"net_arch": [16]})
    model.pretrain(gradient_steps=2)
    assert model.predict(images[0])[0].shape == (2,)


def test_actions_beyond_the_bounds_are_clipped_with_a_warning():
    rng = np.random.default_rng(0)
    actions = rng.uniform(ACTIONS.low, ACTIONS.high, (5, 2)).astype(np.float32)
    actions[2] = [12.0, 0.0]
    dataset = write_dataset([random_episode(5, rng, actions=actions)], BOX, ACTIONS)
    with pytest.warns(UserWarning, match="1 of 5 actions lie outside"):
        data = read_episodes(dataset)
    np.testing.assert_allclose(data.actions[2], [1.0, 0.0], atol=1e-6)


def test_a_real_environment_and_its_recorded_dataset_go_together():
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    dataset = write_dataset(record(env, 3), env.observation_space, env.action_space, "test/pendulum-v0")
    model = QAM("FlowPolicy", env, offline_dataset="test/pendulum-v0", batch_size=16)
    model.pretrain(gradient_steps=2)
    assert model.offline_buffer.size() == dataset.total_steps == 60
    assert model.offline_buffer.n_episodes == 3
