"""Images that come from a dataset: what memory they take, and what is around them offline and online."""

import copy
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_qam import QAM, export_onnx
from sb3_qam.common.buffers import map_observations
from sb3_qam.common.normalization import add_initial_statistics
from sb3_qam.datasets import StackFrames, wrap_dataset
from sb3_qam.networks.image_extractors import ImpalaCNN
from tests.conftest import needs_uncompressed_images, record, write_dataset
from tests.contract.conftest import RandomEnv, images, small

TINY_IMPALA = {
    "features_extractor_class": ImpalaCNN,
    "features_extractor_kwargs": {"n_channels": [4, 4], "n_blocks": 1, "features_dim": 8},
}


def camera(size: int = 24) -> gym.Env:
    return RandomEnv(images(size=size))


@pytest.fixture
def frames() -> minari.MinariDataset:
    """4 MB of images: 30 episodes of 11 observations."""
    env = camera(64)
    return write_dataset(record(env, 30), env.observation_space, env.action_space, jpeg_encoding=False)


def peak_of_arrays(action: Callable[[], Any]) -> int:
    """The most memory that NumPy's arrays of an action have had at a time, in bytes."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@needs_uncompressed_images
@pytest.mark.parametrize(("storage", "most"), [("memory", 1.5), ("memmap", 0.5)])
def test_a_dataset_of_images_stays_a_byte_per_pixel(storage: str, most: float, frames, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SB3_QAM_CACHE", str(tmp_path))
    kwargs = small(policy_kwargs=TINY_IMPALA, buffer_size=20, random_shift=2)
    # here, and not below, what is imported once
    QAM("CnnPolicy", offline_dataset=frames, **kwargs)
    model = QAM("CnnPolicy", camera(64), offline_dataset=frames, offline_storage=storage, **kwargs)
    n_bytes = 64 * 64 * 3 * (frames.total_steps + frames.total_episodes)
    # all of it once, or nothing, beside one episode and a batch; as floats it would be four times that
    assert peak_of_arrays(lambda: model.pretrain(gradient_steps=3)) < most * n_bytes
    stored = model.offline_buffer.observations
    assert (stored.dtype, stored.shape) == (np.uint8, (330, 3, 64, 64))
    assert isinstance(stored, np.memmap) == (storage == "memmap")
    assert model.replay_buffer.observations.dtype == np.uint8


def test_statistics_of_large_observations_need_no_copy_of_all_of_them():
    space = spaces.Box(-1.0, 1.0, (64 * 64,))
    env = RandomEnv(space)
    dataset = write_dataset(record(env, 150), space, env.action_space)
    model = QAM("MlpPolicy", env, offline_dataset=dataset, **small())
    offline = model.make_offline_buffer(dataset)
    normalized = VecNormalize(DummyVecEnv([lambda: RandomEnv(space)]))
    # of float64, several
    assert peak_of_arrays(lambda: add_initial_statistics(normalized, offline)) < offline.observations.nbytes
    np.testing.assert_allclose(normalized.obs_rms.mean, offline.observations.mean(axis=0), atol=1e-2)


@needs_uncompressed_images
def test_mapped_images_train_bit_by_bit_as_those_in_memory(frames, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SB3_QAM_CACHE", str(tmp_path))
    kwargs = small(policy_kwargs=TINY_IMPALA, seed=0, random_shift=2, n_steps=3)
    models = [
        QAM("CnnPolicy", offline_dataset=frames, offline_storage=storage, **kwargs).pretrain(gradient_steps=3)
        for storage in ("memory", "memmap")
    ]
    for one, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.equal(one, other)


# ---------------------------------------------------------------- stacked frames


VECTOR = spaces.Box(-1.0, 1.0, (3,))
# And the order of the channels, where it has to be given
FRAMES: dict[str, tuple[spaces.Space, Any]] = {
    "channels last": (images(size=12), None),
    "channels first": (images(channels_first=True, size=12), None),
    "vector": (VECTOR, None),
    "Dict": (spaces.Dict(camera=images(size=12), speed=VECTOR), {"camera": "last", "speed": "last"}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_those_of_vec_frame_stack(name: str):
    space, order = FRAMES[name]

    def make_env() -> gym.Env:
        return RandomEnv(copy.deepcopy(space))

    env, expected = StackFrames(make_env(), 3, order), VecFrameStack(DummyVecEnv([make_env]), 3, order)
    assert env.observation_space == expected.observation_space
    expected.seed(0)
    of_vec_env, (found, _) = expected.reset(), env.reset(seed=0)
    given = []
    done = False
    while not done:
        np.testing.assert_equal(found, map_observations(lambda part: part[0], of_vec_env))
        given.append((found, copy.deepcopy(found)))
        action = env.action_space.sample()
        of_vec_env, _, dones, infos = expected.step(action[None])
        found, _, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
        assert done == dones[0]
    assert len(given) == 10
    np.testing.assert_equal(found, infos[0]["terminal_observation"])
    # a new episode begins with zeros again, and what was given before is nobody else's
    np.testing.assert_equal(env.reset(seed=0)[0], given[0][1])
    for observation, copied in given:
        np.testing.assert_equal(observation, copied)


@needs_uncompressed_images
@pytest.mark.parametrize("vectorized", [False, True])
def test_offline_frames_are_stacked_as_those_of_the_environment(vectorized: bool, tmp_path: Path):
    make_env = partial(FakeImageEnv, screen_height=24, screen_width=24, n_channels=1, discrete=False)
    env = make_env()
    dataset = write_dataset(record(env, 2), env.observation_space, env.action_space)
    stack = partial(StackFrames, n_stack=3)
    stacked_env = VecFrameStack(DummyVecEnv([make_env]), 3) if vectorized else stack(make_env())
    kwargs = small(policy_kwargs=TINY_IMPALA)
    with pytest.raises(ValueError, match=r"\(1, 24, 24\) against \(3, 24, 24\) \(if these are 3 stacked frames: wrap_"):
        QAM("CnnPolicy", stacked_env, offline_dataset=dataset, **kwargs)
    wrapped = wrap_dataset(dataset, stack)
    model = QAM("CnnPolicy", stacked_env, offline_dataset=wrapped, offline_steps=2, **kwargs).learn(12)
    recorded = next(iter(dataset)).observations[:4, :, :, 0]
    stacked = model.offline_buffer.observations[:4]
    for step in range(4):
        before = [recorded[each] if each >= 0 else np.zeros((24, 24)) for each in range(step - 2, step + 1)]
        np.testing.assert_array_equal(stacked[step], before)
    # files of single frames are not taken for those of stacks
    assert wrapped.key != wrap_dataset(dataset, partial(StackFrames, n_stack=2)).key


# ---------------------------------------------------------------- with what SB3 has around images


@needs_uncompressed_images
def test_the_vectors_beside_images_are_normalized_offline_and_online(tmp_path: Path):
    space = spaces.Dict(camera=images(size=36), speed=spaces.Box(50.0, 100.0, (2,)))
    source = RandomEnv(space)
    dataset = write_dataset(record(source, 10), space, source.action_space, jpeg_encoding=False)

    def make_env() -> VecTransposeImage:
        return VecTransposeImage(DummyVecEnv([lambda: RandomEnv(space)]))

    env = VecNormalize(make_env(), norm_obs_keys=["speed"])
    kwargs = small(policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}}, random_shift=2)
    kwargs |= {"offline_dataset": dataset, "offline_fraction": 0.5}
    model = QAM("MultiInputPolicy", env, **kwargs)
    model.pretrain(gradient_steps=2)
    model.learn(20, reset_num_timesteps=False)
    batch = model._sample_batch(200)
    assert batch.observations["camera"].dtype == th.uint8
    assert batch.observations["camera"].shape == (200, 3, 36, 36)
    # uniform numbers, offline (the first half) and online
    for half in (slice(100), slice(100, 200)):
        speeds = batch.observations["speed"][half]
        assert abs(speeds.mean()) < 0.4
        assert 0.8 < speeds.std() < 1.2

    model.save(tmp_path / "model")
    env.save(tmp_path / "statistics")
    fresh = VecNormalize.load(tmp_path / "statistics", make_env())
    loaded = QAM.load(tmp_path / "model", env=fresh, offline_dataset=dataset)
    observation = env.reset()
    np.testing.assert_array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, loaded)))


@pytest.mark.parametrize("space", [images(size=36), spaces.Dict(camera=images(size=36), speed=VECTOR)], ids=str)
def test_normalization_before_transposition_is_refused_with_the_way_out(space: spaces.Space):
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(space)]), norm_obs=False)
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy"
    with pytest.raises(ValueError, match=r"VecNormalize\(VecTransposeImage\(env\)\)"):
        QAM(policy, env, **small())


@needs_uncompressed_images
def test_images_in_a_replay_buffer_that_stores_them_once():
    env = camera(36)
    dataset = write_dataset(record(env, 2), env.observation_space, env.action_space, jpeg_encoding=False)
    kwargs = small(policy_kwargs=TINY_IMPALA, buffer_size=30)
    kwargs |= {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = QAM("CnnPolicy", camera(36), offline_dataset=dataset, offline_steps=2, random_shift=2, **kwargs).learn(40)
    buffer = model.replay_buffer
    assert not hasattr(buffer, "next_observations")
    assert buffer.observations.dtype == np.uint8
    assert model._n_updates == 2 + 32
    samples = buffer.sample(50)
    stored = {image.tobytes() for image in buffer.observations[:, 0]}
    assert all(image.numpy().tobytes() in stored for image in samples.next_observations)


@pytest.mark.parametrize("channels_first", [False, True])
def test_single_images_and_batches_in_either_order_have_the_same_actions(channels_first: bool):
    env = RandomEnv(images(channels_first))
    model = QAM("CnnPolicy", env, **small(policy_kwargs=TINY_IMPALA))
    last = np.random.default_rng(0).integers(0, 256, (5, 36, 36, 3), np.uint8)
    first = np.moveaxis(last, 3, 1)
    expected, _ = model.predict(first, deterministic=True)
    assert expected.shape == (5, 2)
    for batch in (last, first):
        np.testing.assert_allclose(model.predict(batch, deterministic=True)[0], expected, atol=1e-6)
        for image, action in zip(batch, expected, strict=True):
            np.testing.assert_allclose(model.predict(image, deterministic=True)[0], action, atol=1e-5)


@pytest.mark.parametrize("extractor", ["NatureCNN", "ImpalaCNN"])
def test_an_exported_model_of_images_acts_the_same(extractor: str, tmp_path: Path):
    import onnxruntime

    policy_kwargs = TINY_IMPALA if extractor == "ImpalaCNN" else {"features_extractor_kwargs": {"features_dim": 8}}
    model = QAM("CnnPolicy", camera(36), **small(policy_kwargs=policy_kwargs)).learn(12)
    export_onnx(model.policy, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).integers(0, 256, (4, 3, 36, 36), np.uint8)
    noise = model.policy.draw_noise(4)
    (actions,) = session.run(None, {"observation": batch, "noise": noise.x0.numpy()})
    with th.no_grad():
        expected = model.policy.sample_actions(th.as_tensor(batch), noise)
    np.testing.assert_allclose(actions, expected, atol=1e-5)
