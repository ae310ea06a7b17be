"""pretrain() and learn(): what they count, call, log and draw from."""

import csv
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_qam import QAM
from sb3_qam.common.phases import PhaseProgressBarCallback
from tests.conftest import record, write_dataset
from tests.contract.conftest import RandomEnv

SMALL = {"batch_size": 16, "flow_steps": 3, "policy_kwargs": {"net_arch": [16, 16]}, "buffer_size": 1000}
LOGGED = ["bc_loss", "critic_loss", "adjoint_loss", "q_mean", "q_std", "adjoint_norm", "policy_shift", "grad_norm"]


class Watch(BaseCallback):
    """Notes what each call sees."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.timesteps: list[int] = []
        self.updates: list[int] = []
        self.starts = self.ends = 0

    def _on_training_start(self) -> None:
        self.starts += 1

    def _on_step(self) -> bool:
        self.timesteps.append(self.num_timesteps)
        self.updates.append(self.model._n_updates)
        return self.num_timesteps != self.stop_at

    def _on_training_end(self) -> None:
        self.ends += 1


def test_pretrain_is_a_phase_of_gradient_steps(pendulum_dataset):
    model, watch = QAM("FlowPolicy", "Pendulum-v1", **SMALL), Watch()
    assert model.pretrain(pendulum_dataset, gradient_steps=7, callback=watch) is model
    assert watch.timesteps == watch.updates == list(range(1, 8))
    assert (watch.starts, watch.ends) == (1, 1)
    assert model.num_timesteps == model._n_updates == 7
    assert model.replay_buffer.size() == 0
    model.pretrain(gradient_steps=3, callback=watch, reset_num_timesteps=False)
    assert model.num_timesteps == 10
    model.pretrain(gradient_steps=2)
    assert model.num_timesteps == 2
    assert model._n_updates == 12


def test_learn_continues_the_axis_after_pretrain(pendulum_dataset):
    model, watch = QAM("FlowPolicy", "Pendulum-v1", **SMALL), Watch()
    model.pretrain(pendulum_dataset, gradient_steps=7)
    model.learn(5, callback=watch, reset_num_timesteps=False)
    assert watch.timesteps == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_learn_alone_does_both_phases_on_one_axis(pendulum_dataset, n_envs: int):
    env = make_vec_env("Pendulum-v1", n_envs=n_envs)
    watch = Watch()
    model = QAM("FlowPolicy", env, offline_dataset=pendulum_dataset, offline_steps=6, **SMALL)
    model.learn(8, callback=watch)
    assert watch.timesteps == [*range(1, 7), *range(6 + n_envs, 15, n_envs)]
    assert (watch.starts, watch.ends) == (2, 2)
    assert model.replay_buffer.size() * n_envs == 8
    assert model.num_timesteps == 14
    # the offline phase is done once
    model.learn(4)
    assert model.num_timesteps == 4


def test_steps_of_pretrain_count_as_offline_steps(pendulum_dataset):
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, offline_steps=10, **SMALL)
    model.pretrain(gradient_steps=4)
    model.learn(2, reset_num_timesteps=False)
    assert model.num_timesteps == 12
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, offline_steps=10, **SMALL)
    assert model.pretrain().num_timesteps == 10


def test_a_callback_stops_either_phase(pendulum_dataset):
    kwargs = {"offline_dataset": pendulum_dataset, "offline_steps": 6, **SMALL}
    offline = QAM("FlowPolicy", "Pendulum-v1", **kwargs).learn(5, callback=Watch(stop_at=4))
    assert offline.num_timesteps == 4
    assert offline.replay_buffer.size() == 0
    # what is left of the offline phase comes first when training continues
    offline.learn(1, reset_num_timesteps=False)
    assert offline.num_timesteps == 7
    online = QAM("FlowPolicy", "Pendulum-v1", **kwargs).learn(5, callback=Watch(stop_at=8))
    assert online.num_timesteps == 8


def test_the_policy_acts_from_the_first_step_after_an_offline_phase(pendulum_dataset, monkeypatch):
    model = QAM("FlowPolicy", "Pendulum-v1", learning_starts=1000, **SMALL)
    sampled = []
    space = type(model.action_space)
    original = space.sample
    monkeypatch.setattr(space, "sample", lambda self, *args, **kw: (sampled.append(1), original(self, *args, **kw))[1])
    model.learn(3)
    assert len(sampled) == 3
    model.pretrain(pendulum_dataset, gradient_steps=2)
    sampled.clear()
    model.learn(5)
    assert not sampled


def test_online_batches_come_from_the_union(pendulum_dataset):
    shares = []

    class Shares(QAM):
        def _sample_batch(self, batch_size: int):
            batch = super()._sample_batch(batch_size)
            shares.append((batch.actions == 0.25).float().mean().item())
            return batch

    # the marked action can only be online: it replaces what is stored
    for fraction in (None, 0.5, 1.0, 0.0):
        shares.clear()
        model = Shares(
            "FlowPolicy",
            "Pendulum-v1",
            offline_dataset=pendulum_dataset,
            offline_fraction=fraction,
            learning_starts=0,
            **{**SMALL, "batch_size": 64},
        )
        original = model.replay_buffer.add
        model.replay_buffer.add = lambda obs, next_obs, action, *rest, add=original: add(  # type: ignore[method-assign]
            obs, next_obs, np.full_like(action, 0.25), *rest
        )
        model.learn(50)
        if fraction is None:
            # 200 offline and on average 25 online transitions
            assert 0.02 < np.mean(shares) < 0.25
        else:
            assert np.allclose(shares, 1 - fraction)


def test_sb3_callbacks_work_in_both_phases(pendulum_dataset, tmp_path: Path):
    eval_env = make_vec_env("Pendulum-v1")
    evaluation = EvalCallback(
        eval_env, n_eval_episodes=1, eval_freq=5, log_path=str(tmp_path), best_model_save_path=str(tmp_path), verbose=0
    )
    inner = Watch()
    callbacks = [
        evaluation,
        CheckpointCallback(4, str(tmp_path / "checkpoints"), save_replay_buffer=True),
        EveryNTimesteps(3, inner),
        StopTrainingOnMaxEpisodes(1000),
    ]
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, offline_steps=10, **SMALL)
    model.learn(10, callback=callbacks, progress_bar=True)
    with np.load(tmp_path / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [5, 10, 15, 20]
    assert {path.name for path in (tmp_path / "checkpoints").glob("rl_model_*_steps.zip")} == {
        f"rl_model_{steps}_steps.zip" for steps in (4, 8, 12, 16, 20)
    }
    assert inner.timesteps == [3, 6, 9, 12, 15, 18]
    assert (tmp_path / "best_model.zip").exists()
    # a checkpoint of the middle of the offline phase continues it
    loaded = QAM.load(tmp_path / "checkpoints" / "rl_model_4_steps", env=make_vec_env("Pendulum-v1"))
    loaded.offline_dataset = pendulum_dataset
    loaded.learn(3, reset_num_timesteps=False)
    assert loaded.num_timesteps == 13


@pytest.mark.parametrize("kind", ["none", "list", "function", "object"])
def test_progress_bar_counts_gradient_steps_with_any_callback(kind: str, pendulum_dataset, monkeypatch):
    watch = Watch()
    callback = {
        "none": None,
        "list": [watch],
        "function": lambda locals_, globals_: True,
        "object": CallbackList([watch]),
    }[kind]
    positions = []
    close = ProgressBarCallback._on_training_end

    def note_and_close(bar: ProgressBarCallback) -> None:
        positions.append(bar.pbar.n)
        close(bar)

    monkeypatch.setattr(ProgressBarCallback, "_on_training_end", note_and_close)
    model = QAM("FlowPolicy", make_vec_env("Pendulum-v1", n_envs=3), **SMALL)
    model.pretrain(pendulum_dataset, gradient_steps=5, callback=callback, progress_bar=True)
    assert positions == [5]


def test_without_an_environment(pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", env=None, offline_dataset=pendulum_dataset, **SMALL)
    assert model.observation_space == pendulum_dataset.observation_space
    assert model.action_space == pendulum_dataset.action_space
    stop = StopTrainingOnRewardThreshold(-1e6)
    evaluation = EvalCallback(
        make_vec_env("Pendulum-v1"), callback_on_new_best=stop, eval_freq=4, n_eval_episodes=1, verbose=0
    )
    model.pretrain(gradient_steps=10, callback=[evaluation, CheckpointCallback(2, str(tmp_path))], progress_bar=True)
    assert model.num_timesteps == 4  # stopped by the threshold
    assert model.env is None
    action, state = model.predict(np.zeros((5, 3), np.float32))
    assert action.shape == (5, 1)
    assert state is None
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model")
    np.testing.assert_array_equal(*(m.predict(np.ones(3), deterministic=True)[0] for m in (model, loaded)))
    loaded.set_env(gym.make("Pendulum-v1"))
    loaded.pretrain(pendulum_dataset, gradient_steps=1).learn(3)
    model.set_env(gym.make("Pendulum-v1"))
    model.learn(3)
    assert model.replay_buffer.size() == 3


def test_what_is_logged_in_both_phases(pendulum_dataset, tmp_path: Path):
    env = gym.make("Pendulum-v1", max_episode_steps=10)
    model = QAM("FlowPolicy", env, learning_starts=0, **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.pretrain(pendulum_dataset, gradient_steps=6, log_interval=3)
    model.learn(20, log_interval=1, reset_num_timesteps=False)
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["time/total_timesteps"] for row in rows] == ["3", "6", "16", "26"]
    for row in rows:
        assert all(np.isfinite(float(row[f"train/{key}"])) for key in LOGGED)
        assert float(row["train/learning_rate"]) == pytest.approx(3e-4)
    assert [row["train/n_updates"] for row in rows[:2]] == ["3", "6"]
    assert [row["offline/gradient_steps"] for row in rows[:2]] == ["3", "6"]
    assert rows[0]["offline/transitions"] == "200"
    assert rows[0]["offline/episodes"] == "5"
    assert all(float(row["rollout/ep_len_mean"]) == 10 for row in rows[2:])


def test_phases_are_announced_and_the_last_steps_logged(pendulum_dataset, capsys: pytest.CaptureFixture[str]):
    """An episode that is not over is no reason to show nothing of the online phase."""
    env = gym.make("Pendulum-v1", max_episode_steps=100)
    steps = {"offline_dataset": pendulum_dataset, "bc_steps": 2, "offline_steps": 3}
    model = QAM("FlowPolicy", env, learning_starts=0, verbose=1, **steps, **SMALL)
    model.learn(6)
    output = capsys.readouterr().out
    for line in (
        "Offline, clone phase: 2 gradient steps\n",
        "Offline phase: 3 gradient steps\n",
        "Online phase: 6 environment steps\n",
    ):
        assert output.count(line) == 1
    online = output.split("Online phase")[1]
    assert "critic_loss" in online
    assert "| 11 " in online
    # Without an offline phase there is nothing to tell apart
    model.learn(3)
    assert "phase" not in capsys.readouterr().out


def test_progress_bars_say_the_phase(pendulum_dataset):
    names = []

    class Bar(PhaseProgressBarCallback):
        def _on_training_end(self) -> None:
            names.append((self.pbar.desc, self.pbar.total, self.pbar.n))
            super()._on_training_end()

    steps = {"offline_dataset": pendulum_dataset, "bc_steps": 2, "offline_steps": 3}
    env = make_vec_env("Pendulum-v1", n_envs=2)
    QAM("FlowPolicy", env, learning_starts=0, **steps, **SMALL).learn(6, callback=Bar())
    assert names == [("offline, clone: ", 2, 2), ("offline: ", 3, 3), ("online: ", 6, 6)]


def test_both_phases_write_one_tensorboard_run(pendulum_dataset, tmp_path: Path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    env = gym.make("Pendulum-v1", max_episode_steps=10)
    model = QAM("FlowPolicy", env, learning_starts=0, tensorboard_log=str(tmp_path), **SMALL)
    model.pretrain(pendulum_dataset, gradient_steps=6, log_interval=3)
    model.learn(20, log_interval=1, reset_num_timesteps=False)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "QAM_1"
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/bc_loss")] == [3, 6, 16, 26]


def test_logged_values_are_means_since_the_last_output(pendulum_dataset):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, seed=0, **SMALL)
    model.pretrain(gradient_steps=1)
    critic_losses = []

    class Keeps(QAM):
        def _optimize(self, losses, reported, targets):
            critic_losses.append(losses["critic_loss"].item())
            super()._optimize(losses, reported, targets)

    model.__class__ = Keeps
    model.train(gradient_steps=4, batch_size=16)
    model.train(gradient_steps=1, batch_size=16)
    model._record_updates()
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(np.mean(critic_losses))


def test_schedules_run_over_both_phases(pendulum_dataset):
    rates = []

    class Rates(BaseCallback):
        def _on_step(self) -> bool:
            rates.append(self.model.policy.optimizer.param_groups[0]["lr"])
            return True

    model = QAM(
        "FlowPolicy",
        "Pendulum-v1",
        learning_rate=lambda remaining: 1e-3 * remaining,
        offline_dataset=pendulum_dataset,
        offline_steps=10,
        learning_starts=0,
        **SMALL,
    )
    model.learn(10, callback=Rates())
    # The rate is set before the step that the callback then sees
    assert rates[:10] == pytest.approx([1e-3 * (1 - step / 20) for step in range(10)])
    assert rates[11:] == pytest.approx([1e-3 * (1 - step / 20) for step in range(11, 20)])


@pytest.mark.parametrize("n_steps", [1, 3])
def test_vec_normalize_applies_to_offline_data_too(pendulum_dataset, n_steps: int):
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2))
    model = QAM("FlowPolicy", env, n_steps=n_steps, offline_dataset=pendulum_dataset, learning_starts=0, **SMALL)
    model.learn(40)
    model.pretrain(gradient_steps=3)
    model.offline_fraction = 1.0
    offline = model.offline_buffer.observations
    normalized = {tuple(row) for row in env.normalize_obs(offline).astype(np.float32).round(3)}
    assert {tuple(row) for row in model._sample_batch(20).observations.numpy().round(3)} <= normalized
    assert not {tuple(row) for row in offline.round(3)} & normalized


def test_initial_statistics_are_as_exact_as_those_of_single_steps():
    # Pascals of a barometer
    observations = (101_325 + 50 * np.random.default_rng(0).normal(size=(30_000, 2))).astype(np.float32)
    space, actions = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1.0, 1.0, (1,))
    episode = {"observations": observations, "actions": np.zeros((29_999, 1)), "rewards": np.zeros(29_999)}
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(spaces.Box(101_000, 102_000, (2,)), actions)]))
    env.reset()
    model = QAM("FlowPolicy", env, offline_dataset=write_dataset([episode], space, actions), **SMALL)
    model.pretrain(gradient_steps=1)
    expected = observations[:-1].astype(np.float64)
    np.testing.assert_allclose(env.obs_rms.mean, expected.mean(axis=0), atol=1)
    np.testing.assert_allclose(env.obs_rms.var, expected.var(axis=0), rtol=0.1)


@pytest.mark.parametrize("is_dict", [False, True])
def test_vec_normalize_has_its_initial_statistics_from_the_dataset(pendulum_dataset, is_dict: bool):
    def make() -> gym.Env:
        env = gym.make("Pendulum-v1")
        space = spaces.Dict({"a": env.observation_space})
        return TransformObservation(env, lambda obs: {"a": obs}, space) if is_dict else env

    dataset = pendulum_dataset
    if is_dict:
        episodes = [
            {"observations": {"a": each.observations}, "actions": each.actions, "rewards": each.rewards}
            for each in dataset
        ]
        dataset = write_dataset(episodes, spaces.Dict({"a": dataset.observation_space}), dataset.action_space)
    env = VecNormalize(DummyVecEnv([make]), gamma=0.9)
    model = QAM("FlowPolicy", env, offline_dataset=dataset, **SMALL).pretrain(gradient_steps=2)
    observations = np.concatenate([each.observations for each in pendulum_dataset])
    statistics = env.obs_rms["a"] if is_dict else env.obs_rms
    np.testing.assert_allclose(statistics.mean, observations.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(statistics.var, observations.var(axis=0), rtol=0.05)
    returns = []
    for episode in pendulum_dataset:
        running = 0.0
        for reward in episode.rewards:
            running = 0.9 * running + reward
            returns.append(running)
    np.testing.assert_allclose(env.ret_rms.mean, np.mean(returns), rtol=1e-3)
    np.testing.assert_allclose(env.ret_rms.var, np.var(returns), rtol=1e-3)
    # once, and not where the statistics are to stay
    count = statistics.count
    model.pretrain(gradient_steps=1, reset_num_timesteps=False)
    assert statistics.count == count
    frozen = VecNormalize(DummyVecEnv([make]), training=False)
    QAM("FlowPolicy", frozen, offline_dataset=dataset, **SMALL).pretrain(gradient_steps=1)
    assert (frozen.obs_rms["a"] if is_dict else frozen.obs_rms).count < 1


@pytest.mark.parametrize(
    "kwargs",
    [
        {"train_freq": (1, "episode"), "gradient_steps": -1},
        {"train_freq": np.int64(4), "gradient_steps": 2, "learning_rate": np.float32(1e-3)},
        {"train_freq": [2, "step"], "max_grad_norm": float("inf")},
        {"action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))},
        {"n_steps": 3},
        {"inverse_temperature": 0.0},
        {"policy_kwargs": {"net_arch": [16], "ode_method": "dopri5", "ode_options": {"rtol": 1e-2, "atol": 1e-2}}},
        {"policy_kwargs": {"net_arch": {"pi": [16], "qf": [8, 8]}, "n_critics": 5, "flow_layer_norm": True}},
    ],
    ids=str,
)
def test_sb3_arguments_in_online_learning(kwargs: dict):
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    model = QAM("FlowPolicy", env, learning_starts=10, **{**SMALL, **kwargs}).learn(60)
    assert model._n_updates > 0


def test_hindsight_replay():
    env = BitFlippingEnv(n_bits=4, continuous=True)
    model = QAM("MultiInputPolicy", env, learning_starts=10, replay_buffer_class=HerReplayBuffer, **SMALL)
    model.learn(60)
    assert model._n_updates == 50


def test_a_model_that_learns_online_without_the_dataset_still_pretrains_on_it(pendulum_dataset):
    kwargs = {"offline_dataset": pendulum_dataset, "offline_steps": 5, "offline_fraction": 0.0, "learning_starts": 0}
    model = QAM("FlowPolicy", "Pendulum-v1", **kwargs, **SMALL).learn(10)
    assert model.num_timesteps == model._n_updates == 15
    online = {tuple(row) for row in model.replay_buffer.actions[:10, 0]}
    assert {tuple(row) for row in model._sample_batch(50).actions.numpy()} <= online


def test_hindsight_replay_after_an_offline_phase():
    env = BitFlippingEnv(n_bits=4, continuous=True, max_steps=6)
    dataset = write_dataset(record(env, 5), env.observation_space, env.action_space)
    kwargs = {"offline_dataset": dataset, "offline_steps": 5, "replay_buffer_class": HerReplayBuffer, **SMALL}
    model = QAM("MultiInputPolicy", env, learning_starts=2, **kwargs).learn(9)
    # a phase in between resets the environment: the episode that was open ends there
    model.pretrain(gradient_steps=2).learn(9, reset_num_timesteps=False)
    assert model.replay_buffer.ep_length.max() <= 6


def test_any_number_of_environments_after_training_without_one(pendulum_dataset):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, n_steps=2, **SMALL).pretrain(gradient_steps=2)
    model.set_env(make_vec_env("Pendulum-v1", n_envs=3))
    model.learn(12)
    assert model.replay_buffer.size() == 4
    assert model.replay_buffer.n_envs == 3


def test_a_short_offline_phase_is_logged_at_its_end(pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.pretrain(gradient_steps=7, log_interval=5)
    with open(tmp_path / "progress.csv") as file:
        assert [row["offline/gradient_steps"] for row in csv.DictReader(file)] == ["5", "7"]
    model.pretrain(gradient_steps=7, log_interval=5, callback=Watch(stop_at=2))
    with open(tmp_path / "progress.csv") as file:
        assert [row["offline/gradient_steps"] for row in csv.DictReader(file)] == ["5", "7", "9"]


def test_a_replay_buffer_of_another_class_with_n_steps_gets_sb3_warning():
    from stable_baselines3.common.buffers import NStepReplayBuffer

    kwargs = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.9}}
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored"):
        model = QAM("FlowPolicy", "Pendulum-v1", n_steps=3, learning_starts=0, **kwargs, **SMALL)
    model.learn(5)
    batch = model._sample_batch(8)
    assert batch.discounts.max() <= 0.9


def test_resetting_the_environment_ends_trajectories():
    model = QAM("FlowPolicy", "Pendulum-v1", n_steps=3, learning_starts=1000, **SMALL)
    model.learn(4)
    model.learn(4)
    batch = model.replay_buffer._get_samples(np.arange(8))
    # steps 2 and 3 would cross the reset, 6 and 7 what has not been written
    assert batch.valid.tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert batch.masks.tolist()[:2] == [1, 1]


def test_learn_clones_first_and_only_once(pendulum_dataset, tmp_path: Path):
    kwargs = SMALL | {"offline_dataset": pendulum_dataset.id, "bc_steps": 6, "offline_steps": 4}
    model = QAM("FlowPolicy", "Pendulum-v1", **kwargs)
    model.pretrain(gradient_steps=2, objective="bc")
    model.learn(3, reset_num_timesteps=False)
    assert (model._n_bc_steps_done, model._n_offline_steps_done, model.num_timesteps) == (6, 4, 13)
    model.save(tmp_path / "model")
    again = QAM.load(tmp_path / "model", env=model.get_env(), bc_steps=8, offline_steps=5)
    again.learn(2, reset_num_timesteps=False)
    # Cloning now would give up the policy
    assert (again._n_bc_steps_done, again._n_offline_steps_done) == (6, 5)
    with pytest.raises(ValueError, match="bc_steps=1 needs offline data"):
        QAM("FlowPolicy", "Pendulum-v1", **SMALL, bc_steps=1).learn(1)
