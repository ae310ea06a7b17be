"""n-step returns: SB3's argument and SB3's own buffer."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_qam.common.buffers import DictSequenceReplayBuffer, SequenceReplayBuffer
from tests.contract.conftest import RandomEnv, small


class Counter(gym.Env):
    """Observes and rewards the number of the step, and ends after seven, by truncation or by termination."""

    observation_space, action_space = spaces.Box(0.0, 10.0, (1,)), spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, terminates: bool) -> None:
        self.terminates = terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n_steps += 1
        ended = self.n_steps == 7
        observation = np.full(1, self.n_steps, np.float32)
        return observation, float(self.n_steps), ended and self.terminates, ended and not self.terminates, {}


@pytest.mark.parametrize("terminates", [False, True])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_returns_discounts_and_next_observations(algorithm, n_envs: int, terminates: bool):
    env = DummyVecEnv([lambda: Counter(terminates)] * n_envs)
    model = algorithm("MlpPolicy", env, n_steps=3, gamma=0.5, **small(algorithm)).learn(35 * n_envs)
    assert type(model.replay_buffer) is SequenceReplayBuffer
    batch = model._sample_batch(200)
    start = batch.observations.flatten()
    # the rewards of steps 1 to 7 are their numbers
    whole = start <= 4
    assert batch.valid.bool().tolist() == whole.tolist()
    expected = (start + 1) + 0.5 * (start + 2) + 0.25 * (start + 3)
    np.testing.assert_allclose(batch.rewards[whole], expected[whole])
    np.testing.assert_allclose(batch.next_observations.flatten()[whole], start[whole] + 3)
    np.testing.assert_allclose(batch.discounts, 0.125)
    # three steps that reach a termination do not bootstrap; those that reach a truncation do
    assert batch.masks[start == 4].tolist() == [0.0 if terminates else 1.0] * int((start == 4).sum())
    assert batch.masks[start < 4].all()


def test_the_whole_run_with_several_steps(algorithm):
    model = algorithm(
        "MlpPolicy", make_vec_env("Pendulum-v1", n_envs=2), n_steps=3, train_freq=4, **small(algorithm)
    ).learn(60)
    assert model._n_updates > 0
    assert model.n_steps == 3


def test_dicts_have_n_step_returns_too(algorithm):
    env = RandomEnv(spaces.Dict(a=spaces.Box(-1.0, 1.0, (2,))))
    model = algorithm("MultiInputPolicy", env, n_steps=3, **small(algorithm)).learn(20)
    assert type(model.replay_buffer) is DictSequenceReplayBuffer


def test_sb3s_own_buffer_shortens_returns_at_the_end_of_an_episode(algorithm):
    kwargs = small(algorithm, replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs={"n_steps": 3, "gamma": 0.5})
    model = algorithm("MlpPolicy", Counter(terminates=False), gamma=0.5, **kwargs).learn(35)
    batch = model._sample_batch(200)
    start = batch.observations.flatten()
    assert batch.valid.all()
    last = start == 6
    np.testing.assert_allclose(batch.rewards[last], 7.0)
    np.testing.assert_allclose(batch.discounts[last], 0.5)
    np.testing.assert_allclose(batch.discounts[start <= 4], 0.125)
