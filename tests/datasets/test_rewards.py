"""A reward transform sees every reward once, whether it comes from a dataset or from an environment."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_qam import QAM
from sb3_qam.datasets.minari import read_episodes
from sb3_qam.datasets.rewards import RewardTransform
from tests.conftest import write_dataset

SPACE = spaces.Box(-1.0, 1.0, (1,))
SMALL = {"batch_size": 8, "flow_steps": 2, "policy_kwargs": {"net_arch": [8]}, "seed": 0}


class Counter(gym.Env):
    """The reward is the number of the step; steps 3 and 4 succeed; 6 steps."""

    observation_space = action_space = SPACE

    def __init__(self, says_success: bool = True) -> None:
        self.says_success = says_success

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.step_number += 1
        info = {"success": self.step_number in (3, 4)} if self.says_success else {}
        return (
            np.full(1, self.step_number / 10, np.float32),
            float(self.step_number),
            False,
            self.step_number == 6,
            info,
        )


def dataset(with_reset_info: bool = True, **changes):
    success = [False] * with_reset_info + [False, False, True, True, False, False]
    episode = {
        "observations": np.arange(7, dtype=np.float32)[:, None] / 10,
        "actions": np.zeros((6, 1), np.float32),
        "rewards": np.arange(1.0, 7.0),
        "infos": {"success": success},
    }
    return write_dataset([episode | changes], SPACE, SPACE)


TRANSFORMS = {
    RewardTransform(): ([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]),
    RewardTransform(scale=0.5, shift=-1.0): ([-0.5, 0, 0.5, 1, 1.5, 2], [0, 0, 0, 0, 0, 0]),
    RewardTransform(sparse=True, solved_at=5.0): ([-1, -1, -1, -1, 0, 0], [0, 0, 0, 0, 0, 0]),
    RewardTransform(from_success=True): ([0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]),
    RewardTransform(from_success=True, sparse=True, terminate_on_success=True): (
        [-1, -1, 0, 0, -1, -1],
        [0, 0, 1, 1, 0, 0],
    ),
    RewardTransform(terminate_on_success=True, scale=2.0): ([2, 4, 6, 8, 10, 12], [0, 0, 1, 1, 0, 0]),
}


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("normalized", [False, True])
def test_offline_and_online_rewards_are_the_same(transform: RewardTransform, normalized: bool):
    rewards, terminations = TRANSFORMS[transform]
    offline = read_episodes(dataset(), transform=transform)
    np.testing.assert_allclose(offline.rewards, rewards)
    np.testing.assert_array_equal(offline.terminations, terminations)

    env = DummyVecEnv([Counter])
    model = QAM(
        "FlowPolicy",
        VecNormalize(env, norm_reward=False) if normalized else env,
        learning_starts=3,
        chunk_size=2,
        reward_transform=transform,
        buffer_size=100,
        **SMALL,
    )
    model.learn(12)
    buffer = model.replay_buffer
    np.testing.assert_allclose(buffer.rewards[:12, 0], rewards * 2)
    cut = np.logical_and(buffer.dones, np.logical_not(buffer.timeouts))[:12, 0]
    np.testing.assert_array_equal(cut, terminations * 2)
    assert buffer.timeouts[[5, 11], 0].tolist() == [1, 1]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_success_may_be_said_at_the_end_of_an_episode_alone(n_envs: int):
    # SB3's own convention, of EvalCallback and Monitor
    class SaysItLast(Counter):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            *step, truncated, _ = super().step(action)
            return *step, truncated, {"is_success": True} if truncated else {}

    env = DummyVecEnv([SaysItLast] * n_envs)
    transform = {"from_success": True, "terminate_on_success": True}
    kwargs = {"offline_dataset": dataset(), "offline_steps": 1, "reward_transform": transform}
    buffer = QAM("FlowPolicy", env, **kwargs, **SMALL).learn(12 * n_envs).replay_buffer
    for array in (buffer.rewards[:12], buffer.dones[:12] * (1 - buffer.timeouts[:12])):
        np.testing.assert_array_equal(array, np.repeat(([[0]] * 5 + [[1]]) * 2, n_envs, axis=1))


def test_success_is_that_of_the_step_where_the_episode_says_its_own_too():
    # As sb3_qam.zoo.wrappers.EpisodeSuccess and SB3's EvalCallback have it
    class SaysBoth(Counter):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            *step, truncated, info = super().step(action)
            return *step, truncated, {**info, "is_success": True} if truncated else info

    transform = RewardTransform(from_success=True, terminate_on_success=True)
    buffer = QAM("FlowPolicy", DummyVecEnv([SaysBoth]), reward_transform=transform, **SMALL).learn(6).replay_buffer
    offline = read_episodes(dataset(), transform=transform)
    np.testing.assert_array_equal(buffer.rewards[:6, 0], offline.rewards)
    np.testing.assert_array_equal((buffer.dones * (1 - buffer.timeouts))[:6, 0], offline.terminations)


def test_a_reward_is_solved_at_whatever_its_precision():
    transform = RewardTransform(sparse=True, solved_at=0.8)
    for dtype in (np.float32, np.float64):
        # In float64 the sum is a bit below 0.8
        assert transform(np.array([0.7], dtype) + np.array([0.1], dtype), None) == 0


def test_rewards_are_not_scaled_twice():
    env = VecNormalize(DummyVecEnv([Counter]))
    model = QAM("FlowPolicy", env, offline_dataset=dataset(), reward_transform={"scale": 0.1}, **SMALL)
    for phase in (lambda: model.pretrain(gradient_steps=1), lambda: model.learn(1)):
        with pytest.raises(ValueError, match=r"use VecNormalize\(\.\.\., norm_reward=False\)"):
            phase()


@pytest.mark.parametrize("name", ["from_success", "sparse", "terminate_on_success"])
def test_switches_are_no_words(name: str):
    with pytest.raises(ValueError, match=f"{name} must be True or False, got 'no'"):
        RewardTransform.make({name: "no"})


def test_success_that_is_spoken_of_only_when_it_happens():
    space = spaces.Box(-1, 1, (1,))
    episode = {"observations": np.zeros((4, 1)), "actions": np.zeros((3, 1)), "rewards": np.ones(3)}
    episodes = [episode, {**episode, "infos": {"success": [False, False, False, True]}}]
    data = read_episodes(write_dataset(episodes, space, space), transform=RewardTransform(from_success=True))
    np.testing.assert_array_equal(data.rewards, [0, 0, 0, 0, 0, 1])


def test_infos_without_those_of_the_reset_belong_to_the_same_steps():
    episodes = read_episodes(dataset(with_reset_info=False), transform=RewardTransform(from_success=True))
    np.testing.assert_array_equal(episodes.rewards, [0, 0, 1, 1, 0, 0])


def test_the_transform_is_stored_with_the_model_and_may_be_a_dict(tmp_path: Path):
    model = QAM("FlowPolicy", DummyVecEnv([Counter]), reward_transform={"scale": 0.1, "sparse": False}, **SMALL)
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model")
    assert loaded.reward_transform == RewardTransform(scale=0.1)
    loaded.pretrain(dataset(), gradient_steps=1)
    np.testing.assert_allclose(loaded.offline_buffer.rewards, np.arange(1, 7) / 10, rtol=1e-6)
    assert QAM.load(tmp_path / "model", reward_transform=None).reward_transform is None


def test_what_a_transform_cannot_do_is_said():
    needs_success = RewardTransform(from_success=True)
    with pytest.raises(ValueError, match=r"infos do not say of any episode whether it was a success"):
        read_episodes(dataset(infos=None), transform=needs_success)
    model = QAM("FlowPolicy", DummyVecEnv([lambda: Counter(False)]), reward_transform=needs_success, **SMALL)
    # It may say so in the last step of an episode
    with pytest.raises(ValueError, match=r"environment does not say in its infos whether a step was a success"):
        model.learn(6)
    assert model.replay_buffer.size() == 5
    with pytest.raises(
        ValueError, match=r"reward_transform must be a RewardTransform, or a dict of .*got \{'size': 2\}"
    ):
        QAM("FlowPolicy", "Pendulum-v1", reward_transform={"size": 2})
    with pytest.raises(ValueError, match="scale must be a finite number"):
        RewardTransform(scale=float("nan"))
    with pytest.raises(ValueError, match="HerReplayBuffer takes its rewards from the environment's"):
        QAM(
            "MultiInputPolicy",
            BitFlippingEnv(continuous=True),
            replay_buffer_class=HerReplayBuffer,
            reward_transform=RewardTransform(shift=1.0),
        )
