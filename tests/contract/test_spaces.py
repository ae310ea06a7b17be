"""Every observation space that SB3 preprocesses, and the action spaces a flow can act in."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_qam import QAM
from sb3_qam.common.export import export_onnx
from sb3_qam.runtime import OnnxPolicy
from tests.conftest import record, write_dataset
from tests.contract.conftest import SMALL, RandomEnv, images, small

OBSERVATION_SPACES = {
    "vector": spaces.Box(-1.0, 1.0, (3,)),
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "integers": spaces.Box(0, 9, (2,), np.int64),
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(4),
    "binary matrix": spaces.MultiBinary((2, 3)),
    "dict": spaces.Dict(a=spaces.Discrete(3), b=spaces.MultiDiscrete([2, 3]), c=spaces.MultiBinary(2)),
}


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", OBSERVATION_SPACES)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_observations(algorithm, name: str, n_envs: int, n_steps: int):
    space = OBSERVATION_SPACES[name]
    policy = "MultiInputPolicy" if name == "dict" else "MlpPolicy"
    env = DummyVecEnv([lambda: RandomEnv(space) for _ in range(n_envs)])
    model = algorithm(policy, env, n_steps=n_steps, **small(algorithm)).learn(20)
    assert model._n_updates > 0
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)
    assert model.predict(space.sample(), deterministic=True)[0].shape == (2,)


def test_the_order_of_keys_makes_no_difference(algorithm, tmp_path: Path):
    """Equal Dict spaces may have their keys in any order; recorded data has them sorted."""
    parts = {"position": spaces.Box(-1.0, 1.0, (2,)), "goal": spaces.Box(-1.0, 1.0, (2,))}
    narrow = {key: spaces.Box(-1.0, 1.0, (2,), np.float64) for key in parts}
    ordered, as_sorted = spaces.Dict(**parts), spaces.Dict(parts)
    assert (list(ordered), list(as_sorted)) == (["position", "goal"], ["goal", "position"])
    model = algorithm("MultiInputPolicy", RandomEnv(as_sorted), seed=0, **small(algorithm)).learn(20)
    model.save(tmp_path / "model")
    observation = {"position": np.array([0.1, 0.9], np.float32), "goal": np.array([-0.7, 0.3], np.float32)}
    expected = model.predict(observation, deterministic=True)[0]
    others = [algorithm.load(tmp_path / "model", env=RandomEnv(space)) for space in (ordered, spaces.Dict(**narrow))]
    others[0].set_env(RandomEnv(spaces.Dict(**narrow)))
    others[0].save(tmp_path / "other")
    others.append(algorithm.load(tmp_path / "other"))
    others.append(algorithm("MultiInputPolicy", RandomEnv(ordered), **small(algorithm)))
    others[-1].set_parameters(tmp_path / "model")
    for other in others:
        np.testing.assert_allclose(other.predict(observation, deterministic=True)[0], expected, atol=1e-6)
    others[0].policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    np.testing.assert_allclose(policy.predict(observation, deterministic=True)[0], expected, atol=1e-6)


STARTS = {
    "discrete": (spaces.Discrete(3), spaces.Discrete(3, start=-1)),
    "multi-discrete": (spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([3, 4], start=[5, -2])),
    "dict": (spaces.Dict(a=spaces.Discrete(3)), spaces.Dict(a=spaces.Discrete(3, start=7))),
}


@pytest.mark.parametrize("name", STARTS)
def test_numbers_need_not_start_with_zero(algorithm, name: str, tmp_path: Path):
    from_zero, from_elsewhere = STARTS[name]
    policy = "MultiInputPolicy" if name == "dict" else "MlpPolicy"
    models = [
        algorithm(policy, RandomEnv(space), seed=0, **small(algorithm)).learn(20)
        for space in (from_zero, from_elsewhere)
    ]
    shift = getattr(from_elsewhere, "start", 7)
    for _ in range(5):
        observation = from_zero.sample()
        elsewhere = {"a": observation["a"] + shift} if name == "dict" else observation + shift
        # Deterministic actions have their noise from the observation itself
        features = [
            model.policy.critic.features(model.policy.obs_to_tensor(each)[0])
            for model, each in zip(models, (observation, elsewhere), strict=True)
        ]
        np.testing.assert_array_equal(*(each.shape for each in features))
        np.testing.assert_array_equal(*features)
    export_onnx(models[1], tmp_path / "policy.onnx")
    action, _ = OnnxPolicy(tmp_path / "policy.onnx").predict(elsewhere)
    np.testing.assert_allclose(action, models[1].predict(elsewhere, deterministic=True)[0], atol=1e-5)


@pytest.mark.parametrize("keys", [("observation.state", "observation.images.top"), ("train", "type"), ("a.b", "a_b")])
def test_keys_that_pytorch_does_not_take_are_taken(algorithm, keys: tuple[str, str], tmp_path: Path):
    space = spaces.Dict({keys[0]: spaces.Box(-1.0, 1.0, (3,)), keys[1]: images(channels_first=True)})
    plain = spaces.Dict(dict(zip("ab", space.values(), strict=True)))
    model, other = (
        algorithm("MultiInputPolicy", RandomEnv(each), chunk_size=2, seed=0, **small(algorithm)).learn(14)
        for each in (space, plain)
    )
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), other.policy.parameters_to_vector())
    model.save(tmp_path / "model")
    export_onnx(model, tmp_path / "policy.onnx")
    observation = space.sample()
    expected, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(
        algorithm.load(tmp_path / "model").predict(observation, deterministic=True)[0], expected
    )
    np.testing.assert_allclose(OnnxPolicy(tmp_path / "policy.onnx").predict(observation)[0], expected, atol=1e-5)


def test_a_dict_of_one_vector_is_the_vector(algorithm):
    class InDict(gym.ObservationWrapper):
        def __init__(self, env: gym.Env) -> None:
            super().__init__(env)
            self.observation_space = spaces.Dict(vector=env.observation_space)

        def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
            return {"vector": observation}

    env = gym.make("Pendulum-v1")
    vector = algorithm("MlpPolicy", env, seed=0, **small(algorithm)).learn(30)
    in_dict = algorithm("MultiInputPolicy", InDict(env), seed=0, **small(algorithm)).learn(30)
    np.testing.assert_array_equal(vector.policy.parameters_to_vector(), in_dict.policy.parameters_to_vector())


@pytest.mark.parametrize("name", ["discrete", "multi-discrete", "multi-binary"])
def test_numbers_are_ones_and_zeros_to_the_networks(algorithm, name: str):
    space = OBSERVATION_SPACES[name]
    policy = algorithm("MlpPolicy", RandomEnv(space), **small(algorithm)).policy
    observation, is_vectorized = policy.obs_to_tensor(np.asarray(space.sample()))
    features = policy.behavior.features(observation)
    assert not is_vectorized
    assert features.shape == (1, spaces.flatdim(space))
    assert set(features.flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", ["discrete", "multi-discrete", "multi-binary"])
def test_offline_and_online_batches_of_numbers_are_alike(name: str):
    space = OBSERVATION_SPACES[name]
    env = RandomEnv(space)
    dataset = write_dataset(record(env, 2), env.observation_space, env.action_space)
    model = QAM("MlpPolicy", env, offline_dataset=dataset, offline_steps=3, **SMALL).learn(20)
    batches = []
    for fraction in (0.0, 1.0):
        model.offline_fraction = fraction
        batches.append(model._sample_batch(6))
    online, offline = batches
    assert online.observations.shape == offline.observations.shape
    assert online.observations.dtype == offline.observations.dtype


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (1,)),
        spaces.Box(-1.0, 1.0, (2, 3)),
        spaces.Box(np.array([-1.0, 5.0], np.float32), np.array([0.0, 5.5], np.float32)),
        spaces.Box(-1.0, 1.0, (2,), np.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_actions(algorithm, space: spaces.Box, chunk_size: int):
    # RandomEnv refuses what is not in its action space
    env = DummyVecEnv([lambda: RandomEnv(spaces.Box(-1.0, 1.0, (3,)), space) for _ in range(2)])
    model = algorithm("MlpPolicy", env, chunk_size=chunk_size, **small(algorithm)).learn(30)
    assert np.abs(model.replay_buffer.actions).max() <= 1
    assert model.predict(np.zeros(3))[0].shape == space.shape
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(3), spaces.Dict(a=spaces.Discrete(2))],
)
def test_actions_that_are_no_box_are_refused_with_the_name_of_the_space(space: spaces.Space):
    with pytest.raises(ValueError, match="needs a continuous action space"):
        QAM("MlpPolicy", DummyVecEnv([lambda: RandomEnv(spaces.Box(-1.0, 1.0, (3,)), space)]))


def test_observations_sb3_does_not_support_are_refused():
    with pytest.raises(NotImplementedError, match="observation space is not supported"):
        QAM("MlpPolicy", DummyVecEnv([lambda: RandomEnv(spaces.Tuple([spaces.Discrete(2)]))]))


def test_the_environments_of_these_tests_pass_sb3s_own_check():
    for space in (OBSERVATION_SPACES["vector"], OBSERVATION_SPACES["dict"], OBSERVATION_SPACES["discrete"]):
        check_env(RandomEnv(space), warn=True)


def test_spaces_without_bounds_may_be_observed(algorithm):
    env = make_vec_env("MountainCarContinuous-v0")
    unbounded = gym.wrappers.TransformObservation(
        gym.make("MountainCarContinuous-v0"), lambda obs: obs, spaces.Box(-np.inf, np.inf, (2,))
    )
    for each in (env, unbounded):
        assert algorithm("MlpPolicy", each, **small(algorithm)).learn(12)._n_updates == 2
