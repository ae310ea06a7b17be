"""RL Zoo knows QAM: names, configurations, search."""

import argparse
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3
import yaml
from gymnasium import spaces
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_qam import QAM, preset, zoo
from sb3_qam.datasets.sources import wrap_dataset
from sb3_qam.environments import OGBENCH_TASKS
from sb3_qam.variants import VARIANTS
from sb3_qam.zoo import search
from sb3_qam.zoo.arguments import zoo_arguments
from sb3_qam.zoo.experiment import ExperimentManager
from sb3_qam.zoo.hyperparams import ENTRIES, hyperparams_of
from sb3_qam.zoo.wrappers import EpisodeSuccess
from tests.conftest import needs_ogbench, record, write_dataset

# What the zoo itself takes from an entry
ZOO_KEYS = {"n_timesteps", "env_kwargs", "env_wrapper", "vec_env_wrapper", "callback"}
SMALL = {"offline_dataset": None, "buffer_size": 100}


def manager(algo: str, env_id: str, folder: Path, hyperparams: dict[str, Any], **kwargs: Any) -> ExperimentManager:
    kwargs = {"eval_freq": -1, "n_timesteps": 20, "device": "cpu", "hyperparams": hyperparams} | kwargs
    return ExperimentManager(argparse.Namespace(), algo, env_id, str(folder), **kwargs)


def arguments_of(algorithm: type) -> set[str]:
    """Also those that it passes on."""
    return {name for each in algorithm.__mro__ for name in inspect.signature(each.__init__).parameters}


def build(algo: str, env_id: str, folder: Path, **hyperparams: Any) -> QAM:
    model, _ = manager(algo, env_id, folder, SMALL | hyperparams).setup_experiment()
    model.get_env().close()
    return model


# ---------------------------------------------------------------------- registration


def test_the_zoo_knows_every_name():
    assert {"qam", "qam_edit", "qam_f", "trqam", "sqam", "bam", "fql", "bc", "ifql", "rebrac"} == VARIANTS.keys()
    for name, variant in VARIANTS.items():
        assert issubclass(rl_zoo3.ALGOS[name], variant.algorithm)
        assert name in HYPERPARAMS_SAMPLER
        assert name in HYPERPARAMS_CONVERTER
        assert {**preset("cube-triple-play", name).kwargs}.keys() <= arguments_of(variant.algorithm)
    assert rl_zoo3.train.ExperimentManager is ExperimentManager
    zoo.register()
    assert rl_zoo3.ALGOS["qam"] is QAM


@pytest.mark.parametrize(
    ("name", "argument", "default", "own"),
    [
        ("qam_edit", "edit_scale", 0.1, 0.5),
        ("qam_f", "distill_coef", 30.0, 1.0),
        ("trqam", "kl_budget", 1.0, 0.5),
        ("bam", "adjoint", "bptt", "scalar"),
    ],
)
def test_a_preset_is_qam_with_another_default(name: str, argument: str, default: Any, own: Any, tmp_path: Path):
    algorithm = rl_zoo3.ALGOS[name]
    model = algorithm("FlowPolicy", "Pendulum-v1", buffer_size=10)
    assert getattr(model, argument) == default
    assert getattr(algorithm("FlowPolicy", "Pendulum-v1", buffer_size=10, **{argument: own}), argument) == own
    model.save(tmp_path / "model")
    loaded, as_qam = algorithm.load(tmp_path / "model"), QAM.load(tmp_path / "model")
    assert type(loaded) is algorithm
    assert getattr(loaded, argument) == getattr(as_qam, argument) == default
    observation = np.zeros(3, dtype=np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], as_qam.predict(observation, deterministic=True)[0]
    )


def test_the_zoos_classes_are_found_by_pickle():
    for algorithm in zoo.ALGORITHMS.values():
        assert pickle.loads(pickle.dumps(algorithm)) is algorithm


def test_one_entry_makes_a_variant_known_everywhere():
    code = """
from sb3_qam.variants import VARIANTS, Variant
VARIANTS["mine"] = Variant("Mine", {"pessimism": 0.3}, {"pessimism": (0.1, 1.0)}, {"gamma": (0.9,) * 10})
import rl_zoo3
import sb3_qam.zoo
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from sb3_qam import preset
from sb3_qam.variants import find_algorithm
from sb3_qam.cli.zoo import TRAIN_HELP
from sb3_qam.results.scores import title_of
from sb3_qam.zoo.hyperparams import hyperparams_of
assert rl_zoo3.ALGOS["mine"]("FlowPolicy", "Pendulum-v1", buffer_size=1).pessimism == 0.3
assert find_algorithm("mine") == ("mine", sb3_qam.QAM) and title_of("mine") == "Mine" and ", mine." in TRAIN_HELP
assert HYPERPARAMS_SAMPLER["mine"].args == ({"pessimism": (0.1, 1.0)},)
found = hyperparams_of("mine")["scene-play-singletask-task1-v0"]
assert (found["gamma"], found["pessimism"]) == (0.9, 0.3)
assert preset("scene-play", "Mine").kwargs.items() <= found.items()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_does_not_import_the_zoo():
    code = "import sys, sb3_qam, sb3_qam.cli; assert not {'rl_zoo3', 'optuna'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_ogbench
def test_ogbenchs_tasks_have_the_ids_of_their_data():
    assert len(OGBENCH_TASKS) == 50
    env = gym.make("antmaze-large-navigate-singletask-task3-v0")
    same = gym.make("antmaze-large-singletask-task3-v0")
    assert env.spec.max_episode_steps == same.spec.max_episode_steps == 1000
    assert env.unwrapped._reward_task_id == same.unwrapped._reward_task_id == 3


def test_the_zoos_own_algorithms_keep_their_configurations(tmp_path: Path):
    assert manager("sac", "Pendulum-v1", tmp_path, {}).config.endswith("rl_zoo3/hyperparams/sac.yml")
    assert manager("qam", "Pendulum-v1", tmp_path, {}).config == "sb3_qam.zoo.hyperparams.qam"
    assert manager("qam", "Pendulum-v1", tmp_path, {}, config="mine.yml").config == "mine.yml"


# ---------------------------------------------------------------------- configurations


@pytest.mark.parametrize("name", VARIANTS)
def test_every_key_is_an_argument(name: str):
    arguments = arguments_of(VARIANTS[name].algorithm)
    assert set(OGBENCH_TASKS) <= hyperparams_of(name).keys()
    assert len(hyperparams_of(name)) >= 31 + len(OGBENCH_TASKS)
    for env_id, entry in hyperparams_of(name).items():
        assert entry.keys() <= arguments | ZOO_KEYS | VARIANTS[name].zoo.keys(), env_id
        assert entry.keys() >= {"policy", "n_timesteps"}, env_id


@pytest.mark.parametrize("name", VARIANTS)
def test_ogbenchs_entries_are_the_published_ones(name: str):
    for task_id in OGBENCH_TASKS:
        published = preset(task_id, name)
        entry = hyperparams_of(name)[task_id]
        others = {
            "policy": VARIANTS[name].policy,
            **VARIANTS[name].zoo,
            "n_timesteps": published.online_steps,
            "offline_dataset": f"ogbench/{task_id}",
            "buffer_size": 500_000,
            "vec_env_wrapper": "sb3_qam.zoo.wrappers.EpisodeSuccess",
            "callback": [{"stable_baselines3.common.callbacks.LogEveryNTimesteps": {"n_steps": 5000}}],
        }
        if published.sparse_rewards:
            others["reward_transform"] = {"sparse": True}
        if published.bc_steps > 0:
            others["bc_steps"] = published.bc_steps
        assert entry == {**published.kwargs, **others}


@pytest.mark.parametrize("env_id", [*(env_id for env_id in ENTRIES if env_id != "default"), *OGBENCH_TASKS[::5]])
def test_every_entry_builds_its_model(env_id: str, tmp_path: Path):
    if env_id not in gym.registry:
        pytest.skip("The environment is not installed.")
    try:
        model = build("qam", env_id, tmp_path)
    except AssertionError:
        # gymnasium_robotics 1.4 asserts there what MuJoCo 4 no longer gives
        assert env_id == "FrankaKitchen-v1"
        pytest.skip("The environment cannot be made.")
    entry = hyperparams_of("qam")[env_id]
    assert model.offline_steps == entry.get("offline_steps", 0)
    assert model.chunk_size == entry.get("chunk_size", 1)
    assert not model.policy_kwargs or model.policy_kwargs == entry["policy_kwargs"]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_take_the_entries_for_all(name: str, tmp_path: Path):
    for env_id in ("PointMaze_UMaze-v3", "AntMaze_UMaze-v4", "MountainCarContinuous-v0", "Hopper-v5"):
        assert type(build(name, env_id, tmp_path)) is rl_zoo3.ALGOS[name]


@needs_ogbench
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_the_entries_of_ogbenchs_tasks(name: str, tmp_path: Path):
    task_id = "humanoidmaze-medium-navigate-singletask-task1-v0"
    assert build(name, task_id, tmp_path).gamma == hyperparams_of(name)[task_id]["gamma"]


@needs_ogbench
def test_an_entrys_data_is_imported_by_the_command_that_the_error_names(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"run `sb3-qam data import scene-play-singletask-task1-v0`"):
        manager("qam", "scene-play-singletask-task1-v0", tmp_path, {"buffer_size": 100}).setup_experiment()


def test_phases_and_callbacks_of_an_entry_run(tmp_path: Path):
    """Cloning, the offline phase, online steps, with the entry's own callback, on one axis."""
    env = gym.make("Pendulum-v1", max_episode_steps=30)
    dataset_id = write_dataset(record(env, 3), env.observation_space, env.action_space).id
    config = tmp_path / "config.yml"
    callback = {"stable_baselines3.common.callbacks.CheckpointCallback": {"save_freq": 10, "save_path": str(tmp_path)}}
    entry = {
        "policy": "FlowPolicy",
        "n_timesteps": 20,
        "offline_dataset": dataset_id,
        "bc_steps": 10,
        "offline_steps": 20,
        "offline_fraction": 0.5,
        "policy_kwargs": {"net_arch": [8]},
        "callback": [callback],
    }
    config.write_text(yaml.safe_dump({"Pendulum-v1": entry}))
    experiment = manager("trqam", "Pendulum-v1", tmp_path, {"buffer_size": 100}, n_timesteps=-1, config=str(config))
    model, _ = experiment.setup_experiment()
    experiment.learn(model)
    steps = {int(path.stem.split("_")[-2]) for path in tmp_path.glob("rl_model_*.zip")}
    assert steps == {10, 20, 30, 40, 50}
    cloned, trained = (QAM.load(tmp_path / f"rl_model_{n}_steps.zip") for n in (10, 20))
    assert (cloned._n_bc_steps_done, cloned._n_offline_steps_done) == (10, 0)
    assert (trained._n_bc_steps_done, trained._n_offline_steps_done) == (10, 10)
    assert model.replay_buffer.size() == 20


def test_the_dataset_is_wrapped_as_the_environment_is(tmp_path: Path):
    env = gym.make("Pendulum-v1", max_episode_steps=30)
    dataset_id = write_dataset(record(env, 2), env.observation_space, env.action_space).id
    wrapper = {"gymnasium.wrappers.RescaleObservation": {"min_obs": -2.0, "max_obs": 2.0}}
    hyperparams = {"offline_dataset": dataset_id, "offline_steps": 2, "buffer_size": 100, "env_wrapper": [wrapper]}
    experiment = manager("qam", "Pendulum-v1", tmp_path, hyperparams)
    model, saved = experiment.setup_experiment()
    experiment.learn(model)
    assert model.observation_space.high.tolist() == [2.0, 2.0, 2.0]
    assert np.abs(model.offline_buffer.observations[:, 0]).max() > 1
    # What is written is what was asked for
    assert saved["offline_dataset"] == dataset_id


def test_the_dataset_has_the_frames_of_the_environment_and_wrappers_inside(tmp_path: Path):
    env = gym.make("Pendulum-v1", max_episode_steps=30)
    dataset_id = write_dataset(record(env, 2), env.observation_space, env.action_space).id
    wrapper = {"gymnasium.wrappers.RescaleObservation": {"min_obs": -2.0, "max_obs": 2.0}}
    config = {"offline_dataset": dataset_id, "offline_steps": 2, "buffer_size": 100, "frame_stack": 3}
    config |= {"env_wrapper": [wrapper], "learning_starts": 10}
    experiment = manager("qam", "Pendulum-v1", tmp_path, config)
    model, _ = experiment.setup_experiment()
    experiment.learn(model)
    store, online = model.offline_buffer.observations, model.replay_buffer.observations[:20, 0]
    assert model.observation_space.shape == (9,)
    for observations in (store, online):
        assert np.abs(observations[:, 6]).max() > 1
        # Zeros before the first frame, and then each frame moves to the left
        np.testing.assert_array_equal(observations[0, :6], 0)
        np.testing.assert_array_equal(observations[1:20, :6], observations[:19, 3:])


def test_frames_that_vec_normalize_would_not_see_are_refused(tmp_path: Path):
    config = {"buffer_size": 100, "normalize": True, "frame_stack": 3}
    with pytest.raises(ValueError, match="VecNormalize has single frames"):
        manager("qam", "Pendulum-v1", tmp_path, config).setup_experiment()
    frames = {"normalize": True, "env_wrapper": [{"sb3_qam.datasets.StackFrames": {"n_stack": 3}}]}
    assert build("qam", "Pendulum-v1", tmp_path, **frames).observation_space.shape == (9,)


def test_kitchens_wrappers_make_vectors_of_its_nested_data():
    vector = spaces.Box(-np.inf, np.inf, (59,), np.float64)
    goals = spaces.Dict({"kettle": spaces.Box(-np.inf, np.inf, (7,), np.float64)})
    space = spaces.Dict({"observation": vector, "achieved_goal": goals, "desired_goal": goals})
    episode = {
        "observations": {
            "observation": np.arange(4 * 59.0).reshape(4, 59),
            "achieved_goal": {"kettle": np.zeros((4, 7))},
            "desired_goal": {"kettle": np.zeros((4, 7))},
        },
        "actions": np.zeros((3, 9), np.float32),
        "rewards": [0.0, 0.0, 1.0],
    }
    dataset = write_dataset([episode], space, spaces.Box(-1.0, 1.0, (9,)))
    wrapped = wrap_dataset(dataset, rl_zoo3.get_wrapper_class(hyperparams_of("qam")["FrankaKitchen-v1"]))
    ((_, found),) = wrapped.episodes()
    np.testing.assert_array_equal(found.observations, episode["observations"]["observation"])
    assert QAM("FlowPolicy", offline_dataset=wrapped, buffer_size=10).observation_space.shape == (59,)


class _TwoSteps(gym.Env):
    """Succeeds at the first step and ends after the second one."""

    observation_space = action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        self.n = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.n += 1
        return np.zeros(1, dtype=np.float32), 0.0, self.n == 2, False, {"success": bool(action[0] > 0 and self.n == 1)}


def test_success_anywhere_in_an_episode_is_said_at_its_end():
    env = EpisodeSuccess(DummyVecEnv([_TwoSteps, _TwoSteps]))
    env.reset()
    said = []
    for _ in range(4):
        _, _, dones, infos = env.step(np.array([[1.0], [-1.0]]))
        said += [info["is_success"] for done, info in zip(dones, infos, strict=True) if done]
    assert said == [True, False, True, False]


class _SaysIsSuccess(_TwoSteps):
    def step(self, action):
        *step, info = super().step(action)
        return *step, {"is_success": info["success"]}


def test_rewards_from_success_are_those_of_the_steps(tmp_path: Path):
    """Whatever is said of the episode at its end."""
    transform = {"from_success": True, "terminate_on_success": True}
    for env in (_TwoSteps, _SaysIsSuccess):
        vec_env = EpisodeSuccess(DummyVecEnv([env]))
        model = QAM("FlowPolicy", vec_env, reward_transform=transform, learning_starts=20, **SMALL).learn(20)
        buffer = model.replay_buffer
        succeeded = (buffer.actions[:20, 0, 0] > 0) * np.tile([1, 0], 10)
        assert 0 < succeeded.sum() < 10
        np.testing.assert_array_equal(buffer.rewards[:20, 0], succeeded)


# ---------------------------------------------------------------------- search


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_sampled_are_arguments_and_converts_to_them_again(name: str):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        trial = study.ask()
        args = {"using_her_replay_buffer": False, "her_kwargs": {}}
        sampled = HYPERPARAMS_SAMPLER[name](trial, 1, 1, args)
        assert sampled == HYPERPARAMS_CONVERTER[name](trial.params)
        small = {"buffer_size": 10, "device": "cpu"}
        model = rl_zoo3.ALGOS[name]("MlpPolicy", "Pendulum-v1", **{**sampled, **small})
        assert model.gamma == pytest.approx(1 - trial.params["one_minus_gamma"])
        assert model.policy_kwargs["n_critics"] == trial.params["n_critics"]
    with_her = HYPERPARAMS_SAMPLER[name](study.ask(), 1, 1, {"using_her_replay_buffer": True, "her_kwargs": {}})
    assert "chunk_size" not in with_her
    assert "goal_selection_strategy" in with_her["replay_buffer_kwargs"]
    assert HYPERPARAMS_CONVERTER[name](study.trials[-1].params) == with_her


class _NotFinite(_TwoSteps):
    def step(self, action):
        return np.zeros(1, dtype=np.float32), float("nan"), True, False, {}


def test_a_search_prunes_trials_whose_losses_are_not_finite(tmp_path: Path):
    gym.register("NotFinite-v0", _NotFinite, disable_env_checker=True)
    search = {"optimize_hyperparameters": True, "n_evaluations": 1, "pruner": "none", "seed": 0}
    experiment = manager("qam", "NotFinite-v0", tmp_path, {"learning_starts": 5, "buffer_size": 100}, **search)
    experiment.setup_experiment()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(experiment.objective, n_trials=1)
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]


@pytest.mark.parametrize("name", sorted(zoo.ALGORITHMS))
@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "PointMaze_UMaze-v3"])
def test_every_draw_of_a_search_goes_with_the_configuration(name: str, env_id: str, tmp_path: Path):
    experiment = manager(name, env_id, tmp_path, {"buffer_size": 100}, optimize_hyperparameters=True)
    experiment.setup_experiment()
    additional_args = {"using_her_replay_buffer": False, "her_kwargs": {}}
    chunk_sizes = set()
    for seed in range(4):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
        arguments = {**experiment._hyperparams, **HYPERPARAMS_SAMPLER[name](trial, 1, 1, additional_args)}
        arguments |= {"offline_dataset": None, "offline_steps": 0, "bc_steps": 0}
        model = zoo.ALGORITHMS[name](env=gym.make(env_id), **arguments)
        chunk_sizes.add(model.chunk_size)
        # What is read from a study is what the trial had
        read = HYPERPARAMS_CONVERTER[name](trial.params)
        assert {key: arguments[key] for key in read} == read
    assert chunk_sizes == {1, 5}


def test_a_search_finds_what_a_run_can_be_started_with(tmp_path: Path):
    storage = f"sqlite:///{tmp_path}/study.db"
    hyperparams = {"buffer_size": 100, "learning_starts": 18, "policy_kwargs": {"ode_method": "midpoint"}}
    search = {
        "n_timesteps": 20,
        "env_kwargs": {"max_episode_steps": 20},
        "pruner": "none",
        "optimize_hyperparameters": True,
        "n_trials": 2,
        "n_startup_trials": 1,
        "n_evaluations": 1,
        "n_eval_episodes": 1,
        "no_optim_plots": True,
        "storage": storage,
        "study_name": "qam",
        "seed": 0,
    }
    experiment = manager("qam", "Pendulum-v1", tmp_path, hyperparams, **search)
    assert experiment.setup_experiment() is None
    experiment.hyperparameters_optimization()
    study = optuna.load_study(storage=storage, study_name="qam")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert study.best_value < 0
    assert len(list((tmp_path / "qam").glob("report_*.csv"))) == 1

    found = {"storage": storage, "study_name": "qam", "trial_id": 1}
    model, saved = manager("qam", "Pendulum-v1", tmp_path, hyperparams, **found).setup_experiment()
    params = study.trials[1].params
    assert model.inverse_temperature == saved["inverse_temperature"] == params["inverse_temperature"]
    assert model.policy_kwargs["n_critics"] == params["n_critics"]
    # What the trial has not drawn is that of the configuration
    assert model.policy.ode_method == "midpoint"
    assert model.policy_kwargs["ode_method"] == "midpoint"


def test_a_trial_keeps_what_it_does_not_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = []

    class Spy(rl_zoo3.ALGOS["qam"]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(kwargs["policy_kwargs"])
            raise FloatingPointError("pruned")

    monkeypatch.setitem(rl_zoo3.ALGOS, "qam", Spy)
    hyperparams = {"buffer_size": 100, "policy_kwargs": {"ode_method": "midpoint", "net_arch": [3]}}
    options = {"optimize_hyperparameters": True, "n_evaluations": 1, "pruner": "none", "seed": 0}
    experiment = manager("qam", "Pendulum-v1", tmp_path, hyperparams, **options)
    experiment.setup_experiment()
    study = optuna.create_study()
    study.optimize(experiment.objective, n_trials=1)
    (policy_kwargs,) = made
    assert policy_kwargs["ode_method"] == "midpoint"
    assert policy_kwargs["net_arch"] != [3]
    assert policy_kwargs["n_critics"] == study.trials[0].params["n_critics"]


def test_a_search_for_small_machines_draws_small_networks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "for_small_machines", False)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    options = {"using_her_replay_buffer": False, "her_kwargs": {}}
    for flags, widths in (["--small"], {64, 256}), ([], {256, 512}):
        typed = ["--algo", "qam", "--env", "Pendulum-v1", "-optimize"]
        assert zoo_arguments("train", [*flags, *typed]) == typed
        drawn = [HYPERPARAMS_SAMPLER["qam"](study.ask(), 1, 1, options) for _ in range(30)]
        assert {each["policy_kwargs"]["net_arch"][0] for each in drawn} == widths
        assert max(each["batch_size"] for each in drawn) == (256 if flags else 1024)
        assert {each["policy_kwargs"]["n_critics"] for each in drawn} == ({2} if flags else {2, 5, 10})
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
