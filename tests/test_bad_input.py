"""Each mistake gets one clear error, and the model stays as it was."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_qam import IFQL, QAM, ReBRAC
from sb3_qam.common.phases import SpacesOnlyEnv
from tests.conftest import write_dataset

OBSERVATIONS = spaces.Box(-10.0, 10.0, (3,))
ACTIONS = spaces.Box(-1.0, 1.0, (2,))


def env_with(observation_space: spaces.Space = OBSERVATIONS, action_space: spaces.Space = ACTIONS) -> gym.Env:
    return SpacesOnlyEnv(observation_space, action_space)


def dataset_with(observation_space=OBSERVATIONS, action_space=ACTIONS, n=4, **changes):
    def sample(space: spaces.Space, size: int):
        if isinstance(space, spaces.Dict):
            return {key: sample(part, size) for key, part in space.items()}
        return np.stack([space.sample() for _ in range(size)])

    episode = {
        "observations": sample(observation_space, n + 1),
        "actions": sample(action_space, n),
        "rewards": np.ones(n),
    }
    return write_dataset([episode | changes], observation_space, action_space)


@pytest.mark.parametrize(
    ("action_space", "message"),
    [
        (spaces.Discrete(3), r"needs a continuous action space.*got Discrete\(3\)"),
        (spaces.MultiDiscrete([2, 2]), "needs a continuous action space"),
        (spaces.Box(-np.inf, np.inf, (2,)), "needs finite action bounds"),
        (
            spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([np.inf, 1.0], np.float32)),
            "needs finite action bounds",
        ),
        # What some libraries write for no bounds
        (spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,)), "needs finite action bounds"),
        (spaces.Box(-3e38, 3e38, (2,)), "needs finite action bounds"),
        (spaces.Box(0.0, np.finfo(np.float64).max, (2,), np.float64), "needs finite action bounds"),
        (spaces.Box(0.0, 0.0, (2,)), "low < high"),
        (spaces.Box(-1.0, 1.0, (0,)), "at least one action dimension"),
    ],
)
def test_action_spaces_a_flow_cannot_act_in(action_space: spaces.Space, message: str):
    with pytest.raises(ValueError, match=message):
        QAM("FlowPolicy", env_with(action_space=action_space))
    with pytest.raises(ValueError, match=message):
        QAM("FlowPolicy", offline_dataset=dataset_with(action_space=action_space))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[
            (name, value)
            for name in ("buffer_size", "batch_size", "flow_steps", "n_steps", "chunk_size", "best_of_n")
            for value in (0, -1, 2.5)
        ],
        ("offline_steps", -1),
        ("bc_steps", -1),
        ("learning_starts", -1),
        ("gradient_steps", -2),
        ("learning_rate", -1e-3),
        ("gamma", 1.5),
        ("tau", -0.1),
        ("tau", float("nan")),
        ("inverse_temperature", -1.0),
        ("inverse_temperature", float("inf")),
        ("pessimism", -0.5),
        ("edit_scale", -0.1),
        ("edit_scale", 2.5),
        ("distill_coef", -1.0),
        ("kl_budget", 0.0),
        ("adjoint", "full"),
        ("adjoint", None),
        ("adjoint", ["lean"]),
        ("residual", "yes"),
        ("max_grad_norm", 0.0),
        ("train_freq", 0),
        ("train_freq", 2.5),
        ("train_freq", (1,)),
        ("offline_fraction", 1.1),
        ("offline_fraction", "half"),
    ],
)
def test_arguments_out_of_range(argument: str, value):
    with pytest.raises(ValueError, match=rf"{argument} must be .* got {re.escape(repr(value))}"):
        QAM("FlowPolicy", env_with(), **{argument: value})


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"net_arch": [64, 0]}, "net_arch must be an integer of at least 1, got 0"),
        ({"net_arch": {"pi": [64], "qf": [-3]}}, "net_arch must be an integer of at least 1, got -3"),
        ({"net_arch": {"vf": [64], "qf": [64]}}, r"keys \['qf', 'vf'\], expected 'pi'"),
        ({"net_arch": 256}, "net_arch must be a list of sizes .* got 256"),
        ({"net_arch": {"pi": 8, "qf": [8]}}, "net_arch must be a list of sizes .* got 8"),
        ({"flow_steps": 7}, "sets what QAM sets itself .*: pass it to QAM"),
        ({"n_critics": 0}, "n_critics must be an integer of at least 1, got 0"),
        ({"ode_method": "newton"}, "ode_method='newton'.*euler"),
    ],
)
def test_policy_arguments_out_of_range(policy_kwargs: dict, message: str):
    with pytest.raises(ValueError, match=message):
        QAM("FlowPolicy", env_with(), policy_kwargs=policy_kwargs)


def dict_space(**parts: spaces.Space) -> spaces.Dict:
    return spaces.Dict(parts)


@pytest.mark.parametrize(
    ("of_dataset", "of_env", "message"),
    [
        (
            (spaces.Box(-10.0, 10.0, (4,)), ACTIONS),
            (OBSERVATIONS, ACTIONS),
            r"observation space .* shape \(4,\) against \(3,\)",
        ),
        ((spaces.Box(-9.0, 10.0, (3,)), ACTIONS), (OBSERVATIONS, ACTIONS), "observation space .* bounds"),
        ((spaces.Box(0, 255, (3,), np.uint8), ACTIONS), (spaces.Box(0.0, 255.0, (3,)), ACTIONS), "dtype uint8"),
        ((OBSERVATIONS, spaces.Box(-2.0, 2.0, (2,))), (OBSERVATIONS, ACTIONS), "action space .* bounds"),
        ((OBSERVATIONS, spaces.Box(-1.0, 1.0, (3,))), (OBSERVATIONS, ACTIONS), r"action space .* shape \(3,\)"),
        ((dict_space(a=OBSERVATIONS), ACTIONS), (dict_space(b=OBSERVATIONS), ACTIONS), r"keys \['a'\] against \['b'\]"),
        (
            (dict_space(a=spaces.Box(-1, 1, (2,))), ACTIONS),
            (dict_space(a=spaces.Box(-1, 1, (5,))), ACTIONS),
            r"key 'a', shape \(2,\) against \(5,\)",
        ),
        ((dict_space(a=OBSERVATIONS), ACTIONS), (OBSERVATIONS, ACTIONS), "Dict.* against Box"),
        ((spaces.Discrete(3), ACTIONS), (spaces.Discrete(4), ACTIONS), r"Discrete\(3\) against Discrete\(4\)"),
    ],
)
def test_spaces_that_differ_change_nothing(of_dataset, of_env, message: str, pendulum_dataset):
    dataset = dataset_with(*of_dataset)
    model = QAM("FlowPolicy", env_with(*of_env), batch_size=4)
    before = model.policy.parameters_to_vector()
    with pytest.raises(ValueError, match=message):
        QAM("FlowPolicy", env_with(*of_env), offline_dataset=dataset)
    with pytest.raises(ValueError, match=message):
        model.pretrain(dataset, gradient_steps=1)
    assert model.offline_buffer is model.offline_dataset is None
    assert model.num_timesteps == model._n_updates == 0
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), before)


def test_a_refused_dataset_leaves_the_one_before_in_place():
    good, bad = dataset_with(), dataset_with(rewards=np.array([1, np.nan, 0, 0]))
    model = QAM("FlowPolicy", offline_dataset=good, batch_size=4)
    model.pretrain(gradient_steps=1)
    buffer = model.offline_buffer
    with pytest.raises(ValueError, match="not finite"):
        model.pretrain(bad, gradient_steps=1)
    assert model.offline_buffer is buffer
    assert model.offline_dataset is good
    model.pretrain(gradient_steps=1)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
def test_nan_in_the_data_is_named_by_dataset_episode_and_key(key: str):
    values = {
        "observations": np.zeros((5, 3), np.float32),
        "actions": np.zeros((4, 2), np.float32),
        "rewards": np.ones(4),
    }
    values[key].reshape(len(values[key]), -1)[2, -1] = np.nan
    dataset = dataset_with(**values)
    with pytest.raises(
        ValueError, match=rf"'{dataset.id}', episode 0: {key} is not finite .* 1 of \d steps, first at step 2"
    ):
        QAM("FlowPolicy", env_with(), offline_dataset=dataset).pretrain(gradient_steps=1)


def test_an_episode_with_too_few_observations():
    dataset = dataset_with(observations=np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="episode 0: observations holds 4 values, expected 5"):
        QAM("FlowPolicy", env_with(), offline_dataset=dataset).pretrain(gradient_steps=1)


def test_empty_datasets():
    with pytest.raises(ValueError, match=r"is empty \(0 episodes"):
        QAM("FlowPolicy", offline_dataset=dataset_with().filter_episodes(lambda episode: False))


def test_unknown_datasets_say_what_there_is(pendulum_dataset):
    with pytest.raises(FileNotFoundError, match=rf"'nobody/knows-v0'.*{pendulum_dataset.id}.*cannot be downloaded"):
        QAM("FlowPolicy", offline_dataset="nobody/knows-v0")
    with pytest.raises(TypeError, match=r"a minari\.MinariDataset .*or a list of these, got int: 3"):
        QAM("FlowPolicy", offline_dataset=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("runs/data.npz", r"is a file, .*`sb3-qam data import runs/data.npz mine/data-v0`, and give that id"),
        (Path("data.hdf5"), r"data.hdf5' is a file, .*`sb3-qam data import .*data.hdf5 mine/data-v0`"),
        ("data.csv", r"'data.csv' is a file, .*sb3_qam.recording.import_arrays\('mine/data-v0'"),
        ({"observations": np.zeros(3), "actions": np.zeros(3)}, r"dict with observations, actions, .*import_arrays"),
        (np.zeros((3, 2)), r"Arrays, here a ndarray, become a dataset by sb3_qam.recording.import_arrays"),
        (["mine/first-v0", "mine/first-v0"], r"'mine/first-v0' is given twice, and would count double"),
        ("ogbench/scene-play-singletask-task1-v0", r"run `sb3-qam data import scene-play-singletask-task1-v0`\."),
    ],
)
def test_what_is_no_dataset_yet_is_refused_with_the_way_in(given, message: str):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        QAM("FlowPolicy", env_with(), offline_dataset=given)


@pytest.mark.parametrize("dataset_id", ["", "two words-v0", "/tmp/somewhere"])
def test_malformed_dataset_ids(dataset_id: str):
    with pytest.raises(
        ValueError, match=r"is not a Minari dataset id, nor a folder: expected \(namespace/\)name-v\(version\)"
    ):
        QAM("FlowPolicy", env_with(), offline_dataset=dataset_id)


def test_a_dataset_whose_files_are_gone():
    dataset = dataset_with()
    for file in dataset.storage.data_path.glob("*.hdf5"):
        file.unlink()
    with pytest.raises(ValueError, match=rf"{dataset.id}/data cannot be opened.*minari download --force"):
        QAM("FlowPolicy", env_with(), offline_dataset=dataset.id)


def test_values_beyond_float32_are_not_finite():
    dataset = dataset_with(rewards=np.array([1.0, 2.0, 1e300, 0.0]))
    with pytest.raises(ValueError, match=r"episode 0: rewards is not finite .*too large for float32.* first at step 2"):
        QAM("FlowPolicy", env_with(), offline_dataset=dataset).pretrain(gradient_steps=1)


def test_things_that_are_no_environment():
    with pytest.raises(TypeError, match="Expected a Gymnasium environment or a VecEnv, got int: 5"):
        QAM("FlowPolicy", 5)
    with pytest.raises(TypeError, match="got str: 'Pendulum-v1'"):
        QAM("FlowPolicy", "Pendulum-v1").set_env("Pendulum-v1")


def test_another_number_of_environments():
    model = QAM("FlowPolicy", env_with(), buffer_size=10)
    with pytest.raises(ValueError, match=r"has 1 environment\(s\) and cannot be given 2.*QAM.load\(path, env=env\)"):
        model.set_env(DummyVecEnv([env_with, env_with]))
    with pytest.raises(ValueError, match=r"\(1, 'episode'\) needs a single environment, got 2"):
        QAM("FlowPolicy", DummyVecEnv([env_with, env_with]), train_freq=(1, "episode"))


def test_episodic_training_and_hindsight_replay_without_an_environment(pendulum_dataset):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, train_freq=(1, "episode"), buffer_size=10)
    with pytest.raises(ValueError, match=r"\(1, 'episode'\) needs a single environment, got 2"):
        model.set_env(make_vec_env("Pendulum-v1", n_envs=2))
    assert model.n_envs == 1
    with pytest.raises(ValueError, match="HerReplayBuffer computes rewards with the environment"):
        QAM("FlowPolicy", offline_dataset=pendulum_dataset, replay_buffer_class=HerReplayBuffer)


def test_nested_dict_observations_are_refused():
    space = spaces.Dict({"a": spaces.Dict({"b": OBSERVATIONS})})
    with pytest.raises(ValueError, match="nested observations"):
        QAM("FlowPolicy", offline_dataset=dataset_with(space))


def test_pretrain_without_data_or_steps(pendulum_dataset):
    model = QAM("FlowPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match=r"pretrain\(\) needs offline data"):
        model.pretrain(gradient_steps=10)
    with pytest.raises(ValueError, match=r"pretrain\(\) has no steps to do"):
        model.pretrain(pendulum_dataset)
    for steps in (0, -5, 1.5):
        with pytest.raises(ValueError, match=f"gradient_steps must be an integer of at least 1, got {steps}"):
            model.pretrain(pendulum_dataset, gradient_steps=steps)
    with pytest.raises(ValueError, match="log_interval must be"):
        model.pretrain(pendulum_dataset, gradient_steps=1, log_interval=0)
    assert model.offline_buffer is None
    assert model.num_timesteps == 0


def test_learn_without_what_it_needs(pendulum_dataset):
    with pytest.raises(ValueError, match="Neither env nor offline_dataset"):
        QAM("FlowPolicy")
    with pytest.raises(ValueError, match=r"learn\(\) needs an environment: call set_env"):
        QAM("FlowPolicy", offline_dataset=pendulum_dataset).learn(10)
    with pytest.raises(ValueError, match="offline_steps=5 needs offline data"):
        QAM("FlowPolicy", "Pendulum-v1", offline_steps=5).learn(10)


@pytest.mark.parametrize("algorithm", [QAM, IFQL, ReBRAC])
def test_noise_that_is_none_and_exploration_of_other_policies(algorithm: type):
    with pytest.raises(ValueError, match=r"action_noise must be an ActionNoise of SB3.*got 0.2"):
        algorithm("MlpPolicy", env_with(), action_noise=0.2)
    with pytest.raises(TypeError, match=rf"{algorithm.__name__}.*'use_sde'"):
        algorithm("MlpPolicy", env_with(), use_sde=True)


@pytest.mark.parametrize("algorithm", [QAM, IFQL, ReBRAC])
def test_unknown_arguments_are_named_with_the_class(algorithm: type):
    with pytest.raises(TypeError, match=rf"{algorithm.__name__}.*'inverse_temprature'"):
        algorithm("MlpPolicy", env_with(), inverse_temprature=3.0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "inverse_temprature",
            r"QAM.load\(\) has no argument 'inverse_temprature': did you mean 'inverse_temperature'",
        ),
        ("policy", r"QAM.load\(\) has no argument 'policy', which is for new models: leave it out"),
        ("stats_window_size", "which is for new models: leave it out"),
        ("_init_setup_model", "which is for new models: leave it out"),
        ("net_arch", r"has no argument 'net_arch'"),
    ],
)
def test_arguments_that_load_does_not_take(argument: str, message: str, tmp_path: Path):
    QAM("FlowPolicy", env_with(), buffer_size=10).save(tmp_path / "model")
    with pytest.raises(TypeError, match=message):
        QAM.load(tmp_path / "model", **{argument: 3})
    assert QAM.load(tmp_path / "model", inverse_temperature=2.0, buffer_size=20, device="cpu").buffer_size == 20


def test_n_steps_with_little_memory():
    kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    for env in (env_with(), env_with(dict_space(a=OBSERVATIONS))):
        with pytest.raises(ValueError, match="does not support optimize_memory_usage"):
            QAM("FlowPolicy", env, n_steps=3, **kwargs)


def test_a_policy_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        QAM("MlpPolicy", env_with(dict_space(a=OBSERVATIONS)))
    with pytest.raises(ValueError, match=r"policy of QAM must be one of 'FlowPolicy', .* got 'LstmPolicy'"):
        QAM("LstmPolicy", env_with())
    with pytest.raises(ValueError, match=r"policy of ReBRAC must be one of 'ReBRACPolicy', .* got 'FlowPolicy'"):
        ReBRAC("FlowPolicy", env_with())
    with pytest.raises(ValueError, match="MultiInputPolicy is for Dict observations"):
        QAM("MultiInputPolicy", env_with())


def test_vectorized_environments_of_gymnasium_are_told_apart():
    with pytest.raises(TypeError, match=r"Expected a Gymnasium environment or a VecEnv of SB3, .*: use .*make_vec_env"):
        QAM("FlowPolicy", gym.make_vec("Pendulum-v1", num_envs=2))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiDiscrete([[3, 4], [2, 2]]), r"(?s)SB3 encodes no observations of MultiDiscrete.* 2 axes: flatten"),
        (spaces.Dict(m=spaces.MultiDiscrete([[3, 4]])), r"(?s)SB3 encodes no observations of MultiDiscrete.* 2 axes"),
        (spaces.Dict({1: OBSERVATIONS}), r"Keys of observations must be strings, got \[1\]"),
    ],
)
def test_observations_that_sb3_cannot_encode(space: spaces.Space, message: str):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "FlowPolicy"
    with pytest.raises(ValueError, match=message):
        QAM(policy, env_with(space))
