"""Every observation space that SB3 preprocesses, and the action spaces a flow can act in."""

from functools import partial
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
from sb3_qam.networks import ImageCombinedExtractor
from sb3_qam.recording import collect
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


ODD_SPACES = {
    "lerobot": spaces.Dict(
        {"observation.state": spaces.Box(-1.0, 1.0, (3,)), "observation.images.top": images(channels_first=True)}
    ),
    "names of PyTorch": spaces.Dict({key: spaces.Box(-1.0, 1.0, (2,)) for key in ("train", "type", "a.b", "a_b")}),
    "discrete": spaces.Discrete(3, start=5),
    "negative": spaces.Discrete(3, start=-4),
    "multi-discrete": spaces.MultiDiscrete([3, 4], start=[1, -2]),
    "dict": spaces.Dict(
        d=spaces.Discrete(3, start=2), m=spaces.MultiDiscrete([2, 2], start=[1, 1]), v=spaces.Box(-1.0, 1.0, (2,))
    ),
}


@pytest.mark.parametrize("name", ODD_SPACES)
def test_any_key_and_any_first_number_from_data_to_the_exported_file(algorithm, name: str, tmp_path: Path):
    space = ODD_SPACES[name]
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    env = RandomEnv(space)
    dataset = collect(None, partial(RandomEnv, space), "test/odd-v0", 2)
    model = algorithm(policy, env, offline_dataset=dataset, offline_steps=2, **small(algorithm)).learn(12)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    export_onnx(loaded, tmp_path / "policy.onnx")
    observation = loaded.observation_space.sample()
    actions = [each.predict(observation, deterministic=True)[0] for each in (model, loaded)]
    np.testing.assert_array_equal(*actions)
    on_file = OnnxPolicy(tmp_path / "policy.onnx").predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(on_file, actions[0], atol=1e-5)


@pytest.mark.parametrize("name", ["discrete", "negative", "multi-discrete"])
def test_the_first_number_changes_nothing(algorithm, name: str):
    space = ODD_SPACES[name]
    from_zero = spaces.Discrete(3) if isinstance(space, spaces.Discrete) else spaces.MultiDiscrete([3, 4])
    shifted, plain = (
        algorithm("MlpPolicy", RandomEnv(each), seed=0, **small(algorithm)) for each in (space, from_zero)
    )
    observation = np.asarray(from_zero.sample())
    features = [
        model.policy.behavior.features(model.policy.obs_to_tensor(each)[0])
        for model, each in ((plain, observation), (shifted, observation + space.start))
    ]
    np.testing.assert_array_equal(*(each.numpy() for each in features))


def test_keys_in_order_and_with_their_own_features(algorithm):
    policy = algorithm("MultiInputPolicy", RandomEnv(ODD_SPACES["names of PyTorch"]), **small(algorithm)).policy
    observation = {key: np.full(2, number, np.float32) for number, key in enumerate(sorted(policy.observation_space))}
    features = policy.behavior.features(policy.obs_to_tensor(observation)[0])
    assert features.flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_images_of_any_key_with_an_extractor_of_their_own():
    kwargs = {"image_extractor_kwargs": {"n_channels": (4, 4), "features_dim": 8}}
    policy_kwargs = {"features_extractor_class": ImageCombinedExtractor, "features_extractor_kwargs": kwargs}
    model = QAM("MultiInputPolicy", RandomEnv(ODD_SPACES["lerobot"]), **small(policy_kwargs=policy_kwargs)).learn(12)
    assert model._n_updates > 0


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
