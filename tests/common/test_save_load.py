"""A run that is saved and loaded is the run it would have been."""

import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_qam import QAM, FlowPolicy
from sb3_qam.common.noise import SamplingNoise
from tests.conftest import record, write_dataset

SMALL = {"batch_size": 16, "flow_steps": 3, "policy_kwargs": {"net_arch": [16, 16]}, "buffer_size": 1000}


def assert_same(first: QAM, second: QAM) -> None:
    """Parameters, targets and the optimizer's moments, bit by bit."""
    for name, parameters in first.get_parameters().items():
        other = second.get_parameters()[name]
        if name == "policy":
            assert parameters.keys() == other.keys()
            for key in parameters:
                assert th.equal(parameters[key], other[key]), key
        else:
            for index, state in parameters["state"].items():
                for key, value in state.items():
                    assert th.equal(value, other["state"][index][key]), (index, key)
    assert first.kl_lambda == second.kl_lambda
    assert first.kl_average == second.kl_average


def test_a_file_is_replaced_when_the_new_one_is_complete(tmp_path: Path):
    """The process is killed in the middle of writing."""
    model = QAM("FlowPolicy", "Pendulum-v1", **SMALL)
    model.save(tmp_path / "model")
    (tmp_path / "link.zip").symlink_to(tmp_path / "model.zip")
    before = (tmp_path / "model.zip").read_bytes()
    code = f"""
import os, signal, torch
from sb3_qam import QAM
model = QAM.load({str(tmp_path / "model")!r}, device="cpu")
torch.save = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
model.save({str(tmp_path / "link.zip")!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (tmp_path / "model.zip").read_bytes() == before
    model.save(str(tmp_path / "link.zip"))
    assert (tmp_path / "link.zip").is_symlink()
    assert (tmp_path / "model.zip").read_bytes() != before
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["link.zip", "model.zip"]
    model.save(tmp_path / "new" / "model.v1")
    assert_same(QAM.load(tmp_path / "new" / "model.v1"), model)


def disturb() -> None:
    """What else a program does with the global random generators between saving and continuing."""
    np.random.seed(987)
    th.manual_seed(987)
    np.random.rand(3)


@pytest.mark.parametrize("seed", [None, 3])
def test_pretraining_continues_bit_by_bit_with_the_dataset_given_again(
    seed: int | None, pendulum_dataset, tmp_path: Path
):
    def new_model() -> QAM:
        disturb()
        return QAM("FlowPolicy", "Pendulum-v1", seed=seed, **SMALL)

    whole = new_model().pretrain(pendulum_dataset, gradient_steps=20)

    half = new_model().pretrain(pendulum_dataset, gradient_steps=11)
    half.save(tmp_path / "half")
    del half
    disturb()
    loaded = QAM.load(tmp_path / "half", env=gym.make("Pendulum-v1"))
    loaded.pretrain(pendulum_dataset, gradient_steps=9, reset_num_timesteps=False)
    assert loaded.num_timesteps == whole.num_timesteps == 20
    assert loaded._n_updates == whole._n_updates
    assert_same(whole, loaded)


def test_a_stored_id_needs_no_dataset_again(tmp_path: Path):
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    write_dataset(record(env, 3), env.observation_space, env.action_space, "test/stored-v0")
    kwargs = {"offline_dataset": "test/stored-v0", "offline_steps": 12, "seed": 0, **SMALL}
    whole = QAM("FlowPolicy", None, **kwargs).pretrain()
    half = QAM("FlowPolicy", None, **kwargs).pretrain(gradient_steps=5)
    half.save(tmp_path / "half")
    disturb()
    assert_same(whole, QAM.load(tmp_path / "half").pretrain(reset_num_timesteps=False))


def test_a_checkpoint_of_the_offline_phase_goes_on_bit_by_bit_with_its_schedule(pendulum_dataset, tmp_path: Path):
    def new_model() -> QAM:
        disturb()
        kwargs = {"learning_rate": lambda remaining: 1e-2 * remaining, "offline_steps": 10, **SMALL}
        return QAM("FlowPolicy", make_vec_env("Pendulum-v1"), offline_dataset=pendulum_dataset, **kwargs)

    class SaveAtTheEndOfTheOfflinePhase(BaseCallback):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def _on_step(self) -> bool:
            if self.num_timesteps == 10:
                self.model.save(tmp_path / self.name)
            return True

    new_model().learn(12, callback=[CheckpointCallback(4, str(tmp_path)), SaveAtTheEndOfTheOfflinePhase("whole")])
    resumed = QAM.load(tmp_path / "rl_model_4_steps", make_vec_env("Pendulum-v1"), offline_dataset=pendulum_dataset)
    resumed.learn(12, callback=SaveAtTheEndOfTheOfflinePhase("resumed"), reset_num_timesteps=False)
    assert_same(QAM.load(tmp_path / "whole"), QAM.load(tmp_path / "resumed"))


def test_a_loaded_model_that_is_saved_again_keeps_its_random_state(pendulum_dataset, tmp_path: Path):
    def go_on(name: str) -> QAM:
        return QAM.load(tmp_path / name).pretrain(pendulum_dataset, gradient_steps=5)

    QAM("FlowPolicy", offline_dataset=pendulum_dataset, **SMALL).pretrain(gradient_steps=3).save(tmp_path / "first")
    loaded = QAM.load(tmp_path / "first")
    disturb()
    loaded.save(tmp_path / "second")
    expected = go_on("first")
    assert_same(expected, go_on("second"))
    disturb()
    assert_same(expected, loaded.pretrain(pendulum_dataset, gradient_steps=5))


def test_policy_kwargs_are_compared_as_the_user_gave_them(tmp_path: Path):
    model = QAM("FlowPolicy", "Pendulum-v1", **SMALL)
    assert model.policy_kwargs == SMALL["policy_kwargs"]
    model.save(tmp_path / "model")
    QAM.load(tmp_path / "model", policy_kwargs={"net_arch": [16, 16]})
    with pytest.raises(ValueError, match="do not equal the stored policy kwargs"):
        QAM.load(tmp_path / "model", policy_kwargs={"net_arch": [8]})


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"n_steps": 3},
        # 70 steps: a chunk is in flight when the run is interrupted
        {"chunk_size": 4},
        {"chunk_size": 3, "kl_budget": 0.1},
        {"edit_scale": 0.2, "best_of_n": 3},
        {"distill_coef": 10.0, "residual": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_offline_data", [False, True])
def test_online_learning_goes_on_bit_by_bit(variant: dict, with_offline_data: bool, pendulum_dataset, tmp_path: Path):
    def run(interrupted: bool) -> QAM:
        disturb()
        env = make_vec_env("Pendulum-v1", seed=5)
        model = QAM("FlowPolicy", env, seed=1, learning_starts=20, **variant, **SMALL)
        if with_offline_data:
            model.pretrain(pendulum_dataset, gradient_steps=5)
        model.learn(70)
        if interrupted:
            model.save(tmp_path / "model")
            model.save_replay_buffer(tmp_path / "buffer")
            disturb()
            model = QAM.load(tmp_path / "model", env=env, force_reset=False)
            model.load_replay_buffer(tmp_path / "buffer")
            if with_offline_data:
                model.offline_dataset = pendulum_dataset
        return model.learn(30, reset_num_timesteps=False)

    assert_same(run(interrupted=False), run(interrupted=True))


def test_two_runs_with_one_seed_agree_and_with_two_do_not(pendulum_dataset):
    def run(seed: int) -> QAM:
        model = QAM("FlowPolicy", "Pendulum-v1", seed=seed, offline_dataset=pendulum_dataset, offline_steps=10, **SMALL)
        return model.learn(30)

    assert_same(run(0), run(0))
    assert not np.array_equal(run(0).policy.parameters_to_vector(), run(1).policy.parameters_to_vector())


def test_a_new_seed_at_loading_is_obeyed(pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", "Pendulum-v1", seed=0, offline_dataset=pendulum_dataset, **SMALL)
    model.pretrain(gradient_steps=3)
    model.save(tmp_path / "model")

    def go_on(**kwargs) -> np.ndarray:
        loaded = QAM.load(tmp_path / "model", **kwargs)
        return loaded.pretrain(pendulum_dataset, gradient_steps=3).policy.parameters_to_vector()

    def reseeded() -> np.ndarray:
        loaded = QAM.load(tmp_path / "model")
        loaded.set_random_seed(9)
        return loaded.pretrain(pendulum_dataset, gradient_steps=3).policy.parameters_to_vector()

    assert np.array_equal(go_on(), go_on())
    assert not np.array_equal(go_on(), go_on(seed=1))
    assert np.array_equal(go_on(seed=1), go_on(seed=1))
    assert not np.array_equal(go_on(), reseeded())


def test_saving_leaves_the_global_random_state_alone(pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, **SMALL)
    state = np.random.get_state()[1].copy(), th.get_rng_state()
    model.save(tmp_path / "model")
    assert np.array_equal(state[0], np.random.get_state()[1])
    assert th.equal(state[1], th.get_rng_state())


def test_a_model_of_a_part_of_a_dataset_asks_for_it(pendulum_dataset, tmp_path: Path):
    pendulum_dataset = pendulum_dataset.filter_episodes(lambda episode: episode.id != 0)
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, **SMALL)
    model.pretrain(gradient_steps=2)
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    message = rf"dataset '{pendulum_dataset.id}', which is not stored.*offline_fraction=0.0"
    for phase in (lambda: loaded.learn(3), lambda: loaded.pretrain(gradient_steps=3)):
        with pytest.raises(ValueError, match=message):
            phase()
    QAM.load(tmp_path / "model", env=gym.make("Pendulum-v1"), offline_dataset=pendulum_dataset).learn(3)
    without = QAM.load(tmp_path / "model", env=gym.make("Pendulum-v1"), offline_fraction=0.0).learn(3)
    assert without.offline_buffer is None


def test_the_object_of_a_whole_dataset_is_found_again_by_its_id(pendulum_dataset, tmp_path: Path):
    QAM("FlowPolicy", None, offline_dataset=pendulum_dataset, **SMALL).pretrain(gradient_steps=2).save(tmp_path / "m")
    loaded = QAM.load(tmp_path / "m", env=gym.make("Pendulum-v1")).learn(3)
    assert loaded.offline_buffer.name == pendulum_dataset.id


def test_hyperparameters_are_stored_and_can_be_changed_at_loading(tmp_path: Path):
    model = QAM("FlowPolicy", "Pendulum-v1", inverse_temperature=2.0, pessimism=0.1, max_grad_norm=5.0, **SMALL)
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model", flow_steps=7)
    assert (loaded.inverse_temperature, loaded.pessimism, loaded.max_grad_norm) == (2.0, 0.1, 5.0)
    assert loaded.flow_steps == loaded.policy.flow_steps == 7
    with pytest.raises(ValueError, match="flow_steps must be"):
        QAM.load(tmp_path / "model", flow_steps=0)


def test_n_steps_can_be_changed_at_loading(pendulum_dataset, tmp_path: Path):
    QAM("FlowPolicy", "Pendulum-v1", **SMALL).save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model", n_steps=3, env=gym.make("Pendulum-v1"))
    loaded.pretrain(pendulum_dataset, gradient_steps=1).learn(5)
    np.testing.assert_allclose(loaded._sample_batch(50).discounts, 0.99**3, rtol=1e-6)


def test_a_loaded_replay_buffer_makes_the_returns_of_the_model(tmp_path: Path):
    kwargs = {"gamma": 0.9, **SMALL}
    model = QAM("FlowPolicy", "Pendulum-v1", n_steps=3, **kwargs).learn(10)
    model.save_replay_buffer(tmp_path / "three")
    other = QAM("FlowPolicy", "Pendulum-v1", n_steps=2, **{**kwargs, "gamma": 0.5})
    other.load_replay_buffer(tmp_path / "three")
    np.testing.assert_allclose(other._sample_batch(50).discounts, 0.25)
    single = QAM("FlowPolicy", "Pendulum-v1", **kwargs).learn(10)
    single.save_replay_buffer(tmp_path / "one")
    buffer = other.replay_buffer
    with pytest.raises(
        ValueError, match="A ReplayBuffer gives no sequences of 2 steps: load the model with n_steps=1 and chunk_size=1"
    ):
        other.load_replay_buffer(tmp_path / "one")
    assert other.replay_buffer is buffer


@pytest.mark.parametrize("gamma", [0, 1])
def test_a_discount_may_be_a_whole_number(pendulum_dataset, gamma: int):
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, gamma=gamma, n_steps=2, **SMALL)
    model.pretrain(gradient_steps=1).learn(12, reset_num_timesteps=False)
    assert (model.draw_batch(10).discounts == gamma).all()


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_discount_that_is_changed_is_that_of_all_samples(pendulum_dataset, n_steps: int):
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, n_steps=n_steps, **SMALL).learn(20)
    model.offline_fraction = 0.5
    model.gamma = 0.5
    np.testing.assert_allclose(model.draw_batch(50).discounts, 0.5**n_steps)


def test_the_callers_dicts_stay_as_they_are():
    policy_kwargs, buffer_kwargs = {"net_arch": [16]}, {"handle_timeout_termination": True}
    QAM("FlowPolicy", "Pendulum-v1", n_steps=2, policy_kwargs=policy_kwargs, replay_buffer_kwargs=buffer_kwargs)
    assert policy_kwargs == {"net_arch": [16]}
    assert buffer_kwargs == {"handle_timeout_termination": True}


def test_at_inverse_temperature_zero_the_model_is_the_clone(pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, seed=0, **SMALL).pretrain(gradient_steps=5)
    model.save(tmp_path / "model")
    clone = QAM.load(tmp_path / "model", inverse_temperature=0.0)
    observations, noise = th.randn(6, 3), SamplingNoise(th.randn(1, 6, 1))
    flows = {}
    for name in ("policy", "behavior"):
        model.policy.acts_as = name
        flows[name] = model.policy.sample_actions(observations, noise)
    assert not th.equal(flows["policy"], flows["behavior"])
    assert th.equal(clone.policy.sample_actions(observations, noise), flows["behavior"])


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": {"pi": [16], "qf": [8, 8]}, "n_critics": 3, "flow_layer_norm": True, "activation_fn": th.nn.ReLU},
        {"ode_method": "dopri5", "ode_options": {"rtol": 1e-3, "atol": 1e-3}, "share_features_extractor": True},
    ],
)
def test_a_policy_is_saved_for_deployment(policy_kwargs: dict, tmp_path: Path):
    model = QAM("FlowPolicy", "Pendulum-v1", flow_steps=4, inverse_temperature=0.0, policy_kwargs=policy_kwargs)
    model.policy.save(tmp_path / "policy.pt")
    loaded = FlowPolicy.load(tmp_path / "policy.pt", device="cpu")
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    actions = [policy.predict(observations, deterministic=True)[0] for policy in (model.policy, loaded)]
    np.testing.assert_array_equal(*actions)
    assert loaded._get_constructor_parameters().keys() == model.policy._get_constructor_parameters().keys()
    assert loaded.flow_steps == 4
    assert loaded.acts_as == "behavior"
