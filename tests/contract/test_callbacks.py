"""SB3's callbacks, in the offline phase as in the online one."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from tests.contract.conftest import Algorithm, small

OFFLINE, ONLINE = 12, 24
BOTH = OFFLINE + ONLINE


def short_pendulum() -> gym.Env:
    return gym.make("Pendulum-v1", max_episode_steps=6)


@pytest.fixture
def two_phases(algorithm, pendulum_dataset) -> Algorithm:
    """A model with 12 gradient steps before its first environment step."""
    return algorithm(
        "MlpPolicy", short_pendulum(), offline_dataset=pendulum_dataset, offline_steps=OFFLINE, **small(algorithm)
    )


class Events(BaseCallback):
    """Keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.timesteps: list[int] = []

    def _on_training_start(self) -> None:
        self.names.append("training start")

    def _on_rollout_start(self) -> None:
        self.names.append("rollout start")

    def _on_step(self) -> bool:
        self.timesteps.append(self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        self.names.append("rollout end")

    def _on_training_end(self) -> None:
        self.names.append("training end")


def test_the_order_of_events(two_phases: Algorithm):
    events = Events()
    two_phases.learn(ONLINE, callback=events)
    assert events.timesteps == list(range(1, BOTH + 1))
    # each phase begins and ends as learn() of SB3 does; environment steps alone are rollouts
    phases = [
        "training start",
        "training end",
        "training start",
        *["rollout start", "rollout end"] * ONLINE,
        "training end",
    ]
    assert events.names == phases
    assert events.n_calls == BOTH


def test_what_callbacks_find_in_the_model_and_the_locals(two_phases: Algorithm):
    found = []

    class Looks(BaseCallback):
        def _on_step(self) -> bool:
            assert self.model is two_phases
            assert self.training_env is two_phases.get_env()
            assert self.logger is two_phases.logger
            assert len(self.locals["dones"]) == len(self.locals["infos"]) == 1
            found.append(self.locals["self"])
            return True

    two_phases.learn(ONLINE, callback=Looks())
    assert found == [two_phases] * BOTH


def test_a_function_is_a_callback_and_stops_training_by_false(two_phases: Algorithm):
    calls = []

    def callback(locals_: dict, globals_: dict) -> bool:
        calls.append(locals_["self"].num_timesteps)
        return len(calls) < OFFLINE + 5

    two_phases.learn(ONLINE, callback=callback)
    assert two_phases.num_timesteps == calls[-1] == OFFLINE + 5
    assert isinstance(two_phases._init_callback(callback), ConvertCallback)


def test_what_a_step_leaves_is_there_in_both_phases_and_of_the_same_kind(two_phases: Algorithm):
    seen: list[dict[str, Any]] = []
    names = ("actions", "buffer_actions", "new_obs", "rewards", "dones", "infos")

    def callback(locals_: dict, globals_: dict) -> bool:
        seen.append({name: locals_[name] for name in names})
        return True

    two_phases.learn(ONLINE, callback=callback)
    offline, online = seen[0], seen[-1]
    for name in names[:-1]:
        assert offline[name].shape == online[name].shape, name
        assert offline[name].dtype == online[name].dtype, name
    assert offline["infos"] == [{}]
    assert sum(step["rewards"].sum() for step in seen[:OFFLINE]) == 0
    assert two_phases.action_space.contains(offline["actions"][0])


@pytest.mark.parametrize("as_list", [True, False])
def test_lists_of_callbacks(as_list: bool, two_phases: Algorithm):
    inner = [Events(), Events()]
    two_phases.learn(ONLINE, callback=inner if as_list else CallbackList(inner))
    assert inner[0].timesteps == inner[1].timesteps == list(range(1, BOTH + 1))


def test_evaluation_in_both_phases(algorithm, two_phases: Algorithm, tmp_path: Path):
    better = Events()
    evaluation = EvalCallback(
        make_vec_env(short_pendulum),
        callback_on_new_best=better,
        callback_after_eval=(after := Events()),
        eval_freq=6,
        n_eval_episodes=2,
        log_path=str(tmp_path / "log"),
        best_model_save_path=str(tmp_path / "best"),
        verbose=0,
    )
    two_phases.learn(ONLINE, callback=evaluation)
    with np.load(tmp_path / "log" / "evaluations.npz") as results:
        assert results["timesteps"].tolist() == after.timesteps == list(range(6, BOTH + 1, 6))
        assert results["results"].shape == (6, 2)
        assert results["results"].mean(axis=1).max() == pytest.approx(evaluation.best_mean_reward)
    best = algorithm.load(tmp_path / "best" / "best_model")
    assert best.num_timesteps == better.timesteps[-1]


def test_evaluation_does_not_disturb_a_chunk_in_flight(algorithm):
    def run(callback: BaseCallback | None) -> Algorithm:
        kwargs = small(algorithm, learning_starts=100)
        model = algorithm("MlpPolicy", make_vec_env(short_pendulum, seed=0), chunk_size=4, seed=0, **kwargs)
        model._has_learned = True
        return model.learn(14, callback=callback)

    env = make_vec_env(short_pendulum, n_envs=3)
    # deterministic evaluation draws no random number
    evaluation = EvalCallback(env, eval_freq=3, n_eval_episodes=3, deterministic=True, verbose=0)
    plain, evaluated = run(None), run(evaluation)
    np.testing.assert_array_equal(plain.replay_buffer.actions[:14], evaluated.replay_buffer.actions[:14])


def test_checkpoints_of_model_buffer_and_statistics(algorithm, pendulum_dataset, tmp_path: Path):
    env = VecNormalize(make_vec_env(short_pendulum))
    model = algorithm("MlpPolicy", env, offline_dataset=pendulum_dataset, offline_steps=OFFLINE, **small(algorithm))
    callback = CheckpointCallback(9, str(tmp_path), name_prefix="qam", save_replay_buffer=True, save_vecnormalize=True)
    model.learn(ONLINE, callback=callback)
    for steps in (9, 18, 27, 36):
        loaded_env = VecNormalize.load(
            str(tmp_path / f"qam_vecnormalize_{steps}_steps.pkl"), make_vec_env(short_pendulum)
        )
        loaded = algorithm.load(tmp_path / f"qam_{steps}_steps", env=loaded_env, offline_dataset=pendulum_dataset)
        loaded.load_replay_buffer(tmp_path / f"qam_replay_buffer_{steps}_steps")
        assert loaded.num_timesteps == steps
        # the step that the callback sees is stored afterwards
        assert loaded.replay_buffer.size() == max(steps - OFFLINE - 1, 0)
        assert loaded._n_offline_steps_done == min(steps, OFFLINE)
        loaded.learn(2, reset_num_timesteps=False)
        assert loaded.num_timesteps == max(steps, OFFLINE) + 2


def test_every_n_timesteps_in_both_phases_and_several_environments(algorithm, pendulum_dataset):
    env = make_vec_env(short_pendulum, n_envs=2)
    model = algorithm("MlpPolicy", env, offline_dataset=pendulum_dataset, offline_steps=OFFLINE, **small(algorithm))
    model.learn(ONLINE, callback=EveryNTimesteps(6, events := Events()))
    assert events.timesteps == list(range(6, BOTH + 1, 6))


def test_a_reward_threshold_stops_in_the_offline_phase(two_phases: Algorithm):
    stop = StopTrainingOnRewardThreshold(-1e9, verbose=0)
    evaluation = EvalCallback(
        make_vec_env(short_pendulum), callback_on_new_best=stop, eval_freq=5, n_eval_episodes=1, verbose=0
    )
    two_phases.learn(ONLINE, callback=evaluation)
    assert two_phases.num_timesteps == 5
    assert two_phases.replay_buffer.size() == 0


def test_no_improvement_stops_training(two_phases: Algorithm):
    class Constant(gym.RewardWrapper):
        def reward(self, reward: float) -> float:
            return 0.0

    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=1, verbose=0)
    evaluation = EvalCallback(
        make_vec_env(lambda: Constant(short_pendulum())),
        callback_after_eval=stop,
        eval_freq=5,
        n_eval_episodes=1,
        verbose=0,
    )
    two_phases.learn(100, callback=evaluation)
    # the first evaluation is the best, two may follow, and the next is one too many
    assert two_phases.num_timesteps == 20


def test_a_number_of_episodes_stops_training_and_gradient_steps_are_none(two_phases: Algorithm):
    two_phases.learn(100, callback=StopTrainingOnMaxEpisodes(max_episodes=3, verbose=0))
    assert two_phases.num_timesteps == OFFLINE + 3 * 6


def test_sb3s_progress_bar_may_be_passed_as_a_callback_too(algorithm):
    callback = ProgressBarCallback()
    algorithm("MlpPolicy", short_pendulum(), **small(algorithm)).learn(20, callback=callback)
    assert callback.pbar.n == 20


def test_what_is_no_callback_is_refused_before_anything_happens(two_phases: Algorithm):
    with pytest.raises(TypeError, match=r"callback must be an SB3 callback, a list of them or a function, got 'eval'"):
        two_phases.learn(ONLINE, callback=["eval"])
    assert two_phases.num_timesteps == 0
