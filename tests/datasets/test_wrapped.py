"""A dataset behind wrappers gives what the wrapped environment gives."""

import copy
from functools import partial

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import (
    FilterObservation,
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    RescaleAction,
    TimeAwareObservation,
    TransformReward,
)

from sb3_qam import QAM
from sb3_qam.datasets.describe import describe
from sb3_qam.datasets.minari import read_episodes, training_spaces
from sb3_qam.datasets.rewards import RewardTransform
from sb3_qam.datasets.sources import open_dataset, wrap_dataset
from tests.conftest import record, write_dataset

gym.register_envs(gymnasium_robotics)
N_STEPS = 12


class NestedEnv(gym.Env):
    """Observations within observations, and a reward that infos explain."""

    action_space = spaces.Box(-1.0, 1.0, (2,))
    observation_space = spaces.Dict(
        {
            "robot": spaces.Dict({"arm": spaces.Box(-9.0, 9.0, (2,)), "gripper": spaces.Discrete(3)}),
            "clock": spaces.Box(0.0, 99.0, (1,)),
        }
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.arm, self.clock = np.zeros(2, np.float32), 0
        return self._observation(), {}

    def _observation(self):
        clock = np.array([self.clock], np.float32)
        return {"robot": {"arm": self.arm.copy(), "gripper": self.clock % 3}, "clock": clock}

    def step(self, action):
        self.arm = np.clip(self.arm + action, -9, 9).astype(np.float32)
        self.clock += 1
        return self._observation(), float(self.arm.sum()), self.clock == N_STEPS, False, {}


class DistanceCost(gym.RewardWrapper):
    """A reward wrapper with a state."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.n_rewards = 0

    def reward(self, reward):
        self.n_rewards += 1
        return -abs(reward)


def half_reward(env: gym.Env) -> gym.Env:
    return TransformReward(env, lambda reward: reward / 2)


def only_goals(env: gym.Env) -> gym.Env:
    return FilterObservation(env, ["observation", "desired_goal"])


def time_limit(env: gym.Env) -> gym.Env:
    # By this name: RL Zoo replaces it
    return gym.wrappers.TimeLimit(env, N_STEPS)


def two_frames(env: gym.Env) -> gym.Env:
    return FrameStackObservation(env, 2)


def stacked(observations):
    if isinstance(observations[0], dict):
        return {key: stacked([each[key] for each in observations]) for key in observations[0]}
    return np.stack(observations)


def record_nested(env: gym.Env) -> list[dict]:
    """record() of tests.conftest, for observations of any structure."""
    env.action_space.seed(0)
    episodes = []
    for _ in range(3):
        observations, actions, rewards, terminations = [env.reset(seed=0)[0]], [], [], []
        done = False
        while not done:
            actions.append(env.action_space.sample())
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
            terminations.append(terminated)
            done = terminated or truncated
        parts = {"actions": actions, "rewards": rewards, "terminations": terminations}
        episodes.append({"observations": stacked(observations), **parts})
    return episodes


def maze() -> gym.Env:
    return gym.make("PointMaze_UMaze-v3", max_episode_steps=N_STEPS)


@pytest.mark.parametrize(
    ("make", "wrappers"),
    [
        (NestedEnv, [FlattenObservation]),
        (NestedEnv, [time_limit, FlattenObservation, TimeAwareObservation, DistanceCost]),
        (maze, [FlattenObservation, half_reward]),
        (maze, [only_goals]),
        (maze, [only_goals, FlattenObservation, two_frames]),
    ],
)
def test_it_is_what_the_wrapped_environment_gives(make, wrappers):
    dataset = write_dataset(record_nested(make()), make().observation_space, make().action_space, "test/wrapped-v0")
    env = make()
    for wrapper in wrappers:
        env = wrapper(env)
    expected_dataset = write_dataset(record_nested(env), env.observation_space, env.action_space)

    wrapped = wrap_dataset("test/wrapped-v0", *wrappers)
    assert wrapped.observation_space == env.observation_space
    assert (wrapped.id, wrapped.total_episodes, wrapped.total_steps) == (dataset.id, 3, dataset.total_steps)
    got, expected = read_episodes(wrapped), read_episodes(expected_dataset)
    np.testing.assert_equal(got.observations, expected.observations)
    np.testing.assert_allclose(got.rewards, expected.rewards, rtol=1e-6)
    np.testing.assert_array_equal(got.terminations, expected.terminations)
    np.testing.assert_array_equal(got.actions, expected.actions)


def test_nested_observations_train_and_act_behind_a_wrapper():
    dataset = write_dataset(record_nested(NestedEnv()), NestedEnv.observation_space, NestedEnv.action_space)
    with pytest.raises(ValueError, match=r"nested observations.*FlattenObservation"):
        QAM("FlowPolicy", offline_dataset=dataset)
    env = FlattenObservation(NestedEnv())
    model = QAM("FlowPolicy", env, offline_dataset=wrap_dataset(dataset, FlattenObservation), batch_size=8)
    model.pretrain(gradient_steps=2)
    assert model.predict(env.reset()[0])[0].shape == (2,)
    assert "3" in str(describe(wrap_dataset(dataset, FlattenObservation)))


def test_the_recovered_environment_is_wrapped_as_well():
    env = maze()
    dataset = write_dataset(record(env, 2), env.observation_space, env.action_space, env=env.spec)
    wrapped = wrap_dataset(dataset.storage.data_path, FlattenObservation)
    model = QAM("FlowPolicy", wrapped.recover_environment(), offline_dataset=wrapped, batch_size=8, learning_starts=0)
    assert model.observation_space.shape == (8,)
    model.learn(5)
    # One more wrapper goes around those that are there
    twice = wrap_dataset(wrapped, TimeAwareObservation)
    assert training_spaces(twice)[0].shape == (9,)
    assert open_dataset(twice) is twice


def test_a_choice_of_episodes_stays_wrapped(pendulum_dataset):
    wrapped = wrap_dataset(pendulum_dataset, partial(scaled, factor=0.5))
    chosen = wrapped.filter_episodes(lambda episode: episode.id == 1)
    ((_, episode),) = chosen.episodes()
    np.testing.assert_allclose(episode.rewards, 0.5 * pendulum_dataset[1].rewards)
    assert chosen.key == wrapped.key
    with pytest.raises(AttributeError, match="has the recorded episodes: episodes"):
        wrapped.iterate_episodes()


def scaled(env: gym.Env, factor: float) -> gym.Env:
    return TransformReward(env, lambda reward: factor * reward)


def test_the_mapped_files_belong_to_the_names_of_the_wrappers(tmp_path, monkeypatch):
    monkeypatch.setenv("SB3_QAM_CACHE", str(tmp_path))
    dataset = write_dataset(record_nested(NestedEnv()), NestedEnv.observation_space, NestedEnv.action_space)
    rewards = {}

    def train(*wrappers, key=None):
        wrapped = wrap_dataset(dataset, FlattenObservation, *wrappers, key=key)
        model = QAM("FlowPolicy", offline_dataset=wrapped, offline_storage="memmap", batch_size=8)
        return model.pretrain(gradient_steps=1).offline_buffer.rewards

    for factor in (1.0, 2.0, 1.0):
        rewards[factor] = train(partial(scaled, factor=factor))
    np.testing.assert_array_equal(2 * rewards[1.0], rewards[2.0])
    assert sum(path.is_dir() for path in (tmp_path / "memmap").iterdir()) == 2

    def triple(env):
        return scaled(env, 3.0)

    for nameless in (triple, lambda env: scaled(env, 3.0)):
        with pytest.raises(
            ValueError, match=r"has no name under which they are found again: use wrap_dataset\(..., key="
        ):
            train(nameless)
    np.testing.assert_array_equal(3 * rewards[1.0], train(triple, key="triple"))
    np.testing.assert_array_equal(4 * rewards[1.0], train(lambda env: scaled(env, 4.0), key="four times"))
    np.testing.assert_array_equal(3 * rewards[1.0], train(triple, key="triple"))
    assert sum(path.is_dir() for path in (tmp_path / "memmap").iterdir()) == 4


class Skips(gym.Wrapper):
    """Starts over at every step."""

    def step(self, action):
        self.env.reset()
        return self.env.step(action)


class Reverses(gym.ActionWrapper):
    """Other actions of the same space."""

    def action(self, action):
        return -action


class AsksTheSimulator(gym.ObservationWrapper):
    """Needs what was not recorded."""

    def observation(self, observation):
        return self.env.unwrapped.data.qpos


def rescaled(env: gym.Env) -> gym.Env:
    return RescaleAction(env, -1.0, 1.0)


@pytest.mark.parametrize(
    ("wrapper", "complaint"),
    [
        (rescaled, "wrapper rescaled changes the actions"),
        (Skips, "Skips failed in episode 0: .*it changes the action"),
        (Reverses, "Reverses failed in episode 0: .*it changes the action"),
        (AsksTheSimulator, "AsksTheSimulator failed in episode 0: AttributeError: .*data"),
    ],
)
def test_wrappers_that_cannot_be_used_say_why(wrapper, complaint, pendulum_dataset):
    with pytest.raises(ValueError, match=complaint):
        read_episodes(wrap_dataset(pendulum_dataset, wrapper))


class OneArray(gym.ObservationWrapper):
    """Writes each observation into the same array."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.array = np.zeros(env.observation_space.shape, env.observation_space.dtype)

    def observation(self, observation):
        self.array[:] = observation
        return self.array


def test_observations_are_kept_as_they_were(pendulum_dataset):
    got = read_episodes(wrap_dataset(pendulum_dataset, OneArray))
    np.testing.assert_array_equal(got.observations, read_episodes(pendulum_dataset).observations)


def test_a_state_that_outlives_episodes_starts_over_with_each_pass(pendulum_dataset):
    wrapped = wrap_dataset(pendulum_dataset, NormalizeObservation)
    first, second = read_episodes(wrapped), read_episodes(wrapped)
    np.testing.assert_array_equal(first.observations, second.observations)
    assert not np.array_equal(first.observations, read_episodes(pendulum_dataset).observations)


class SaysSuccess(gym.Wrapper):
    """Success where the reward is high."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "success": reward > -3}


def test_success_is_what_wrappers_say(pendulum_dataset):
    transform = RewardTransform(from_success=True)
    rewards = read_episodes(wrap_dataset(pendulum_dataset, SaysSuccess), transform=transform).rewards
    np.testing.assert_array_equal(rewards, read_episodes(pendulum_dataset).rewards > -3)
    assert 0 < rewards.mean() < 1


class UnsortedEnv(gym.Env):
    """Its keys are in another order than that of the alphabet."""

    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.observation_space = spaces.Dict([("z", spaces.Box(0.0, 1.0, (1,))), ("a", spaces.Box(0.0, 1.0, (1,)))])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"z": np.array([0.1], np.float32), "a": np.array([0.9], np.float32)}, {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


def test_keys_are_flattened_in_the_order_of_the_environment_and_none_is_made(monkeypatch):
    env = gym.wrappers.TimeLimit(UnsortedEnv(), 3)
    assert list(env.observation_space) == ["z", "a"]
    spec = gym.envs.registration.EnvSpec("Unsorted-v0", entry_point="tests.datasets.test_wrapped:UnsortedEnv")
    write_dataset(record(env, 1), env.observation_space, env.action_space, "test/unsorted-v0", env=spec)
    expected = FlattenObservation(env).reset()[0]

    def refuse(*args, **kwargs):
        raise AssertionError("an environment is made")

    monkeypatch.setattr(UnsortedEnv, "__init__", refuse)
    monkeypatch.setattr(gym, "make", refuse)
    wrapped = wrap_dataset("test/unsorted-v0", FlattenObservation)
    np.testing.assert_array_equal(read_episodes(wrapped).observations[0], expected)


def test_a_copy_of_a_wrapped_dataset_is_one(pendulum_dataset):
    wrapped = copy.deepcopy(wrap_dataset(pendulum_dataset, FlattenObservation))
    assert (wrapped.id, wrapped.total_episodes) == (pendulum_dataset.id, 5)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapped.no_such_thing


def test_lists_are_wrapped_one_by_one(pendulum_dataset):
    with pytest.raises(TypeError, match="wrap each of them"):
        wrap_dataset([pendulum_dataset], FlattenObservation)
