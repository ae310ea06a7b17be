"""VecNormalize: what is stored is as it was, what is learned from is normalized, and phases share one statistics."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from tests.contract.conftest import RandomEnv, small


def normalized(n_envs: int = 1, **kwargs) -> VecNormalize:
    return VecNormalize(make_vec_env("Pendulum-v1", n_envs=n_envs, seed=0), **kwargs)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_original_observations_and_rewards_are_stored(algorithm, n_steps: int):
    env = normalized(n_envs=2, gamma=0.9)
    model = algorithm("MlpPolicy", env, n_steps=n_steps, **small(algorithm)).learn(40)
    buffer = model.replay_buffer
    observations = buffer.observations[:20]
    # angles are sines and cosines, and the speed is not normalized to anything near one
    np.testing.assert_allclose((observations[..., :2] ** 2).sum(axis=-1), 1, rtol=1e-5)
    assert np.ptp(observations[..., 2]) > 1
    assert buffer.rewards[:20].min() < -1
    np.testing.assert_array_equal(model._last_original_obs, env.get_original_obs())
    np.testing.assert_allclose(model._last_obs, env.normalize_obs(env.get_original_obs()), rtol=1e-6)


def test_batches_are_normalized_by_the_statistics_of_the_moment(algorithm):
    env = normalized()
    model = algorithm("MlpPolicy", env, **small(algorithm)).learn(30)
    stored = model.replay_buffer.observations[:30, 0]
    for _ in range(2):
        expected = {tuple(row) for row in env.normalize_obs(stored).astype(np.float32)}
        batch = model._sample_batch(20)
        assert {tuple(row) for row in batch.observations.numpy()} <= expected
        rewards = env.normalize_reward(model.replay_buffer.rewards[:30, 0])
        assert np.isclose(batch.rewards.numpy()[:, None], rewards[None]).any(axis=1).all()
        env.obs_rms.mean += 1.0


def test_evaluation_has_the_statistics_of_training_and_leaves_them_alone(algorithm, tmp_path: Path):
    env, eval_env = normalized(), normalized(training=False, norm_reward=False)
    model = algorithm("MlpPolicy", env, **small(algorithm))
    model.learn(30, callback=EvalCallback(eval_env, eval_freq=10, n_eval_episodes=1, verbose=0))
    np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)
    before = env.obs_rms.mean.copy()
    evaluate_policy(model, eval_env, n_eval_episodes=1)
    np.testing.assert_array_equal(env.obs_rms.mean, before)


def test_a_checkpoint_brings_model_buffer_and_statistics_back(algorithm, tmp_path: Path):
    env = normalized()
    checkpoints = CheckpointCallback(15, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    model = algorithm("MlpPolicy", env, **small(algorithm)).learn(30, callback=checkpoints)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"rl_model_{kind}{steps}_steps.{suffix}"
        for kind, suffix in (("", "zip"), ("replay_buffer_", "pkl"), ("vecnormalize_", "pkl"))
        for steps in (15, 30)
    }
    loaded_env = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_30_steps.pkl"), make_vec_env("Pendulum-v1"))
    loaded = algorithm.load(tmp_path / "rl_model_30_steps", env=loaded_env)
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_30_steps")
    assert loaded.get_vec_normalize_env() is loaded_env
    np.testing.assert_array_equal(loaded_env.obs_rms.mean, env.obs_rms.mean)
    # a callback sees a step before it is stored
    assert loaded.replay_buffer.size() == model.replay_buffer.size() - 1
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40


def test_offline_and_online_data_are_normalized_alike(algorithm, pendulum_dataset):
    env = normalized(n_envs=2)
    model = algorithm("MlpPolicy", env, offline_dataset=pendulum_dataset, offline_steps=5, **small(algorithm)).learn(20)
    originals = {0.0: model.replay_buffer.observations[:10].reshape(-1, 3), 1.0: model.offline_buffer.observations}
    for fraction, original in originals.items():
        model.offline_fraction = fraction
        expected = env.normalize_obs(original).astype(np.float32)
        drawn = model._sample_batch(20).observations.numpy()
        assert np.isclose(drawn[:, None], expected[None], atol=1e-6).all(axis=2).any(axis=1).all()


def test_keys_of_a_dict_are_normalized_one_by_one(algorithm):
    space = spaces.Dict(normal=spaces.Box(0.0, 9.0, (2,)), plain=spaces.Box(0.0, 9.0, (2,)))
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(space)]), norm_obs_keys=["normal"])
    model = algorithm("MultiInputPolicy", env, **small(algorithm)).learn(30)
    observations = model._sample_batch(30).observations
    assert observations["plain"].min() >= 0 > observations["normal"].min()


def test_an_environment_without_normalization_may_follow_one_with(algorithm):
    model = algorithm("MlpPolicy", normalized(), **small(algorithm)).learn(12)
    model.set_env(make_vec_env("Pendulum-v1"))
    assert model.get_vec_normalize_env() is None
    # Which may not be what the user wants
    with pytest.warns(
        UserWarning, match="learned from observations that VecNormalize normalized, and now they are not"
    ):
        model.learn(12, reset_num_timesteps=False)
    model.set_env(VecNormalize(make_vec_env("Pendulum-v1")))
    assert isinstance(model.get_vec_normalize_env(), VecNormalize)


@pytest.mark.parametrize("monitor_first", [False, True])
def test_a_vec_monitor_reports_episodes(algorithm, monitor_first: bool, tmp_path: Path):
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=5)] * 2)
    if monitor_first:
        env = VecNormalize(VecMonitor(env, str(tmp_path / "log")))
    else:
        env = VecMonitor(VecNormalize(env), str(tmp_path / "log"))
    model = algorithm("MlpPolicy", env, **small(algorithm)).learn(20)
    assert [episode["l"] for episode in model.ep_info_buffer] == [5] * 4
    assert (tmp_path / "log.monitor.csv").exists()
