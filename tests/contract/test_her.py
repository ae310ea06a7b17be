"""HerReplayBuffer works behind QAM as it does behind SAC, and is refused where it cannot."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from examples import her
from sb3_qam import QAM
from sb3_qam.common.evaluation import evaluate
from tests.conftest import record, write_dataset
from tests.contract.conftest import small


def bits(**kwargs) -> BitFlippingEnv:
    return BitFlippingEnv(**{"n_bits": 4, "continuous": True} | kwargs)


def hindsight(env, strategy: str = "future", **kwargs) -> QAM:
    buffer_kwargs = {"goal_selection_strategy": strategy, "n_sampled_goal": 2}
    return QAM(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=buffer_kwargs,
        **small(**kwargs),
    )


@pytest.mark.parametrize("image_obs_space", [False, True])
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_goals_are_relabeled_and_their_rewards_computed(strategy: str, image_obs_space: bool):
    env = bits(image_obs_space=image_obs_space)
    model = hindsight(env, strategy, seed=0).learn(60)
    assert model._n_updates == 50
    batch = model._sample_batch(200)
    own_goal = th.as_tensor(env.convert_if_needed(env.desired_goal))
    relabeled = (batch.observations["desired_goal"] != own_goal).flatten(1).any(dim=1)
    # two of three are; some of these are relabeled to the goal itself
    assert 0.3 < relabeled.float().mean() < 0.8
    reached = (batch.next_observations["achieved_goal"] == batch.observations["desired_goal"]).flatten(1).all(dim=1)
    th.testing.assert_close(batch.rewards, reached.float() - 1)
    evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
def test_several_environments(vec_env_class: type):
    kwargs = {"start_method": "fork"} if vec_env_class is SubprocVecEnv else None
    env = make_vec_env(bits, n_envs=2, vec_env_cls=vec_env_class, vec_env_kwargs=kwargs)
    try:
        model = hindsight(env, train_freq=4, gradient_steps=-1).learn(40)
        assert model._n_updates == 32
    finally:
        env.close()


def test_episodic_training():
    assert hindsight(bits(), train_freq=(1, "episode")).learn(60)._n_updates > 0


class Reach(gym.Env):
    """A point in a square that moves by its action, and a reward of 0 near the goal, -1 elsewhere."""

    action_space = spaces.Box(-1.0, 1.0, (2,))
    observation_space = spaces.Dict(
        {key: spaces.Box(-np.inf, np.inf, (2,)) for key in ("observation", "achieved_goal", "desired_goal")}
    )

    def _observation(self) -> dict[str, np.ndarray]:
        point = self.point.astype(np.float32)
        return {"observation": point, "achieved_goal": point, "desired_goal": np.full(2, 5.0, np.float32)}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info) -> np.ndarray:
        return (np.linalg.norm(achieved - desired, axis=-1) < 1e-3).astype(np.float32) - 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.n_steps = np.zeros(2), 0
        return self._observation(), {}

    def step(self, action: np.ndarray):
        self.point, self.n_steps = self.point + action, self.n_steps + 1
        observation = self._observation()
        reward = self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {})
        return observation, float(reward), False, self.n_steps >= 5, {}


def test_before_the_first_episode_has_ended_sb3_says_so():
    with pytest.raises(RuntimeError, match="Unable to sample before the end of the first episode"):
        hindsight(Reach(), learning_starts=2).learn(4)


def test_statistics_of_vec_normalize_apply_after_relabeling():
    env = VecNormalize(DummyVecEnv([Reach]))
    model = hindsight(env).learn(60)
    batch = model._sample_batch(100)
    goals = batch.observations["desired_goal"]
    # the goal of the episodes is one point, and where they went is another
    own_goal = th.as_tensor(
        env.normalize_obs(
            {"desired_goal": np.full(2, 5.0)} | {key: np.zeros(2) for key in ("observation", "achieved_goal")}
        )["desired_goal"]
    ).float()
    assert 0.3 < (goals - own_goal).norm(dim=1).gt(1e-4).float().mean() < 0.9
    expected = th.as_tensor(env.normalize_reward(np.array([-1.0, 0.0]))).float()
    assert th.isclose(batch.rewards[:, None], expected).any(dim=1).all()
    assert batch.rewards.max() > batch.rewards.min()


def test_the_buffer_goes_on_where_it_was_saved(tmp_path: Path):
    model = hindsight(Reach()).learn(33)  # in the middle of an episode of five steps
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    stored = model.replay_buffer

    loaded = QAM.load(tmp_path / "model", env=Reach())
    assert isinstance(loaded.replay_buffer, HerReplayBuffer)
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    buffer = loaded.replay_buffer
    for name, values in stored.observations.items():
        np.testing.assert_array_equal(buffer.observations[name], values)
    for name in ("actions", "rewards", "dones", "ep_start", "ep_length"):
        np.testing.assert_array_equal(getattr(buffer, name), getattr(stored, name))
    # the end of an episode is found also where it lies behind the interruption
    assert (buffer.goal_selection_strategy, buffer.n_sampled_goal) == (stored.goal_selection_strategy, 2)
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.num_timesteps == 63
    assert loaded._n_updates == model._n_updates + 30

    truncating = QAM.load(tmp_path / "model", env=Reach())
    with pytest.warns(UserWarning, match="last trajectory in the replay buffer will be truncated"):
        truncating.load_replay_buffer(tmp_path / "buffer")
    truncating.learn(10, reset_num_timesteps=False)


def test_a_buffer_of_hindsight_needs_an_environment(tmp_path: Path):
    hindsight(bits()).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"HerReplayBuffer computes rewards with the environment: pass env=.*load\(\)"):
        QAM.load(tmp_path / "model")


def test_what_hindsight_cannot_do_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"chunk_size=3 needs .* sequences, and HerReplayBuffer gives single"):
        hindsight(bits(), chunk_size=3)
    with pytest.raises(ValueError, match="takes its rewards from the environment's compute_reward"):
        hindsight(bits(), reward_transform={"scale": 2.0})
    with pytest.raises(ValueError, match="HerReplayBuffer does not support optimize_memory_usage"):
        hindsight(bits(), optimize_memory_usage=True)
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored because a custom `replay_buffer_class`"):
        hindsight(bits(), n_steps=3)
    with pytest.raises(ValueError, match=r"replay_buffer_class=HerReplayBuffer does not hold observations of Box"):
        QAM("MlpPolicy", "Pendulum-v1", replay_buffer_class=HerReplayBuffer)


def test_the_example_evaluates_as_it_goes_and_saves_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # one update after the first episode of each environment
    steps = her.SETTINGS["learning_starts"] + her.N_ENVS
    for name, value in {"TOTAL_TIMESTEPS": steps, "EVAL_INTERVAL": steps, "N_STARTS": 2}.items():
        monkeypatch.setattr(her, name, value)
    monkeypatch.chdir(tmp_path)
    her.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert [row[0] for row in rows] == ["0", f"{steps:,}"]
    assert all(0 <= float(success) <= 1 and 0 <= int(at_goal) <= 300 for _, success, at_goal in rows)
    assert QAM.load(tmp_path / "her" / "qam_her", env=her.make_env(1))._n_updates == her.SETTINGS["gradient_steps"]


@pytest.mark.slow
def test_a_maze_with_sparse_rewards_is_learned_without_any_data():
    model, starts = her.make_model(seed=0), her.make_env(50)

    def success() -> float:
        starts.seed(0)
        return evaluate(model, starts, 50).summary()["success"]

    assert success() < 0.4
    model.learn(her.TOTAL_TIMESTEPS)
    assert success() > 0.7


def test_offline_steps_are_no_experience_where_online_data_alone_is_drawn():
    env = bits(max_steps=6)
    dataset = write_dataset(record(env, 4), env.observation_space, env.action_space)
    model = hindsight(env, offline_dataset=dataset, offline_steps=30, offline_fraction=0.0, learning_starts=12)
    # the policy acts at once, and updates begin when there are finished episodes to learn from
    model.learn(12)
    assert (model.num_timesteps, model._n_updates) == (42, 30)
    model.learn(5, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (47, 35)
    # those that the count no longer holds are not taken off it
    model.learn(15)
    assert (model.num_timesteps, model._n_updates) == (15, 38)
