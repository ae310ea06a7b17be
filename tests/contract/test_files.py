"""What SB3 saves and loads, so do the algorithms: models, parameters, replay buffers, policies."""

import gc
import io
import json
import multiprocessing
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_qam import IFQL, QAM, ReBRAC
from sb3_qam.recording import import_arrays
from tests.conftest import write_dataset
from tests.contract.conftest import Algorithm, RandomEnv, images, parameters_of, same_parameters, small

PENDULUM = gym.make("Pendulum-v1")
OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def test_a_model_comes_back_with_its_actions_parameters_and_optimizer(algorithm, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    np.testing.assert_array_equal(*(each.predict(OBSERVATIONS, deterministic=True)[0] for each in (model, loaded)))
    assert same_parameters(parameters_of(model), parameters_of(loaded))
    moments = [each.policy.optimizer.state_dict()["state"] for each in (model, loaded)]
    for own, other in zip(moments[0].values(), moments[1].values(), strict=True):
        assert all(th.equal(own[name], other[name]) for name in own)
    assert loaded.num_timesteps == model.num_timesteps
    assert loaded._n_updates == model._n_updates
    assert loaded.policy_kwargs == model.policy_kwargs
    # the targets stay frozen and in evaluation mode
    loaded.policy.set_training_mode(True)
    for target, _ in loaded.policy.target_pairs():
        assert not target.training
        assert not any(parameter.requires_grad for parameter in target.parameters())


def in_memory(tmp_path: Path) -> tuple[io.BytesIO, Callable[[], io.BytesIO]]:
    file = io.BytesIO()
    return file, lambda: (file.seek(0), file)[1]


@pytest.mark.parametrize(
    "places",
    [
        lambda path: (str(path / "model"), lambda: str(path / "model")),
        lambda path: (str(path / "model.zip"), lambda: str(path / "model")),
        lambda path: (path / "model", lambda: path / "model.zip"),
        lambda path: (path / "new" / "folder" / "model", lambda: path / "new" / "folder" / "model"),
        in_memory,
    ],
    ids=["str", "suffix", "pathlib", "new folder", "BytesIO"],
)
def test_kinds_of_paths(algorithm, places, model: Algorithm, tmp_path: Path):
    to_write, to_read = places(tmp_path)
    model.save(to_write)
    loaded = algorithm.load(to_read())
    assert same_parameters(parameters_of(model), parameters_of(loaded))
    other = algorithm("MlpPolicy", "Pendulum-v1", **small(algorithm))
    other.set_parameters(to_read())
    assert same_parameters(parameters_of(model), parameters_of(other))


def test_open_files(algorithm, model: Algorithm, tmp_path: Path):
    with open(tmp_path / "model.zip", "wb") as file:
        model.save(file)
    with open(tmp_path / "model.zip", "rb") as file:
        assert same_parameters(parameters_of(model), parameters_of(algorithm.load(file)))
    with open(tmp_path / "buffer.pkl", "wb") as file:
        model.save_replay_buffer(file)
    with open(tmp_path / "buffer.pkl", "rb") as file:
        model.load_replay_buffer(file)
    assert model.replay_buffer.size() == 20


def test_a_file_that_does_not_exist(algorithm, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        algorithm.load(tmp_path / "nothing")


@pytest.mark.parametrize("other", [QAM, IFQL, ReBRAC])
def test_a_file_of_another_algorithm_is_refused(algorithm, other, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model")
    if other is not algorithm:
        with pytest.raises(
            ValueError, match=rf"The policy of {other.__name__} must be a .*, got .* by the class that it"
        ):
            other.load(tmp_path / "model")


def test_what_is_excluded_is_not_in_the_file_and_what_is_included_is(algorithm, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model", exclude=["learning_starts"], include=["replay_buffer"])
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert "learning_starts" not in data
    assert isinstance(data["replay_buffer"], ReplayBuffer)
    loaded = algorithm.load(tmp_path / "model")
    # the default of a new model
    assert loaded.learning_starts == 100
    assert loaded.replay_buffer.size() == 20


def test_neither_environment_nor_data_nor_what_belongs_to_the_moment_is_in_the_file(
    model: Algorithm, pendulum_dataset, tmp_path
):
    model.pretrain(pendulum_dataset, gradient_steps=2)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = json.loads(archive.read("data"))
        assert {"data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"} <= set(archive.namelist())
    unwanted = {
        "env",
        "policy",
        "replay_buffer",
        "offline_buffer",
        "actor",
        "actor_target",
        "critic",
        "critic_target",
    }
    unwanted |= {"_monitor", "_augmentation", "_logger", "rollout_buffer", "eval_env", "device", "adjoint_method"}
    assert not unwanted & data.keys()
    assert data["offline_dataset"] == pendulum_dataset.id
    assert data["policy_class"][":type:"]
    # all that a user passes is
    passed = {*small(type(model)), "gamma", "tau", "chunk_size", "target_update_interval", "random_shift", "batch_size"}
    assert passed <= data.keys()


def test_files_from_before_an_argument_existed_have_its_default(algorithm, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model", exclude=["target_update_interval", "random_shift"])
    loaded = algorithm.load(tmp_path / "model", env=gym.make("Pendulum-v1")).learn(2)
    default = algorithm("MlpPolicy", "Pendulum-v1", buffer_size=10).target_update_interval
    assert (loaded.target_update_interval, loaded.random_shift) == (default, 0)


def test_custom_objects_replace_what_cannot_be_read(algorithm, tmp_path: Path):
    model = algorithm("MlpPolicy", "Pendulum-v1", learning_rate=lambda left: 1e-3 * left, **small(algorithm))
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(contents["data"])
    data["learning_rate"][":serialized:"] = "bm8gcGlja2xl"
    contents["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    custom_objects = {"learning_rate": 5e-4, "lr_schedule": lambda _: 5e-4}
    loaded = algorithm.load(tmp_path / "damaged", env=gym.make("Pendulum-v1"), custom_objects=custom_objects)
    assert loaded.learn(12).policy.optimizer.param_groups[0]["lr"] == 5e-4


def test_arguments_at_loading_replace_stored_ones(algorithm, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model")
    loaded = algorithm.load(
        tmp_path / "model", env=gym.make("Pendulum-v1"), learning_rate=7e-4, tensorboard_log=str(tmp_path)
    )
    loaded.learn(2, reset_num_timesteps=False)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 7e-4
    assert list(tmp_path.glob(f"{algorithm.__name__}_*/events*"))


def test_a_schedule_of_numpy_numbers_is_stored_as_plain_ones(algorithm, tmp_path: Path):
    # PyTorch reads its files back only where they hold none of NumPy's
    model = algorithm(
        "MlpPolicy", "Pendulum-v1", learning_rate=lambda left: np.float64(1e-3) * left, **small(algorithm)
    ).learn(12)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert type(loaded.policy.optimizer.param_groups[0]["lr"]) is float


def test_default_sizes_may_be_asked_for_by_none(algorithm, tmp_path: Path):
    algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": None}, buffer_size=10).save(tmp_path / "model")
    assert algorithm.load(tmp_path / "model").policy.net_arch == [256, 256]


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_files_are_closed(algorithm, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    model.policy.save(tmp_path / "policy")
    algorithm.load(tmp_path / "model").load_replay_buffer(tmp_path / "buffer")
    type(model.policy).load(tmp_path / "policy")
    gc.collect()


@pytest.mark.parametrize("device", ["cpu", "auto", th.device("cpu")])
def test_a_device_to_load_on(algorithm, device: str | th.device, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device=device, env=gym.make("Pendulum-v1")).learn(2)
    assert loaded.device == loaded.policy.device == th.device("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_to_load_on(algorithm, device: str, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device=device, env=gym.make("Pendulum-v1")).learn(2)
    assert loaded.device.type == loaded.policy.device.type == "cuda"


@pytest.mark.gpu
def test_from_one_device_to_another_and_back(algorithm, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "cpu")
    on_gpu = algorithm.load(tmp_path / "cpu", device="cuda", env=gym.make("Pendulum-v1")).learn(15)
    on_gpu.save(tmp_path / "gpu")
    on_gpu.save_replay_buffer(tmp_path / "buffer")
    back = algorithm.load(tmp_path / "gpu", device="cpu", env=gym.make("Pendulum-v1"))
    back.load_replay_buffer(tmp_path / "buffer")
    assert back.replay_buffer.device == th.device("cpu")
    actions = [each.predict(OBSERVATIONS, deterministic=True)[0] for each in (on_gpu, back)]
    np.testing.assert_allclose(*actions, atol=1e-4)
    back.learn(15)


def test_the_system_is_printed_where_asked(
    algorithm, model: Algorithm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model.save(tmp_path / "model")
    algorithm.load(tmp_path / "model", print_system_info=True)
    assert "== SAVED MODEL SYSTEM INFO ==" in capsys.readouterr().out


# ---------------------------------------------------------------- environments


def test_a_new_environment_or_another_number_of_them(algorithm, model: Algorithm, tmp_path: Path):
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs=3))
    assert loaded.n_envs == loaded.replay_buffer.n_envs == 3
    loaded.learn(12, reset_num_timesteps=False)
    without = algorithm.load(tmp_path / "model")
    assert without.get_env() is None
    without.set_env(gym.make("Pendulum-v1"))
    without.learn(2, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (RandomEnv(spaces.Box(-1.0, 1.0, (4,))), r"observation space of the model does not fit.*: shape"),
        (
            RandomEnv(PENDULUM.observation_space, spaces.Box(-1.0, 1.0, (1,))),
            r"action space of the model does not fit.*: bounds",
        ),
    ],
)
def test_an_environment_with_other_spaces_is_refused(
    algorithm, env: gym.Env, message: str, model: Algorithm, tmp_path: Path
):
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        algorithm.load(tmp_path / "model", env=env)
    with pytest.raises(ValueError, match=message):
        model.set_env(DummyVecEnv([lambda: env]))


def walk(dtype: type, is_dict: bool = False) -> gym.Env:
    """0.1 in float32 is larger than 0.1: actions of the one space need not lie in the other."""
    observations = spaces.Box(-1.0, 1.0, (2,), dtype)
    return RandomEnv(spaces.Dict({"x": observations}) if is_dict else observations, spaces.Box(-0.1, 0.1, (2,), dtype))


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize(("of_model", "of_env"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_an_environment_of_the_other_floating_point_type_is_taken_as_the_constructor_takes_it(
    algorithm, of_model: type, of_env: type, is_dict: bool, tmp_path: Path
):
    policy = "MultiInputPolicy" if is_dict else "MlpPolicy"
    env = make_vec_env(lambda: walk(of_env, is_dict), n_envs=2)
    model = algorithm(policy, walk(of_model, is_dict), **small(algorithm)).learn(12)
    model.save(tmp_path / "model")
    for name, loaded in {
        "load": algorithm.load(tmp_path / "model", env=env),
        "set_env": algorithm.load(tmp_path / "model"),
    }.items():
        if name == "set_env":
            loaded.set_env(env)
        loaded.learn(20, reset_num_timesteps=False)
        assert loaded.observation_space == env.observation_space, name
        assert loaded.action_space == loaded.policy.action_space == env.action_space, name
    if algorithm is QAM:
        algorithm(policy, env, **small(algorithm)).load_behavior(model)
        algorithm(policy, env, **small(algorithm)).load_behavior(tmp_path / "model")


def test_a_model_of_arrays_goes_online_in_an_environment_with_bounds(algorithm, tmp_path: Path):
    # Nobody has said what the observations of arrays are bounded by
    arrays = {"observations": OBSERVATIONS[:5], "actions": np.zeros((5, 1), "f4"), "rewards": np.ones(5)}
    dataset = import_arrays("mine/arrays-v0", **arrays, terminals=np.arange(5) == 4, action_space=(-2, 2))
    kwargs = small(algorithm, offline_dataset=dataset)
    assert algorithm("MlpPolicy", "Pendulum-v1", offline_steps=2, **kwargs).learn(3).offline_buffer.size() == 5
    model = algorithm("MlpPolicy", None, **kwargs).pretrain(gradient_steps=2)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    model.set_env(gym.make("Pendulum-v1"))
    for each in (model, loaded):
        each.learn(12, reset_num_timesteps=False)
        assert each.observation_space == PENDULUM.observation_space


def test_a_model_of_float32_data_goes_online_in_a_float64_environment(algorithm):
    data = walk(np.float32)
    episode = {"observations": OBSERVATIONS[:, :2], "actions": np.full((5, 2), 0.1, "f4"), "rewards": np.ones(5)}
    dataset = write_dataset([episode], data.observation_space, data.action_space)
    model = algorithm("MlpPolicy", None, offline_dataset=dataset, **small(algorithm)).pretrain(gradient_steps=2)
    model.set_env(make_vec_env(lambda: walk(np.float64), n_envs=3))
    model.learn(30, reset_num_timesteps=False)


class CountsResets(gym.Wrapper):
    n_resets = 0

    def reset(self, **kwargs):
        self.n_resets += 1
        return super().reset(**kwargs)


@pytest.mark.parametrize("force_reset", [True, False])
@pytest.mark.parametrize("by_loading", [True, False])
def test_an_environment_is_reset_where_it_is_forced(algorithm, force_reset: bool, by_loading: bool, tmp_path: Path):
    env = CountsResets(gym.make("Pendulum-v1"))
    model = algorithm("MlpPolicy", env, **small(algorithm)).learn(12)
    assert env.n_resets == 1
    vec_env = model.get_env()
    if by_loading:
        model.save(tmp_path / "model")
        model = algorithm.load(tmp_path / "model", env=vec_env, force_reset=force_reset)
    else:
        model.set_env(vec_env, force_reset=force_reset)
    model.learn(5, reset_num_timesteps=False)
    assert env.n_resets == 1 + force_reset


# ---------------------------------------------------------------- parameters


def test_parameters_are_given_and_taken_as_a_dict(algorithm, model: Algorithm):
    other = algorithm("MlpPolicy", "Pendulum-v1", seed=1, **small(algorithm))
    parameters = model.get_parameters()
    assert set(parameters) == {"policy", "policy.optimizer"}
    before = parameters_of(other)
    assert not same_parameters(before, parameters["policy"])
    other.set_parameters(parameters, exact_match=True)
    assert same_parameters(parameters_of(other), parameters["policy"])


def test_an_exact_match_misses_nothing_and_without_it_parts_will_do(model: Algorithm):
    parameters = {"policy": {name: th.zeros_like(value) for name, value in model.get_parameters()["policy"].items()}}
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters(parameters)
    part = {name: value for name, value in parameters["policy"].items() if name.startswith("critic.")}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.set_parameters({**model.get_parameters(), "policy": part})
    actor = [parameter.clone() for parameter in model.actor.parameters()]
    model.set_parameters({"policy": part}, exact_match=False)
    assert not any(parameter.any() for parameter in model.critic.parameters())
    for old, parameter in zip(actor, model.actor.parameters(), strict=True):
        assert th.equal(old, parameter)


def test_an_unknown_name_of_parameters_is_refused(model: Algorithm):
    with pytest.raises(ValueError, match=r"Key actor_of_sac\.optimizer is an invalid object name"):
        model.set_parameters({"actor_of_sac.optimizer": {}}, exact_match=False)


# ---------------------------------------------------------------- replay buffers


@pytest.mark.parametrize("variant", [{}, {"n_steps": 3}, {"chunk_size": 3}, {"optimize_memory_usage": True}], ids=str)
def test_a_replay_buffer_comes_back(variant: dict, tmp_path: Path):
    kwargs = small(**variant)
    if "optimize_memory_usage" in variant:
        kwargs["replay_buffer_kwargs"] = {"handle_timeout_termination": False}
    # 31 steps: where there are chunks, one is in flight
    model = QAM("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=2), **kwargs).learn(62)
    model.save_replay_buffer(str(tmp_path / "buffer"))
    model.save(tmp_path / "model")
    old = model.replay_buffer
    loaded = QAM.load(tmp_path / "model", env=make_vec_env("Pendulum-v1", n_envs=2))
    loaded.load_replay_buffer(str(tmp_path / "buffer"))
    new = loaded.replay_buffer
    assert type(new) is type(old)
    assert new.size() == old.size() == 31
    for name in ("observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
    assert new.device == loaded.device
    loaded.learn(20, reset_num_timesteps=False)
    assert new.size() == 41


def test_a_chunk_in_flight_is_executed_to_its_end_after_loading(algorithm, tmp_path: Path):
    env = make_vec_env("Pendulum-v1")
    model = algorithm("MlpPolicy", env, chunk_size=5, **small(algorithm, learning_starts=0)).learn(13)
    # three of five actions of the third chunk are done
    in_flight = model.policy.scale_action(model._rollout_state.actions[0, 3:])
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=env, force_reset=False)
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(2, reset_num_timesteps=False)
    np.testing.assert_allclose(loaded.replay_buffer.actions[13:15, 0], in_flight, atol=1e-6)


def test_what_is_no_replay_buffer_is_refused(model: Algorithm, tmp_path: Path):
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps([1, 2]))
    own = model.replay_buffer
    with pytest.raises(
        ValueError, match=r"buffer cannot be loaded as a replay buffer: .* must inherit from ReplayBuffer"
    ):
        model.load_replay_buffer(tmp_path / "buffer")
    two = type(model)("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=2), **small(type(model)))
    two.save_replay_buffer(tmp_path / "two")
    with pytest.raises(ValueError, match=r"of 2 environment\(s\), and the model has 1: .* pretrain\(replay_buffer="):
        model.load_replay_buffer(tmp_path / "two")
    other = type(model)("MlpPolicy", "MountainCarContinuous-v0", **small(type(model)))
    other.save_replay_buffer(tmp_path / "other")
    with pytest.raises(ValueError, match=r"another observation_space than the model: shape \(3,\) against \(2,\)"):
        model.load_replay_buffer(tmp_path / "other")
    assert model.replay_buffer is own
    model.learn(12, reset_num_timesteps=False)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("objective", ["full", "bc"])
def test_parameters_of_a_file_act_as_the_model_that_was_saved(objective: str, pendulum_dataset, tmp_path: Path):
    saved, kwargs = tmp_path / "model.zip", small(kl_budget=0.01, seed=0)
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, **kwargs)
    model.pretrain(gradient_steps=20, objective=objective).save(saved)
    # One that was trained in another way
    other = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, **kwargs)
    other.pretrain(gradient_steps=2, objective="full" if objective == "bc" else "bc")
    observations = np.eye(3, dtype=np.float32)
    expected = model.predict(observations, deterministic=True)[0]
    for source in (saved, saved.open("rb")):
        other.set_parameters(source)
        np.testing.assert_array_equal(other.predict(observations, deterministic=True)[0], expected)
        assert other.kl_lambda == model.kl_lambda
    assert (model.kl_lambda == 1) == (objective == "bc")


def test_arguments_that_act_are_checked_when_they_are_set(tmp_path: Path):
    model = QAM("FlowPolicy", "Pendulum-v1", edit_scale=0.2, **small())
    for name, value, message in (
        ("edit_scale", 0.0, "made for edit_scale=positive and do not fit edit_scale=0"),
        ("distill_coef", 1.0, "exclude each other"),
        ("flow_steps", 0, "flow_steps must be"),
        ("best_of_n", 0, "best_of_n must be"),
        ("inverse_temperature", -1.0, "inverse_temperature must be"),
    ):
        before = getattr(model, name)
        with pytest.raises(ValueError, match=message):
            setattr(model, name, value)
        assert getattr(model, name) == before
    model.edit_scale, model.flow_steps = 0.1, 3
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model")
    assert (loaded.edit_scale, loaded.policy.flow_steps) == (0.1, 3)


# ---------------------------------------------------------------- policies


@pytest.mark.parametrize(
    ("policy", "space"),
    [
        ("MlpPolicy", spaces.Box(-1.0, 1.0, (3,))),
        ("CnnPolicy", images()),
        ("MultiInputPolicy", spaces.Dict(image=images(), number=spaces.Discrete(3))),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("algorithm", "variant"),
    [
        *((QAM, variant) for variant in ({}, {"edit_scale": 0.3}, {"distill_coef": 1.0}, {"best_of_n": 2})),
        *((algorithm, {"chunk_size": 3}) for algorithm in (QAM, IFQL, ReBRAC)),
        *((algorithm, {}) for algorithm in (IFQL, ReBRAC)),
        (IFQL, {"policy_kwargs": {"flow_layer_norm": True}}),
        (ReBRAC, {"policy_kwargs": {"layer_norm": True}}),
    ],
)
def test_a_policy_alone_comes_back_and_acts_the_same(
    algorithm: type[Algorithm], variant: dict, policy: str, space: spaces.Space, tmp_path: Path
):
    env, policy_class = RandomEnv(space), algorithm.policy_aliases[policy]
    model = algorithm(policy, env, **small(algorithm, **variant)).learn(12)
    model.policy.save(tmp_path / "policy")
    loaded = policy_class.load(tmp_path / "policy", device="cpu")
    assert type(loaded) is policy_class
    observation = env.observation_space.sample()
    np.testing.assert_array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, loaded)))
    # sampling too
    samples = []
    for each in (model, loaded):
        th.manual_seed(0)
        samples.append(each.predict(observation)[0])
    np.testing.assert_array_equal(*samples)


def test_parameters_as_one_vector(algorithm, model: Algorithm):
    vector = model.policy.parameters_to_vector()
    other = algorithm("MlpPolicy", "Pendulum-v1", seed=1, **small(algorithm)).policy
    other.load_from_vector(vector)
    np.testing.assert_array_equal(other.parameters_to_vector(), vector)


def act(model: Algorithm, observations: np.ndarray) -> np.ndarray:
    return model.predict(observations, deterministic=True)[0]


@pytest.mark.parametrize("kwargs", [{}, {"chunk_size": 2}, {"edit_scale": 0.2}, {"distill_coef": 1.0, "kl_budget": 1}])
def test_models_are_sent_to_pools_of_new_processes(kwargs: dict[str, Any], pendulum_dataset):
    model = QAM("MlpPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, offline_steps=4, **small(**kwargs))
    model.learn(12)
    copied = pickle.loads(pickle.dumps(model))
    assert same_parameters(parameters_of(copied), parameters_of(model))
    copied.learn(3, reset_num_timesteps=False)
    assert copied._n_updates == model._n_updates + 3
    observations = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    if not kwargs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(act, (model, observations)), act(model, observations))
