"""Collected datasets are what the policy did, whoever recorded them and however often that was interrupted."""

import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import gymnasium_robotics
import minari
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from minari import MinariDataset
from minari.data_collector import EpisodeBuffer
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_qam import QAM
from sb3_qam.recording.collect import collect
from sb3_qam.recording.oracles import ogbench_oracle
from sb3_qam.recording.scripted import ScriptedPolicy
from sb3_qam.recording.staging import Staging, write_episode
from tests.conftest import be_killed_before, needs_ogbench, needs_uncompressed_images, record, write_dataset

gym.register_envs(gymnasium_robotics)
# Worker processes are forked from one that has imported what they need: here there are many of them
if "forkserver" in multiprocessing.get_all_start_methods():
    multiprocessing.get_context("forkserver").set_forkserver_preload(["sb3_qam.recording.workers", "sb3_contrib"])
SMALL = {"net_arch": [8]}
STEPS = 12


def contents(dataset: MinariDataset) -> list[Any]:
    """Everything in a dataset, with dicts as sorted lists."""

    def plain(value: Any) -> Any:
        return sorted((key, plain(each)) for key, each in value.items()) if isinstance(value, dict) else value

    seeds = [metadata["seed"] for metadata in dataset.storage.get_episode_metadata(dataset.episode_indices)]
    fields = ("id", "observations", "actions", "rewards", "terminations", "truncations", "infos")
    return [seeds, [[plain(getattr(episode, name)) for name in fields] for episode in dataset]]


def assert_same(first: MinariDataset, second: MinariDataset, n_episodes: int | None = None) -> None:
    """Two datasets, or the first episodes of the first and a second, are the same array for array."""
    seeds, episodes = contents(first)
    n_episodes = len(episodes) if n_episodes is None else n_episodes
    np.testing.assert_equal([seeds[:n_episodes], episodes[:n_episodes]], contents(second))


def collect_pendulum(dataset_id: str, n_episodes: int = 5, policy: Any = None, **kwargs: Any) -> MinariDataset:
    return collect(policy, "Pendulum-v1", dataset_id, n_episodes, **{"max_episode_steps": STEPS, **kwargs})


class Misbehave:
    """Random actions, but once, in the third episode, something happens. A file says that it did."""

    def __init__(self, marker: Path, what: str) -> None:
        self.marker, self.what, self.n_steps = marker, what, 0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        self.n_steps += 1
        if self.n_steps > 2 * STEPS and not self.marker.exists():
            self.marker.touch()
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt if self.what == "interrupt" else ZeroDivisionError("in the middle")
        return np.random.uniform(-2, 2, 1)


def test_processes_do_not_change_anything_and_random_state_is_left_alone():
    np.random.seed(3)
    th.manual_seed(3)
    expected = np.random.rand(), th.rand(1).item()
    np.random.seed(3)
    th.manual_seed(3)
    alone = collect_pendulum("test/alone-v0")
    assert (np.random.rand(), th.rand(1).item()) == expected
    assert_same(alone, collect_pendulum("test/two-v0", n_processes=2))
    assert alone.total_episodes == 5
    assert len({episode.actions.tobytes() for episode in alone}) == 5
    # Neighboring seeds share no episode
    other = collect_pendulum("test/other-v0", seed=1)
    assert not {each.tobytes() for episode in alone for each in episode.observations} & {
        each.tobytes() for episode in other for each in episode.observations
    }


def test_an_episode_is_as_minari_wants_it_and_knows_its_environment():
    dataset = collect(None, "Pendulum-v1", "test/minari-v0", 2, max_episode_steps=STEPS, env_kwargs={"g": 5.0})
    for episode in dataset:
        assert len(episode.observations) == STEPS + 1
        assert len(episode.actions) == len(episode.rewards) == STEPS
        assert episode.truncations.tolist() == [False] * (STEPS - 1) + [True]
        assert not episode.terminations.any()
    env = dataset.recover_environment()
    assert env.unwrapped.g == 5.0
    assert env.spec.max_episode_steps == STEPS
    # The seed that is stored makes the same episode again
    seed = next(iter(dataset.storage.get_episode_metadata([1])))["seed"]
    np.testing.assert_array_equal(env.reset(seed=seed)[0], dataset[1].observations[0])
    np.testing.assert_array_equal(env.step(dataset[1].actions[0])[0], dataset[1].observations[1])
    assert list(minari.list_local_datasets()) == ["test/minari-v0"]
    assert dataset.observation_space == env.observation_space


def replayed(model: Any, dataset: MinariDataset, normalize: Any = lambda observation: observation) -> None:
    """What a model does at the recorded observations, deterministically, is what was recorded."""
    for episode in dataset:
        state, start = None, np.ones(1, dtype=bool)
        for observation, action in zip(episode.observations, episode.actions, strict=False):
            expected, state = model.predict(normalize(observation[None]), state, start, deterministic=True)
            start = np.zeros(1, dtype=bool)
            np.testing.assert_array_equal(expected[0], action)


@pytest.mark.parametrize("algorithm", [SAC, PPO, RecurrentPPO])
def test_models_act_with_their_state(algorithm: Any):
    name = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    kwargs = {"lstm_hidden_size": 8} if algorithm is RecurrentPPO else {}
    model = algorithm(name, "Pendulum-v1", policy_kwargs=SMALL | kwargs, seed=0)
    replayed(model, collect_pendulum("test/model-v0", 2, model, deterministic=True))
    noisy = collect_pendulum("test/noisy-v0", 2, model)
    assert len({action.tobytes() for episode in noisy for action in episode.actions}) > STEPS


def test_chunks_go_through_processes_too():
    model = QAM("FlowPolicy", "Pendulum-v1", policy_kwargs=dict(SMALL), chunk_size=2, flow_steps=2, seed=0)
    model.learn(10)
    alone = collect_pendulum("test/chunks-v0", 4, model)
    assert_same(alone, collect_pendulum("test/chunks-v1", 4, model, n_processes=2))
    # Only at the beginning of a chunk does an observation matter
    replayed(model, collect_pendulum("test/chunks-v2", 1, model, deterministic=True))


def test_a_model_sees_what_its_vec_normalize_makes_of_observations():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = SAC("MlpPolicy", env, policy_kwargs=dict(SMALL), learning_starts=1000, seed=0)
    model.learn(50)
    dataset = collect_pendulum("test/normalized-v0", 2, model, deterministic=True)
    replayed(model, dataset, env.normalize_obs)
    assert np.abs(dataset[0].observations[:, 2]).max() > 1e-3
    model.learn(50)
    with pytest.raises(ValueError, match=r"other arguments: policy 'SAC \w+' there, 'SAC \w+' here"):
        collect_pendulum("test/normalized-v0", 3, model, deterministic=True)


class Pictures(gym.Env):
    """Random pictures, and infos of every kind."""

    observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = spaces.Discrete(3)

    def _info(self) -> dict[str, Any]:
        sums = {"nested": {"sum": np.float32(self.t)}, "name": "a picture", "nothing": None}
        return {**sums, "growing": np.zeros(self.t), "odd": self.t % 2 == 1}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.integers(0, 256, (36, 36, 3), np.uint8), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert isinstance(action, np.integer)
        self.t += 1
        at_end = {"is_success": True, "episode": {"r": 1.0}} if self.t == 4 else {}
        info = {**self._info(), "step": self.t, **at_end}
        return self.np_random.integers(0, 256, (36, 36, 3), np.uint8), 0, self.t == 4, False, info


@needs_uncompressed_images
def test_pictures_are_lossless_and_infos_of_one_structure_are_kept():
    model = PPO("CnnPolicy", Pictures(), n_steps=8, batch_size=8, policy_kwargs={"normalize_images": True})
    env = Pictures()
    dataset = collect(model, env, "test/pictures-v0", 2, deterministic=True, seed=5)
    replayed(model, dataset)
    episode = dataset[1]
    assert episode.observations.dtype == np.uint8
    assert episode.actions.shape == (4,)
    assert episode.terminations.tolist() == [False, False, False, True]
    seeds = contents(dataset)[0]
    np.testing.assert_array_equal(env.reset(seed=seeds[1])[0], episode.observations[0])
    assert sorted(episode.infos) == ["is_success", "nested", "odd", "step"]
    assert episode.infos["nested"]["sum"].tolist() == [0, 1, 2, 3, 4]
    assert episode.infos["odd"].tolist() == [False, True, False, True, False]
    assert episode.infos["step"].tolist() == [0, 1, 2, 3, 4]
    assert episode.infos["is_success"].tolist() == [False, False, False, False, True]
    without = collect(None, Pictures, "test/pictures-v1", 1, record_infos=False)
    assert not without[0].infos


def test_an_environment_that_cannot_be_stored_is_said_to_be_missing():
    env = gym.make(gym.envs.registration.EnvSpec("test/Pictures-v0", entry_point=lambda: Pictures()))
    with pytest.warns(UserWarning, match="environment 'test/Pictures-v0' cannot be stored with the dataset"):
        dataset = collect(None, env, "test/unknown-v0", 1)
    assert dataset.env_spec is None


def to_the_goal(observation: dict[str, np.ndarray]) -> np.ndarray:
    way = observation["desired_goal"] - observation["achieved_goal"]
    return np.clip(10 * way, -1, 1)


def test_dict_observations_success_and_training_on_what_was_collected():
    arguments = {"max_episode_steps": 20, "env_kwargs": {"continuing_task": False}}
    dataset = collect(to_the_goal, "PointMaze_Open-v3", "test/maze-v0", 3, **arguments)
    assert set(dataset[0].observations) == {"observation", "achieved_goal", "desired_goal"}
    for episode in dataset:
        assert episode.observations["observation"].shape == (len(episode) + 1, 4)
        assert episode.infos["success"].shape == (len(episode) + 1,)
        assert episode.infos["success"].dtype == bool
    assert dataset.recover_environment().spec.id == "PointMaze_Open-v3"
    small = {"batch_size": 8, "flow_steps": 2, "policy_kwargs": dict(SMALL)}
    env = dataset.recover_environment()
    QAM("MultiInputPolicy", env, offline_dataset="test/maze-v0", reward_transform={"from_success": True}, **small)
    QAM("MultiInputPolicy", offline_dataset=dataset, **small).pretrain(gradient_steps=2)


def test_more_episodes_extend_a_dataset_and_a_complete_one_is_opened():
    whole = collect_pendulum("test/whole-v0", 6)
    extended = collect_pendulum("test/extended-v0", 2)
    assert_same(whole, extended, 2)
    assert_same(whole, collect_pendulum("test/extended-v0", 6))
    files = [path.stat().st_mtime_ns for path in Path(whole.spec.data_path).iterdir()]
    assert_same(whole, collect_pendulum("test/whole-v0", 6))
    assert files == [path.stat().st_mtime_ns for path in Path(whole.spec.data_path).iterdir()]
    with pytest.raises(ValueError, match="has 6 episodes already, more than n_episodes=2"):
        collect_pendulum("test/whole-v0", 2)


@pytest.mark.parametrize("what", ["interrupt", "fail"])
def test_what_was_finished_before_ctrl_c_or_an_error_is_kept(what: str, tmp_path: Path):
    whole = collect_pendulum("test/whole-v0", 5, Misbehave(Path("/"), what))
    with pytest.raises(KeyboardInterrupt if what == "interrupt" else ZeroDivisionError):
        collect_pendulum("test/stopped-v0", 5, Misbehave(tmp_path / "marker", what))
    assert_same(whole, minari.load_dataset("test/stopped-v0"), 2)
    assert_same(whole, collect_pendulum("test/stopped-v0", 5, Misbehave(tmp_path / "marker", what)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fail", r"Episode \d failed in a worker process:\n.*ZeroDivisionError: in the middle"),
        ("kill", "A worker process died: killed, .* is kept, and the same call resumes there"),
    ],
)
def test_a_worker_that_fails_or_is_killed_is_an_error_and_no_loss(what: str, message: str, tmp_path: Path):
    whole = collect_pendulum("test/whole-v0", 7, Misbehave(Path("/"), what))
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        collect_pendulum("test/stopped-v0", 7, Misbehave(tmp_path / "marker", what), n_processes=2)
    assert_same(whole, collect_pendulum("test/stopped-v0", 7, Misbehave(tmp_path / "marker", what)))


def collect_until_killed(dataset_id: str, n_events: int) -> None:
    """Collect, and be killed before the given one of all the operations on files in Minari's cache."""
    be_killed_before(n_events)
    collect_pendulum(dataset_id, 3)


@pytest.mark.kill
def test_killed_before_any_operation_on_files_a_collection_resumes():
    """Each operation in turn; Minari opens what there is, and it is resumed to what it would have been."""
    whole = collect_pendulum("test/whole-v0", 3)
    n_published = set()
    for n_events in itertools.count():
        dataset_id = f"test/killed{n_events}-v0"
        child = multiprocessing.get_context("fork").Process(target=collect_until_killed, args=(dataset_id, n_events))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        staging = Staging(dataset_id)
        if staging.dataset_folder.exists():
            opened = minari.load_dataset(dataset_id)
            assert_same(whole, opened, opened.total_episodes)
            assert opened.total_steps == STEPS * opened.total_episodes
            n_published.add(opened.total_episodes)
        assert_same(whole, collect_pendulum(dataset_id, 3))
        assert not list(staging.folder.parent.glob(f"{staging.folder.name}*"))
        shutil.rmtree(staging.dataset_folder)
    assert n_events > 50
    assert n_published == {2, 3}


@pytest.mark.kill
def test_killed_at_random_moments_again_and_again_a_collection_resumes():
    whole = collect_pendulum("test/whole-v0", 200)
    dataset_id, delays = "test/killed-v0", random.Random(0)
    staging = Staging(dataset_id)
    n_killed = 0
    for n_runs in itertools.count():
        child = multiprocessing.get_context("fork").Process(target=collect_pendulum, args=(dataset_id, 200))
        child.start()
        if n_runs < 10:
            child.join(delays.uniform(0, 0.2))
            child.kill()
        child.join()
        if staging.dataset_folder.exists():
            opened = minari.load_dataset(dataset_id)
            assert_same(whole, opened, opened.total_episodes)
        if child.exitcode == 0:
            break
        n_killed += 1
    assert n_killed > 0
    assert_same(whole, minari.load_dataset(dataset_id))
    assert not staging.folder.exists()


SCRIPT = f"""
import multiprocessing
from sb3_qam.recording.collect import collect
if __name__ == "__main__":
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(["sb3_qam.recording.workers"])
    collect(None, "Pendulum-v1", "test/killed-v0", 400, max_episode_steps={STEPS}, n_processes=2)
"""


@pytest.mark.kill
def test_killed_at_random_moments_a_parallel_collection_resumes(tmp_path: Path):
    whole = collect_pendulum("test/whole-v0", 400)
    (tmp_path / "script.py").write_text(SCRIPT)
    staging = Staging("test/killed-v0")
    delays = random.Random(0)
    n_killed = 0
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for n_runs in itertools.count(1):
        assert n_runs <= 20
        n_before = len(list(staging.folder.glob("*/*")))
        child = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment)
        if n_killed < 2:
            while child.poll() is None and len(list(staging.folder.glob("*/*"))) <= n_before:
                time.sleep(0.001)
            time.sleep(delays.uniform(0, 0.3))
            child.kill()
        if child.wait() == 0:
            break
        n_killed += 1
        if staging.dataset_folder.exists():
            opened = minari.load_dataset("test/killed-v0")
            assert_same(whole, opened, opened.total_episodes)
    assert n_killed > 0
    assert_same(whole, minari.load_dataset("test/killed-v0"))
    assert not staging.folder.exists()


ENDLESS = """
import os, sys, time
from pathlib import Path
import gymnasium as gym
from gymnasium import spaces
from sb3_qam.recording import collect

class Endless(gym.Env):
    observation_space = action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        (Path(sys.argv[1]) / str(os.getpid())).touch()
        return self.observation_space.sample(), {}

    def step(self, action):
        time.sleep(0.1)
        return self.observation_space.sample(), 0.0, False, False, {}

if __name__ == "__main__":
    collect(None, Endless, "test/endless-v0", 4, n_processes=2)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.kill
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no list of processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent_in_the_middle_of_an_episode(number: signal.Signals, tmp_path: Path):
    (tmp_path / "script.py").write_text(ENDLESS)
    (tmp_path / "pids").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path / "pids"], env=environment)
    end = time.monotonic() + 120
    while len(list((tmp_path / "pids").iterdir())) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.send_signal(number)
    assert parent.wait(30) != 0
    while any(is_running(int(path.name)) for path in (tmp_path / "pids").iterdir()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_collectors_of_one_dataset_do_not_mix():
    with Staging("test/locked-v0").locked(), pytest.raises(RuntimeError, match=f"written by process {os.getpid()}"):
        collect_pendulum("test/locked-v0")
    assert collect_pendulum("test/locked-v0").total_episodes == 5


class Touch:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return self.path.touch, ()


def test_staged_episodes_are_data_and_no_programs(tmp_path: Path):
    staging = Staging("test/data-v0")
    staging.begin(collect_pendulum("test/data-v0", 2).storage.metadata["sb3_qam_collect"])
    program = Touch(tmp_path / "ran")
    np.savez(staging.episodes_folder / "2.npz", structure=np.array(program, dtype=object))
    (staging.episodes_folder / "3.pickle").write_bytes(pickle.dumps(program))
    with pytest.raises(ValueError, match=r"episode .*2\.npz cannot be read \(Object arrays .*: remove it"):
        collect_pendulum("test/data-v0", 4)
    assert not (tmp_path / "ran").exists()
    assert minari.load_dataset("test/data-v0").total_episodes == 2


@pytest.mark.parametrize("n_before", [0, 40])
def test_a_full_disk_is_one_line_and_loses_nothing(n_before: int, small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    whole = collect_pendulum("test/whole-v0", 60)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(small_disk))
    if n_before:
        collect_pendulum("test/full-v0", n_before)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 500_000))
    with pytest.raises(
        OSError, match=r"Publishing dataset 'test/full-v0' needs [\d.]+ MB, and 0\.\d MB are free"
    ) as error:
        collect_pendulum("test/full-v0", 60)
    assert "\n" not in str(error.value)
    if n_before:
        assert_same(whole, minari.load_dataset("test/full-v0"), n_before)
    filler.unlink()
    assert_same(whole, collect_pendulum("test/full-v0", 60))


def test_a_collection_resumes_with_the_same_arguments_only():
    collect_pendulum("test/mine-v0", 2)
    with pytest.raises(ValueError, match=r"other arguments: seed 0 there, 3 here"):
        collect_pendulum("test/mine-v0", 3, seed=3)
    with pytest.raises(ValueError, match=r"policy 'RandomPolicy' there, 'tests.*\.to_the_goal' here"):
        collect_pendulum("test/mine-v0", 3, to_the_goal)
    with pytest.raises(ValueError, match="max_episode_steps '12' there, '9' here"):
        collect_pendulum("test/mine-v0", 3, max_episode_steps=9)
    # Staged episodes of other arguments are left alone
    staging = Staging("test/staged-v0")
    staging.begin({"seed": 8})
    write_episode(staging.episodes_folder, 3, EpisodeBuffer())
    assert collect_pendulum("test/staged-v0").total_steps == 5 * STEPS
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    write_dataset(record(env, 1), env.observation_space, env.action_space, "test/foreign-v0")
    with pytest.raises(ValueError, match=r"was not made by collect.*minari delete test/foreign-v0"):
        collect_pendulum("test/foreign-v0")


def test_other_environments_and_wrappers_are_other_collections():
    def refused(what: str, first: dict[str, Any], second: dict[str, Any]) -> None:
        dataset_id = f"test/other{next(numbers)}-v0"
        defaults = {"policy": None, "env": Pictures}
        collect(dataset_id=dataset_id, n_episodes=1, **defaults | first)
        collect(dataset_id=dataset_id, n_episodes=2, **defaults | first)
        with pytest.raises(ValueError, match=rf"is collected with other arguments: {what}"):
            collect(dataset_id=dataset_id, n_episodes=3, **defaults | second)

    numbers = itertools.count()
    refused("wrappers 'TimeLimit .*3.*' there, ", {"max_episode_steps": 3}, {"max_episode_steps": 2})
    refused("env 'Broken' there, 'Pictures' here", {"env": partial(Broken, "nothing")}, {"env": Pictures})
    refused(r"wrappers '' there, 'Autoreset", {"env": Pictures()}, {"env": gym.wrappers.Autoreset(Pictures())})
    pendulum = {"env": "Pendulum-v1", "max_episode_steps": 3}
    refused(
        "env 'Pendulum-v1 {\"g\": 9.0}' there, ",
        {**pendulum, "env_kwargs": {"g": 9.0}},
        {**pendulum, "env_kwargs": {"g": 5.0}},
    )

    def rewarded(function: Any) -> gym.Env:
        return gym.wrappers.TransformReward(Pictures(), function)

    refused("wrappers 'TransformReward .*sign", {"env": rewarded(np.sign)}, {"env": rewarded(plus_one)})


def plus_one(reward: float) -> float:
    return reward + 1


def push(observation: np.ndarray, force: float = 1.0) -> np.ndarray:
    return np.full(1, force)


def test_a_policy_goes_by_its_name_or_by_one_that_is_given():
    dataset = collect_pendulum("test/named-v0", 1, push)
    assert dataset.storage.metadata["algorithm_name"] == "tests.recording.test_collect.push"
    collect_pendulum("test/partial-v0", 1, partial(push, force=0.5))
    with pytest.raises(ValueError, match=r"policy '.*push .*0\.5.*' there, '.*push .*-1\.0.*' here"):
        collect_pendulum("test/partial-v0", 2, partial(push, force=-1.0))

    def pull(observation: np.ndarray) -> np.ndarray:
        return -push(observation)

    for nameless in (pull, lambda observation: push(observation), partial(pull)):
        with pytest.raises(
            ValueError, match=r"has no name by which .* pass policy_name='...', or define it at the top"
        ):
            collect_pendulum("test/pull-v0", 1, nameless)
    collect_pendulum("test/pull-v0", 1, pull, policy_name="pull")
    assert collect_pendulum("test/pull-v0", 2, lambda _: -np.ones(1), policy_name="pull").total_episodes == 2
    with pytest.raises(ValueError, match="policy 'pull' there, 'stay' here"):
        collect_pendulum("test/pull-v0", 3, pull, policy_name="stay")


@pytest.mark.parametrize("algorithm", [SAC, QAM])
def test_models_with_hindsight_act_in_processes_too(algorithm: Any):
    def make_env() -> gym.Env:
        return BitFlippingEnv(n_bits=4, continuous=True, max_steps=4)

    model = algorithm(
        "MultiInputPolicy",
        make_env(),
        replay_buffer_class=HerReplayBuffer,
        buffer_size=200,
        policy_kwargs=dict(SMALL),
        seed=0,
    )
    alone = collect(model, make_env, "test/hindsight-v0", 2)
    assert_same(alone, collect(model, make_env, "test/hindsight-v1", 2, n_processes=2))


def test_workers_continue_while_the_parent_publishes(monkeypatch: pytest.MonkeyPatch):
    publish = Staging.publish

    def publish_slowly(self: Staging, n_episodes: int) -> None:
        end = time.monotonic() + 60
        while n_episodes < 8 and not (self.episodes_folder / "7.npz").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        publish(self, n_episodes)

    monkeypatch.setattr(Staging, "publish", publish_slowly)
    assert collect_pendulum("test/slow-v0", 8, n_processes=2).total_episodes == 8


class Unsuitable(gym.Env):
    observation_space = spaces.Text(4)
    action_space = spaces.Discrete(2)


def test_what_cannot_be_collected_is_refused():
    with pytest.raises(ValueError, match="'wrong' is not a Minari dataset id"):
        collect_pendulum("wrong")
    with pytest.raises(ValueError, match="n_episodes must be an integer of at least 1, got 0"):
        collect_pendulum("test/a-v0", 0)
    with pytest.raises(ValueError, match="2 processes need as many environments"):
        collect(None, gym.make("Pendulum-v1"), "test/a-v0", 1, n_processes=2)
    with pytest.raises(TypeError, match="policy must be a model with SB3's predict"):
        collect_pendulum("test/a-v0", policy=3)
    with pytest.raises(TypeError, match="SB3's VecEnvs hold several"):
        collect(None, DummyVecEnv([Pictures]), "test/a-v0", 1)
    with pytest.raises(TypeError, match=r"env must make a gymnasium.Env, it made 3"):
        collect(None, lambda: 3, "test/a-v0", 1)
    with pytest.raises(ValueError, match="env_kwargs are for an env that is given as an id"):
        collect(None, Pictures, "test/a-v0", 1, env_kwargs={"g": 1.0})
    with pytest.raises(ValueError, match="observation space has Text"):
        collect(None, Unsuitable, "test/a-v0", 1)
    with pytest.raises(
        ValueError, match=r"model's observation space does not fit the environment: Box\(\[-1. -1. -8.\]"
    ):
        collect(SAC("MlpPolicy", "Pendulum-v1"), "MountainCarContinuous-v0", "test/a-v0", 1)
    with pytest.raises(ValueError, match=r"action has the shape \(2,\), and Box.* asks for \(1,\)"):
        collect_pendulum("test/b-v0", policy=lambda observation: np.zeros(2), policy_name="wide")
    assert not minari.list_local_datasets()
    # What failed at once does not stand in the way
    assert collect_pendulum("test/b-v0").total_episodes == 5


class OddInfos(Pictures):
    """Infos that no file can hold, or not both."""

    odd: ClassVar[dict[str, Any]] = {
        "a": 2.0,
        "a/b": 1.0,
        "": 3.0,
        ".": 4.0,
        "c/": 5.0,
        "/d": 6.0,
        "e\0": 7.0,
        "f/g": 8,
    }

    def _info(self) -> dict[str, Any]:
        return {**self.odd, "f": {"g": 9, "h": 10}, "\ud800": 1}


@pytest.mark.parametrize("n_processes", [1, 2])
def test_infos_that_no_file_can_hold_are_left_out_with_one_warning(n_processes: int):
    with pytest.warns(UserWarning, match="Infos are left out of the dataset, 'a/b', '', '.', 'c/', '/d', ") as warned:
        dataset = collect(None, OddInfos, "test/odd-v0", 4, n_processes=n_processes)
    assert len([each for each in warned if "left out" in str(each.message)]) == 1
    for episode in dataset:
        assert sorted(episode.infos) == ["a", "f", "is_success", "step"]
        assert set(episode.infos["f"]) == {"g", "h"}
        assert episode.infos["a"].tolist() == [2.0] * 5


class Broken(gym.Env):
    """Something is not finite at the third step of every episode but the first two."""

    action_space = spaces.Box(-1.0, 1.0, (1,))
    observation_space = spaces.Dict({"position": spaces.Box(-1.0, 1.0, (2,)), "time": spaces.Discrete(9)})

    def __init__(self, what: str) -> None:
        self.what, self.n_episodes = what, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.t, self.n_episodes = 0, self.n_episodes + 1
        return {"position": np.zeros(2), "time": 0}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        value = np.nan if self.t == 3 and self.n_episodes > 2 else 0.0
        observation = {"position": np.full(2, value if self.what == "observation" else 0.0), "time": self.t}
        return observation, value if self.what == "reward" else 0.0, False, self.t == 5, {}


def test_what_is_not_finite_is_an_error_and_not_recorded():
    for what, place in {"observation": r"observation\['position'\]", "reward": "reward"}.items():
        with pytest.raises(ValueError, match=f"^Episode 2, step 2: {place} is not finite, .*nan"):
            collect(None, Broken(what), f"test/{what}-v0", 5)
        assert minari.load_dataset(f"test/{what}-v0").total_episodes == 2
        assert len(list(Staging(f"test/{what}-v0").folder.glob("*/*"))) == 0
    with pytest.raises(ValueError, match=r"^Episode 0, step 0: action is not finite, array\(\[nan\]"):
        collect_pendulum("test/action-v0", policy=lambda observation: np.full(1, np.nan), policy_name="nan")


def test_actions_beyond_the_bounds_are_an_error_and_rounding_is_none():
    with pytest.raises(ValueError, match=r"^Episode 0, step 0: action array\(\[3.\].* bounds \[-2.\] and \[2.\]: clip"):
        collect_pendulum("test/beyond-v0", policy=lambda observation: np.full(1, 3.0), policy_name="3")
    with pytest.raises(ValueError, match=r"action .*5.* lies beyond the values of Discrete\(3\)"):
        collect(lambda observation: 5, Pictures, "test/beyond-v0", 1, policy_name="5")
    almost = np.full(1, np.nextafter(np.float32(2), 3))
    rounded = collect_pendulum("test/rounded-v0", 1, lambda observation: almost, policy_name="almost 2")
    assert rounded[0].actions.tolist() == [[2.0]] * STEPS


class Push(ScriptedPolicy):
    """Sees infos and the environment, and chooses where to begin."""

    def reset_options(self, env: gym.Env, rng: np.random.Generator) -> dict[str, Any]:
        return {"x_init": 0.1, "y_init": 0.0}

    def reset(self, observation: Any, info: dict[str, Any], env: gym.Env, rng: np.random.Generator) -> None:
        self.env, self.force = env.unwrapped, rng.uniform(-1, 1)

    def select_action(self, observation: Any, info: dict[str, Any]) -> np.ndarray:
        return np.array([self.force * self.env.max_torque])


def test_scripted_policies_see_the_environment():
    dataset = collect_pendulum("test/push-v0", 3, Push())
    assert all((episode.actions == episode.actions[0]).all() for episode in dataset)
    assert len({float(episode.actions[0, 0]) for episode in dataset}) == 3
    assert all(abs(np.arctan2(*episode.observations[0, 1::-1])) <= 0.1 for episode in dataset)


@pytest.mark.parametrize(
    ("env_id", "kind", "n_steps"),
    [
        ("cube-single-v0", "plan", 150),
        ("cube-double-v0", "markov", 120),
        ("scene-v0", "plan", 200),
        ("puzzle-3x3-v0", "plan", 60),
        ("pointmaze-medium-v0", None, 400),
        ("pointmaze-medium-singletask-task4-v0", None, 400),
    ],
)
@needs_ogbench
@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_ogbenchs_oracles_reach_one_target_after_the_other(env_id: str, kind: str | None, n_steps: int):
    oracle = ogbench_oracle(env_id, kind)
    dataset = collect(oracle, env_id, "test/oracle-v0", 2, max_episode_steps=n_steps)
    assert dataset.total_steps == 2 * n_steps
    for episode in dataset:
        assert (np.diff(episode.infos["success"]) > 0).sum() >= 1
        if "cube" in env_id:
            blocks = [key for key in episode.infos["privileged"] if key.endswith("_pos") and key.startswith("block")]
            positions = np.concatenate([episode.infos["privileged"][key] for key in blocks], axis=1)
            assert np.ptp(positions, axis=0).max() > 0.05
    # The second episode does not know of the first, of which a scene would remember targets
    if env_id in ("cube-double-v0", "scene-v0") or "maze" in env_id:
        for n_episodes in (1, 2):
            resumed = collect(oracle, env_id, "test/resumed-v0", n_episodes, max_episode_steps=n_steps)
        assert_same(dataset, resumed)


@needs_ogbench
def test_oracles_are_refused_where_they_do_not_fit():
    with pytest.raises(ValueError, match="no environment 'scene-v99': expected one of OGBench's cube, scene"):
        ogbench_oracle("scene-v99")
    with pytest.raises(ValueError, match="no scripted oracle for 'antmaze-medium-v0'"):
        ogbench_oracle("antmaze-medium-v0")
    with pytest.raises(ValueError, match="kind must be one of 'plan', 'markov', got 'clever'"):
        ogbench_oracle("cube-single-v0", "clever")
    with pytest.raises(ValueError, match="kind is for oracles of manipulation"):
        ogbench_oracle("pointmaze-medium-v0", "plan")
    with pytest.raises(ValueError, match=r"noise must be a finite number .*at least 0.0, got -1"):
        ogbench_oracle("cube-single-v0", noise=-1)
    with pytest.raises(ValueError, match="need a manipulation environment with mode='data_collection'"):
        collect(ogbench_oracle("cube-single-v0"), gym.make("Pendulum-v1"), "test/a-v0", 1)
    with pytest.raises(ValueError, match="maze oracle needs one of its mazes"):
        collect(ogbench_oracle("pointmaze-medium-v0"), gym.make("Pendulum-v1"), "test/a-v0", 1)


def test_actions_that_no_algorithm_here_can_learn_are_recorded_with_a_warning():
    with pytest.warns(UserWarning, match=r"cannot be trained on what is recorded here: .*got Discrete\(2\)"):
        dataset = collect(None, "CartPole-v1", "test/cart-v0", 2)
    assert dataset.total_episodes == 2


def test_modules_and_classes_of_environments_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module of an id is imported, and an environment that was registered by its class is stored by its name."""
    (tmp_path / "pendulums.py").write_text(
        "import gymnasium as gym\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "class Mine(PendulumEnv): ...\ngym.register('Mine-v0', Mine, max_episode_steps=4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    dataset = collect(None, "pendulums:Mine-v0", "test/mine-v0", 2)
    assert dataset.total_steps == 8
    assert dataset.spec.env_spec.entry_point == "pendulums:Mine"
    assert type(dataset.recover_environment().unwrapped).__name__ == "Mine"
