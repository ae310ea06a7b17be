"""The callbacks of this package, in both phases."""

import math
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from sb3_qam import IFQL, QAM, ReBRAC, fitted_q_evaluation
from sb3_qam.callbacks import BestModelCallback, FlowDiagnosticsCallback, OfflineEvalCallback
from tests.conftest import record, write_dataset
from tests.contract.conftest import Algorithm, RandomEnv, images, parameters_of, same_parameters, small

OFFLINE, ONLINE = 12, 24
FLOW = {"flow/adjoint_norm_0", "flow/adjoint_norm_1", "flow/ensemble_disagreement", "flow/path_kl"}
EVAL = {f"eval_offline/{name}" for name in ("td_error", "data_value", "policy_value", "bc_loss")}


class Kept(KVWriter):
    """Keeps what is logged, by the step it is logged at."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append((step, dict(key_values)))

    def close(self) -> None:
        pass

    def of(self, name: str) -> dict[int, float]:
        return {step: values[name] for step, values in self.rows if name in values}

    def names(self, prefix: str) -> set[str]:
        return {name for _, values in self.rows for name in values if name.startswith(prefix)}


def short_pendulum() -> gym.Env:
    return gym.make("Pendulum-v1", max_episode_steps=6)


def held_out() -> Any:
    env = gym.make("Pendulum-v1", max_episode_steps=40)
    return write_dataset(record(env, 3, seed=50), env.observation_space, env.action_space)


def two_phases(dataset: Any, log: Kept | None = None, algorithm: type[Algorithm] = QAM, **kwargs: Any) -> Algorithm:
    env, kwargs = make_vec_env(short_pendulum, seed=0), small(algorithm, seed=0, **kwargs)
    model = algorithm("MlpPolicy", env, offline_dataset=dataset, offline_steps=OFFLINE, **kwargs)
    model.set_logger(Logger(None, [] if log is None else [log]))
    return model


class Dropping(nn.Module):
    """In training mode it draws random numbers, and keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return self.layers(inputs)


VARIANTS = {
    "plain": {},
    "chunk": {"chunk_size": 3},
    "edit": {"edit_scale": 0.2, "best_of_n": 2},
    "bptt": {"adjoint": "bptt"},
    "one-step": {"distill_coef": 1.0, "n_steps": 3},
    "budget": {"kl_budget": 1.0, "policy_kwargs": {"ode_method": "midpoint"}},
    "ifql": {"algorithm": IFQL, "chunk_size": 3},
    "rebrac": {"algorithm": ReBRAC, "n_steps": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_the_same_with_and_without(variant: str, pendulum_dataset):
    kwargs = VARIANTS[variant]
    log = Kept()
    callbacks = [FlowDiagnosticsCallback(log_freq=5, n_states=7), OfflineEvalCallback(held_out(), eval_freq=4)]
    plain = two_phases(pendulum_dataset, **kwargs).learn(ONLINE)
    watched = two_phases(pendulum_dataset, log, **kwargs).learn(ONLINE, callback=callbacks)
    assert same_parameters(parameters_of(plain), parameters_of(watched))
    np.testing.assert_array_equal(plain.replay_buffer.actions, watched.replay_buffer.actions)
    flow = FLOW if kwargs.get("algorithm", QAM) is QAM else {"flow/ensemble_disagreement"}
    assert log.names("flow/") == flow
    assert log.names("eval_offline/") == EVAL
    assert all(math.isfinite(value) for name in flow | EVAL for value in log.of(name).values())
    # one axis of timesteps for both phases
    assert list(log.of("flow/ensemble_disagreement")) == [5, 10, 15, 20, 25, 30, 35]
    assert list(log.of("eval_offline/td_error")) == list(range(4, 37, 4))


def test_modes_gradients_and_generators_are_as_they_were(pendulum_dataset):
    class Noisy(FlattenExtractor):
        def __init__(self, observation_space: spaces.Space) -> None:
            super().__init__(observation_space)
            self.flatten = Dropping()

    policy_kwargs = {"features_extractor_class": Noisy, "net_arch": [8]}
    found: dict[str, list[Any]] = {"with": [], "without": []}

    class Looks(BaseCallback):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def _on_step(self) -> bool:
            modules = self.model.policy.modules()
            gradients = [p.grad if p.grad is None else p.grad.clone() for p in self.model.policy.parameters()]
            drawn = np.random.get_state()[2], th.get_rng_state().sum().item()
            found[self.name].append(([module.training for module in modules], gradients, drawn))
            return True

    watchers: list[BaseCallback] = [FlowDiagnosticsCallback(log_freq=1, n_states=7), OfflineEvalCallback(held_out(), 1)]
    with_them = two_phases(pendulum_dataset, policy_kwargs=policy_kwargs).learn(6, callback=[*watchers, Looks("with")])
    without = two_phases(pendulum_dataset, policy_kwargs=policy_kwargs).learn(6, callback=Looks("without"))
    for one, other in zip(found["with"], found["without"], strict=True):
        assert one[0] == other[0]
        assert one[2] == other[2]
        for gradient, expected in zip(one[1], other[1], strict=True):
            assert (gradient is None and expected is None) or th.equal(gradient, expected)
    assert same_parameters(parameters_of(with_them), parameters_of(without))


def test_cloning_has_no_policy_and_no_critic_to_show(algorithm: type[Algorithm], pendulum_dataset):
    log = Kept()
    model = two_phases(pendulum_dataset, log, algorithm)
    callbacks = [FlowDiagnosticsCallback(log_freq=5), OfflineEvalCallback(held_out(), eval_freq=5)]
    model.pretrain(gradient_steps=5, objective="bc", callback=callbacks)
    assert log.names("flow/") == set()
    assert log.names("eval_offline/") == {"eval_offline/bc_loss"}
    # and afterwards there are
    model.pretrain(gradient_steps=5, reset_num_timesteps=False, callback=callbacks)
    assert "flow/ensemble_disagreement" in log.names("flow/")
    assert list(log.of("eval_offline/bc_loss")) == [5, 10]


def test_fitted_q_evaluation_is_recorded_where_it_is_asked_for(pendulum_dataset):
    log, dataset = Kept(), held_out()
    plain = two_phases(pendulum_dataset).pretrain(gradient_steps=2, objective="bc").pretrain(gradient_steps=2)
    model = two_phases(pendulum_dataset, log)
    names = {f"eval_offline/{name}" for name in ("fqe", "fqe_low", "fqe_high", "fqe_halfway")}
    callback = OfflineEvalCallback(dataset, eval_freq=2, fqe_steps=3)
    model.pretrain(gradient_steps=2, objective="bc", callback=callback)
    assert log.names("eval_offline/") == {"eval_offline/bc_loss", *names}
    model.pretrain(gradient_steps=2, callback=callback)
    assert log.names("eval_offline/") == EVAL | names
    assert log.of("eval_offline/fqe")[2] == pytest.approx(fitted_q_evaluation(model, dataset, 3).value)
    assert same_parameters(parameters_of(model), parameters_of(plain))


def test_online_alone_states_are_drawn_once_there_are_any():
    log = Kept()
    model = QAM("MlpPolicy", make_vec_env(short_pendulum, n_envs=2), **small())
    model.set_logger(Logger(None, [log]))
    model.learn(12, callback=FlowDiagnosticsCallback(log_freq=1, n_states=4))
    # the callback is called before the first step is stored
    assert list(log.of("flow/path_kl")) == [4, 6, 8, 10, 12]


def test_each_scalar_is_what_it_says(pendulum_dataset):
    log = Kept()
    dataset = held_out()
    model = two_phases(pendulum_dataset, log, chunk_size=2, inverse_temperature=2.0)
    model.pretrain(gradient_steps=3, callback=OfflineEvalCallback(dataset, eval_freq=3, batch_size=10))
    buffer = model.make_offline_buffer(dataset)
    # 40 steps in each of three episodes, of which the last begins no chunk of two
    rows = buffer.complete_starts()
    assert len(rows) == 3 * 39
    batch = buffer._get_samples(rows)
    assert batch.valid.all()
    with th.no_grad():
        values = model.critic(model.critic.features(batch.observations), batch.actions)
    assert log.of("eval_offline/data_value")[3] == pytest.approx(float(values.mean()), rel=1e-4)

    # An adjoint is as large as the temperature asks for, and without one the flow that acts is the behavior
    th.manual_seed(0)
    norms = model.flow_diagnostics(2000)
    model.inverse_temperature = 4.0
    th.manual_seed(0)
    twice = model.flow_diagnostics(2000)
    for k in range(2):
        assert float(twice[f"adjoint_norm_{k}"] / norms[f"adjoint_norm_{k}"]) == pytest.approx(2, rel=0.2)
    model.policy.policy_flow.load_state_dict(model.policy.behavior_flow_target.state_dict())
    assert float(model.flow_diagnostics(20)["path_kl"]) == 0
    for parameter in model.critic.mlp.parameters():
        parameter.data[1:] = parameter.data[:1]
    assert float(model.flow_diagnostics(20)["ensemble_disagreement"]) == pytest.approx(0, abs=1e-6)


def test_training_lowers_the_loss_of_cloning_on_episodes_it_has_not_seen():
    env = gym.make("Pendulum-v1", max_episode_steps=40)

    def policy(observation: np.ndarray) -> np.ndarray:
        return 2 * observation[1:2]

    seen, unseen = (
        write_dataset(record(env, 5, policy, seed), env.observation_space, env.action_space) for seed in (0, 100)
    )
    log = Kept()
    model = two_phases(seen, log, learning_rate=3e-3, batch_size=64, policy_kwargs={"net_arch": [64]})
    model.pretrain(gradient_steps=300, objective="bc", callback=OfflineEvalCallback(unseen, eval_freq=100))
    losses = list(log.of("eval_offline/bc_loss").values())
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)


def test_transitions_and_noise_are_the_same_each_time(pendulum_dataset):
    log = Kept()
    model = two_phases(pendulum_dataset, log, learning_rate=0.0, tau=0.0)
    model.pretrain(gradient_steps=4, callback=OfflineEvalCallback(held_out(), eval_freq=1, n_transitions=20))
    for name in EVAL:
        assert len(log.of(name)) == 4
        assert len(set(log.of(name).values())) == 1


def test_evaluation_normalizes_as_training_does(pendulum_dataset):
    log = Kept()
    env = VecNormalize(make_vec_env(short_pendulum))
    model = QAM("MlpPolicy", env, offline_dataset=pendulum_dataset, offline_steps=4, **small())
    model.set_logger(Logger(None, [log]))
    dataset = held_out()
    model.pretrain(gradient_steps=2, callback=OfflineEvalCallback(dataset, eval_freq=2))
    batch = (buffer := model.make_offline_buffer(dataset))._get_samples(buffer.complete_starts(), env)
    with th.no_grad():
        values = model.critic(model.critic.features(batch.observations), batch.actions)
    assert log.of("eval_offline/data_value")[2] == pytest.approx(float(values.mean()), rel=1e-4)


def test_images_and_dicts(tmp_path: Path):
    space = spaces.Dict(image=images(), vector=spaces.Box(-1.0, 1.0, (2,)))
    env = RandomEnv(space)
    dataset = write_dataset(record(env, 2), space, env.action_space)
    kwargs = small(
        policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}},
        random_shift=2,
        tensorboard_log=str(tmp_path),
    )
    model = QAM("MultiInputPolicy", None, offline_dataset=dataset, **kwargs)
    flow = FlowDiagnosticsCallback(log_freq=2, n_states=5, n_figure_states=2, n_figure_actions=10)
    model.pretrain(gradient_steps=4, callback=[flow, OfflineEvalCallback(dataset, eval_freq=2)])
    events = EventAccumulator(str(tmp_path / "QAM_1")).Reload()
    assert [event.step for event in events.Images("flow/actions")] == [2, 4]


@pytest.mark.parametrize("n_dims", [1, 3])
def test_figures_are_for_tensorboard_alone(n_dims: int, tmp_path: Path, capsys):
    env = RandomEnv(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (n_dims,)))
    model = QAM("MlpPolicy", env, chunk_size=2, verbose=1, tensorboard_log=str(tmp_path), **small())
    model.learn(20, callback=FlowDiagnosticsCallback(log_freq=10, n_figure_actions=20))
    events = EventAccumulator(str(tmp_path / "QAM_1")).Reload()
    assert [event.step for event in events.Images("flow/actions")] == [10, 20]
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("flow/")} == FLOW
    assert "path_kl" in capsys.readouterr().out


def test_the_best_model_of_an_offline_run(pendulum_dataset, tmp_path: Path):
    log = Kept()
    path = tmp_path / "deeper" / "best"
    model = two_phases(pendulum_dataset, log, learning_rate=1e-2)
    saved = {}

    class Keeps(BestModelCallback):
        def _save(self, value: float) -> None:
            super()._save(value)
            saved[self.num_timesteps] = parameters_of(self.model)

    # before the evaluation in the list: it is the log that it listens to
    best = Keeps("eval_offline/td_error", "min", path)
    model.learn(ONLINE, callback=[best, OfflineEvalCallback(held_out(), eval_freq=3)])
    errors = log.of("eval_offline/td_error")
    assert best.best_value == min(errors.values())
    expected = [step for step in errors if errors[step] == min(errors[s] for s in errors if s <= step)]
    assert list(saved) == expected
    loaded = QAM.load(path)
    assert loaded.num_timesteps == expected[-1]
    assert same_parameters(parameters_of(loaded), saved[expected[-1]])
    assert os.listdir(path.parent) == ["best.zip"]


def test_the_best_model_by_what_others_log(pendulum_dataset, tmp_path: Path):
    log = Kept()
    names = ["train/bc_loss", "eval/mean_reward", "rollout/ep_rew_mean"]
    callbacks: list[BaseCallback] = [BestModelCallback(name, path=tmp_path / name.replace("/", "_")) for name in names]
    evaluation = EvalCallback(make_vec_env(short_pendulum), eval_freq=6, n_eval_episodes=1, verbose=0)
    with pytest.warns(UserWarning, match="no finite 'rollout/ep_rew_mean' in the log so far"):
        two_phases(pendulum_dataset, log).learn(ONLINE, callback=[*callbacks, evaluation])
    for name, callback in zip(names, callbacks, strict=True):
        values = log.of(name)
        step = max(values, key=lambda step, values=values: values[step])
        assert callback.best_value == values[step]
        assert QAM.load(callback.path).num_timesteps == step


class Logs(BaseCallback):
    """Logs one value after the other, one at each step."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = iter(values)

    def _on_step(self) -> bool:
        self.logger.record("test/value", next(self.values))
        self.logger.dump(self.num_timesteps)
        return True


def logs_and_best(path: Path, *values: float, **kwargs: Any) -> list[BaseCallback]:
    return [Logs(*values), BestModelCallback(**{"monitor": "test/value", "path": path, **kwargs})]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_resumed_run_has_to_beat_what_it_had_reached(mode: str, pendulum_dataset, tmp_path: Path):
    sign = 1 if mode == "max" else -1
    best, checkpoint = tmp_path / "best.zip", tmp_path / "checkpoint"
    model = two_phases(pendulum_dataset)
    model.pretrain(gradient_steps=3, callback=logs_and_best(best, sign * 1.0, sign * 5.0, sign * 3.0, mode=mode))
    model.save(checkpoint)
    reached = best.read_bytes()
    assert QAM.load(best).num_timesteps == 2

    # another process knows but the files
    resumed = QAM.load(checkpoint, offline_dataset=pendulum_dataset)
    callbacks = logs_and_best(best, sign * 4.0, sign * 5.0, mode=mode)
    resumed.pretrain(gradient_steps=2, callback=callbacks, reset_num_timesteps=False)
    assert best.read_bytes() == reached
    assert callbacks[1].best_value == sign * 5.0
    callbacks = logs_and_best(best, sign * 4.5, sign * 6.0, mode=mode)
    resumed.pretrain(gradient_steps=2, callback=callbacks, reset_num_timesteps=False)
    assert QAM.load(best).num_timesteps == 7

    # a count of steps that starts again is the same training
    resumed.pretrain(gradient_steps=1, callback=logs_and_best(best, sign * 5.5, mode=mode))
    assert QAM.load(best).num_timesteps == 7


def test_another_run_and_another_metric_start_again(pendulum_dataset, tmp_path: Path):
    best = tmp_path / "best.zip"
    model = two_phases(pendulum_dataset)
    model.pretrain(gradient_steps=2, callback=logs_and_best(best, 1.0, 5.0))
    # the same script again, which trains a while before it looks
    other = two_phases(pendulum_dataset).pretrain(gradient_steps=1)
    other.pretrain(gradient_steps=1, callback=logs_and_best(best, 2.0), reset_num_timesteps=False)
    assert QAM.load(best).num_timesteps == 2
    # and one whose metric is first logged in its second phase
    other, callbacks = two_phases(pendulum_dataset), logs_and_best(best, 1.0)
    with pytest.warns(UserWarning, match="has saved no model: there was no finite 'test/value'"):
        other.pretrain(gradient_steps=1, callback=callbacks[1])
    other.pretrain(gradient_steps=1, callback=callbacks)
    assert QAM.load(best).num_timesteps == 1
    # worse by the old mode
    model.pretrain(gradient_steps=1, callback=logs_and_best(best, 1.0, mode="min"), reset_num_timesteps=False)
    assert QAM.load(best).num_timesteps == 3
    # nothing to compare with
    model.save(best)
    model.pretrain(gradient_steps=1, callback=logs_and_best(best, 0.0), reset_num_timesteps=False)
    assert QAM.load(best).num_timesteps == 4
    best.write_text("no model")
    model.pretrain(gradient_steps=1, callback=logs_and_best(best, -1.0), reset_num_timesteps=False)
    assert QAM.load(best).num_timesteps == 5


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_the_best_of_other_algorithms_of_sb3(algorithm: type, tmp_path: Path):
    kwargs = {"learning_starts": 1} if algorithm is SAC else {"n_steps": 4, "batch_size": 4}
    model = algorithm("MlpPolicy", make_vec_env(short_pendulum), **kwargs)
    best = tmp_path / "best"
    model.learn(4, callback=logs_and_best(best, 1.0, 2.0, 4.0, 3.0))
    model.save(tmp_path / "last")
    resumed = algorithm.load(tmp_path / "last", env=make_vec_env(short_pendulum))
    resumed.learn(4, callback=logs_and_best(best, *4 * [3.5]), reset_num_timesteps=False)
    assert algorithm.load(best).num_timesteps == 3


def test_a_file_is_whole_or_not_there(pendulum_dataset, tmp_path: Path):
    model = two_phases(pendulum_dataset)
    best = BestModelCallback("train/bc_loss", path=tmp_path / "best.zip")
    model.pretrain(gradient_steps=1, callback=best)
    before = best.path.read_bytes()
    # what cannot be pickled ends the saving half-way
    model.not_to_be_saved = (each for each in ())
    best.best_value = -math.inf
    with pytest.raises(TypeError, match="pickle"):
        model.pretrain(gradient_steps=1, callback=best)
    assert best.path.read_bytes() == before
    assert os.listdir(tmp_path) == ["best.zip"]


def test_what_is_refused(pendulum_dataset, tmp_path: Path):
    with pytest.raises(ValueError, match="log_freq must be an integer of at least 1, got 0"):
        FlowDiagnosticsCallback(log_freq=0)
    with pytest.raises(ValueError, match="n_states must be"):
        FlowDiagnosticsCallback(n_states=0)
    with pytest.raises(ValueError, match="mode must be one of 'max', 'min', got 'lowest'"):
        BestModelCallback("train/bc_loss", mode="lowest")
    with pytest.raises(TypeError, match="FlowDiagnosticsCallback looks into QAM, and the model is SAC"):
        SAC("MlpPolicy", "Pendulum-v1").learn(1, callback=FlowDiagnosticsCallback())
    model = two_phases(pendulum_dataset)
    with pytest.raises(FileNotFoundError, match="test/none-v0"):
        model.learn(ONLINE, callback=OfflineEvalCallback("test/none-v0"))
    assert model.num_timesteps == 0
    model.logger.output_formats.clear()

    class Text(BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record("text", "high")
            return True

    with pytest.raises(ValueError, match="compares numbers, and 'text' is 'high'"):
        model.pretrain(gradient_steps=1, callback=[Text(), BestModelCallback("text", path=tmp_path / "best")])
