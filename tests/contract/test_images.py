"""Images, alone and in Dicts, behind SB3's wrappers, extractors and our own."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
)

from sb3_qam import QAM
from sb3_qam.common.augmentation import shift_images
from sb3_qam.datasets.hdf5 import UNCOMPRESSED
from sb3_qam.networks.image_extractors import ImageCombinedExtractor, ImpalaCNN
from tests.conftest import needs_uncompressed_images, record, write_dataset
from tests.contract.conftest import RandomEnv, images, same_parameters, small

SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 16}}


def fake_images(channels_first: bool = False, size: int = 40) -> FakeImageEnv:
    return FakeImageEnv(
        screen_height=size, screen_width=size, n_channels=3, discrete=False, channel_first=channels_first
    )


@pytest.mark.parametrize("share_features_extractor", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
def test_learning_from_images_moves_every_extractor(channels_first: bool, share_features_extractor: bool, tmp_path):
    kwargs = small(policy_kwargs=SMALL_CNN | {"share_features_extractor": share_features_extractor})
    model = QAM("CnnPolicy", fake_images(channels_first), **kwargs)
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage) == (not channels_first)
    assert model.replay_buffer.observations.dtype == np.uint8
    policy = model.policy
    extractors = [network.features_extractor for network in (policy.critic, policy.behavior_flow, policy.policy_flow)]
    assert all(isinstance(each, NatureCNN) for each in extractors)
    assert len({id(each) for each in extractors}) == (1 if share_features_extractor else 3)
    extractors += [network.features_extractor for network in (policy.critic_target, policy.behavior_flow_target)]
    before = [each.linear[0].weight.clone() for each in extractors]
    model.learn(20)
    assert not any(th.equal(old, each.linear[0].weight) for old, each in zip(before, extractors, strict=True))

    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model")
    observation = fake_images(channels_first).observation_space.sample()
    np.testing.assert_array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, loaded)))


def test_images_are_divided_by_255_unless_they_are_normalized():
    seen = []

    class Watch(NatureCNN):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            seen.append((observations.dtype, observations.max().item()))
            return super().forward(observations)

    image = np.full((3, 36, 36), 255, np.uint8)
    for normalize_images, highest in ((True, 1.0), (False, 255.0)):
        kwargs = small(policy_kwargs={"features_extractor_class": Watch, "normalize_images": normalize_images})
        seen.clear()
        QAM("CnnPolicy", RandomEnv(images(channels_first=True)), **kwargs).predict(image)
        assert seen == [(th.float32, highest)]


@pytest.mark.parametrize("extractor", [NatureCNN, ImpalaCNN])
def test_floats_are_images_where_they_are_normalized_already(extractor: type):
    env = RandomEnv(spaces.Box(0.0, 1.0, (3, 36, 36)))
    with pytest.raises((AssertionError, ValueError), match="normalize_images=False"):
        QAM("CnnPolicy", env, policy_kwargs={"features_extractor_class": extractor})
    policy_kwargs = {
        "features_extractor_class": extractor,
        "features_extractor_kwargs": {"features_dim": 16, "normalized_image": True},
        "normalize_images": False,
    }
    QAM("CnnPolicy", env, **small(policy_kwargs=policy_kwargs)).learn(12)


def test_vec_normalize_makes_floats_of_images():
    env = VecNormalize(VecTransposeImage(DummyVecEnv([fake_images])))
    kwargs = small(policy_kwargs=SMALL_CNN | {"normalize_images": False})
    model = QAM("CnnPolicy", env, random_shift=2, **kwargs).learn(12)
    # normalized are the values, and the space is still that of the images
    assert model._sample_batch(4).observations.dtype == th.float32


@pytest.mark.parametrize("stacked_first", [False, True])
def test_stacked_frames(stacked_first: bool):
    env = DummyVecEnv([fake_images] * 2)
    env = VecTransposeImage(VecFrameStack(env, 3)) if stacked_first else VecFrameStack(VecTransposeImage(env), 3)
    model = QAM("CnnPolicy", env, **small(policy_kwargs=SMALL_CNN)).learn(24)
    assert model.observation_space.shape == (9, 40, 40)
    # the stack of a step is that of the step before, moved on by a frame
    observations, next_observations = (
        getattr(model.replay_buffer, name)[:9, 0] for name in ("observations", "next_observations")
    )
    np.testing.assert_array_equal(next_observations[:, :6], observations[:, 3:])
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_beside_vectors(channels_last: bool, tmp_path):
    env = SimpleMultiObsEnv(discrete_actions=False, channel_last=channels_last)
    kwargs = small(policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}})
    model = QAM("MultiInputPolicy", env, **kwargs).learn(20)
    assert model.observation_space["img"].shape == (1, 64, 64)
    assert model.policy.critic.features_extractor.features_dim == 8 + env.vector_size
    assert model._n_updates == 10
    evaluate_policy(model, model.get_env(), n_eval_episodes=1, warn=False)
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model", env=env)
    observation = env.observation_space.sample()
    np.testing.assert_array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, loaded)))


def test_stacked_frames_of_a_dict():
    env = VecFrameStack(
        DummyVecEnv([lambda: SimpleMultiObsEnv(discrete_actions=False, channel_last=False)]),
        2,
        channels_order={"vec": "last", "img": "first"},
    )
    model = QAM("MultiInputPolicy", env, **small()).learn(12)
    assert {key: space.shape for key, space in model.observation_space.items()} == {"vec": (10,), "img": (2, 64, 64)}


@needs_uncompressed_images
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("channels_first", [False, True])
def test_a_dataset_of_images_trains_and_online_images_go_on(n_steps: int, channels_first: bool):
    env = fake_images(channels_first)
    env.action_space.seed(0)
    dataset = write_dataset(record(env, 2), env.observation_space, env.action_space, **UNCOMPRESSED)
    policy_kwargs = {"features_extractor_class": ImpalaCNN, "features_extractor_kwargs": {"n_channels": [4, 4]}}
    kwargs = small(policy_kwargs=policy_kwargs, n_steps=n_steps, random_shift=4, learning_starts=0)
    kwargs |= {"offline_dataset": dataset, "offline_steps": 3}
    model = QAM("CnnPolicy", env, **kwargs).learn(12)
    assert model._n_updates == 3 + 12
    assert model._sample_batch(6).observations.dtype == th.uint8
    without_env = QAM("CnnPolicy", **kwargs).pretrain()
    assert without_env.predict(env.observation_space.sample())[0].shape == (5,)


# ---------------------------------------------------------------- the encoder of IMPALA


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 21, 35), (9, 8, 8)])
def test_impala_takes_images_of_any_size(shape: tuple[int, int, int]):
    extractor = ImpalaCNN(spaces.Box(0, 255, shape, np.uint8), features_dim=20)
    features = extractor(th.rand(5, *shape))
    assert features.shape == (5, extractor.features_dim) == (5, 20)
    assert (features >= 0).all()


def test_impala_has_the_layers_of_the_paper():
    extractor = ImpalaCNN(images(channels_first=True, size=72))
    convolutions = [layer for layer in extractor.modules() if isinstance(layer, th.nn.Conv2d)]
    # a convolution and two blocks of two in each of three stages
    assert len(convolutions) == 15
    assert [layer.out_channels for layer in convolutions] == [16] * 5 + [32] * 10
    assert extractor.linear[0].in_features == 32 * 9 * 9
    assert extractor.features_dim == 256


def test_a_residual_block_of_zeros_changes_nothing():
    extractor = ImpalaCNN(images(channels_first=True), n_channels=[4], n_blocks=3)
    blocks = list(extractor.cnn)[2:5]
    inputs = th.randn(2, 4, 7, 7)
    for block in blocks:
        assert not th.equal(block(inputs), inputs)
        for parameter in block.parameters():
            th.nn.init.zeros_(parameter)
        assert th.equal(block(inputs), inputs)


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Box(-1.0, 1.0, (3,)), {}, r"ImpalaCNN is for images, .* got Box\(-1.0, 1.0, \(3,\)"),
        (spaces.Discrete(3), {}, r"got Discrete\(3\)"),
        (images(), {"n_channels": [16, 0]}, "n_channels must be an integer of at least 1, got 0"),
        (images(), {"n_channels": 16}, "n_channels must be a sequence, one number for each stage, got 16"),
        (images(), {"n_blocks": 0}, "n_blocks must be"),
    ],
)
def test_what_impala_cannot_encode_is_refused(space: spaces.Space, kwargs: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ImpalaCNN(space, **kwargs)


def test_impala_tells_a_small_thing_in_an_image_from_where_it_is():
    th.manual_seed(0)
    batch = th.full((16, 3, 64, 64), 0.5)
    for number, image in enumerate(batch):
        image[1, 4 * (number // 4) : 4 * (number // 4) + 6, 15 * (number % 4) : 15 * (number % 4) + 6] = 1.0
    with th.no_grad():
        features = ImpalaCNN(images(channels_first=True, size=64), 64, (8, 16, 16), 1)(batch)
    # by PyTorch's own initialization 0.02, and learning had to begin by making it grow
    assert features.std(dim=0).mean() / features.abs().mean() > 0.1


# ---------------------------------------------------------------- images in a Dict behind any extractor

CAMERAS = spaces.Dict(
    camera=images(size=16),
    hand=images(size=16, n_channels=1),
    joints=spaces.Box(-1.0, 1.0, (2, 3)),
    mode=spaces.Discrete(4),
)


@pytest.mark.parametrize("share_features_extractor", [False, True])
def test_impala_for_the_images_of_a_dict(share_features_extractor: bool, tmp_path):
    env = RandomEnv(CAMERAS)
    extractor_kwargs = {"n_channels": [4, 4], "n_blocks": 1, "features_dim": 12}
    policy_kwargs = {
        "features_extractor_class": ImageCombinedExtractor,
        "features_extractor_kwargs": {"image_extractor_kwargs": extractor_kwargs},
        "share_features_extractor": share_features_extractor,
    }
    kwargs = small(policy_kwargs=policy_kwargs, random_shift=2)
    # SB3's own does not take such small images
    with pytest.raises(RuntimeError, match="Kernel size"):
        QAM("MultiInputPolicy", env, **small())
    model = QAM("MultiInputPolicy", env, **kwargs)
    extractor = model.policy.critic.features_extractor
    assert {type(extractor.extractors[key]) for key in ("camera", "hand")} == {ImpalaCNN}
    assert extractor.features_dim == 12 + 12 + 6 + 4
    before = {key: extractor.extractors[key].linear[0].weight.clone() for key in ("camera", "hand")}
    model.learn(20)
    assert not any(th.equal(old, extractor.extractors[key].linear[0].weight) for key, old in before.items())

    model.save(tmp_path / "model")
    observation = CAMERAS.sample()
    loaded = QAM.load(tmp_path / "model", env=env)
    np.testing.assert_array_equal(*(each.predict(observation, deterministic=True)[0] for each in (model, loaded)))
    # the features of each key depend on that key
    batch = {key: part[:2].float() for key, part in model._sample_batch(2).observations.items() if key != "mode"}
    batch["mode"] = th.eye(4)[:2]
    changed = {**batch, "hand": batch["hand"] + 50}
    with th.no_grad():
        difference = (extractor(changed) - extractor(batch)).abs().amax(dim=0)
    assert (difference[12:24] > 0).any()
    assert not difference[:12].any()
    assert not difference[24:].any()


def test_any_extractor_and_normalized_images_in_a_dict():
    space = spaces.Dict(camera=spaces.Box(0.0, 1.0, (3, 36, 36)), joints=spaces.Box(-1.0, 1.0, (3,)))
    for image_extractor in (NatureCNN, ImpalaCNN):
        features = {
            "image_extractor_class": image_extractor,
            "image_extractor_kwargs": {"features_dim": 8},
            "normalized_image": True,
        }
        policy_kwargs = {
            "features_extractor_class": ImageCombinedExtractor,
            "features_extractor_kwargs": features,
            "normalize_images": False,
        }
        model = QAM("MultiInputPolicy", RandomEnv(space), **small(policy_kwargs=policy_kwargs)).learn(12)
        assert isinstance(model.policy.critic.features_extractor.extractors["camera"], image_extractor)
        assert model.policy.critic.features_extractor.features_dim == 8 + 3


@pytest.mark.parametrize("space", [spaces.Dict(a=spaces.Box(-1.0, 1.0, (3,))), images(channels_first=True)], ids=str)
def test_a_dict_without_images_needs_no_extractor_for_them(space: spaces.Space):
    with pytest.raises(ValueError, match="ImageCombinedExtractor is for Dict observations with images"):
        ImageCombinedExtractor(space)


# ---------------------------------------------------------------- random shifts


@pytest.mark.parametrize("dtype", [th.uint8, th.float32])
def test_a_shifted_image_is_a_crop_of_the_image_with_its_edges_repeated(dtype: th.dtype):
    th.manual_seed(0)
    batch = th.randint(0, 256, (60, 3, 8, 11)).to(dtype)
    shifted = shift_images(batch, 2)
    assert shifted.shape == batch.shape
    assert shifted.dtype == dtype
    padded = th.nn.functional.pad(batch.float(), (2, 2, 2, 2), mode="replicate").to(dtype)
    found = set()
    for image, source in zip(shifted, padded, strict=True):
        crops = {(y, x): source[:, y : y + 8, x : x + 11] for y in range(5) for x in range(5)}
        matches = [position for position, crop in crops.items() if th.equal(crop, image)]
        assert matches
        found.update(matches)
    # each image by its own shift, and every shift there is
    assert len(found) > 20


def test_batches_are_shifted_and_what_is_stored_or_acted_on_is_not():
    frame = np.arange(36, dtype=np.uint8)[None, :, None] + np.arange(36, dtype=np.uint8)[None, None, :]

    class Still(RandomEnv):
        def reset(self, **kwargs):
            super().reset(**kwargs)
            return frame, {}

        def step(self, action):
            return frame, *super().step(action)[1:]

    def make(**kwargs) -> QAM:
        env = Still(images(channels_first=True, n_channels=1))
        return QAM("CnnPolicy", env, seed=0, **small(policy_kwargs=SMALL_CNN, learning_starts=100, **kwargs)).learn(20)

    plain, shifting = make(), make(random_shift=3)
    expected = th.as_tensor(frame).expand(30, 1, 36, 36)
    # off by default
    batch = plain._sample_batch(30)
    assert th.equal(batch.observations, expected)
    assert th.equal(batch.next_observations, expected)

    batch = shifting._sample_batch(30)
    for observations in (batch.observations, batch.next_observations):
        assert not th.equal(observations, expected)
        # the middle of the image names the shift
        shifts = observations[:, 0, 18, 18].int() - 36
        assert set(shifts.tolist()) <= set(range(-6, 7))
        assert len(set(shifts.tolist())) > 3
    assert not th.equal(batch.observations, batch.next_observations)
    assert (shifting.replay_buffer.observations[:20] == frame).all()
    np.testing.assert_array_equal(*(each.predict(frame, deterministic=True)[0] for each in (plain, shifting)))
    assert same_parameters(plain.policy.state_dict(), shifting.policy.state_dict())


def test_the_images_of_a_dict_are_shifted_and_nothing_else_is():
    space = spaces.Dict(
        camera=images(channels_first=True, n_channels=1),
        grid=spaces.Box(-1.0, 1.0, (1, 8, 8)),
        number=spaces.Discrete(9),
    )
    model = QAM("MultiInputPolicy", RandomEnv(space), random_shift=2, **small(learning_starts=100)).learn(20)
    stored = {key: {part.tobytes() for part in values[:20]} for key, values in model.replay_buffer.observations.items()}
    batch = model._sample_batch(20)
    unchanged = {
        key: sum(part.numpy().tobytes() in stored[key] for part in values) for key, values in batch.observations.items()
    }
    assert unchanged["grid"] == unchanged["number"] == 20
    assert unchanged["camera"] < 10


def test_the_shift_is_stored_with_the_model_and_may_change_at_loading(tmp_path):
    env = RandomEnv(images())
    QAM("CnnPolicy", env, random_shift=4, **small(policy_kwargs=SMALL_CNN)).save(tmp_path / "model")
    assert QAM.load(tmp_path / "model", env=env).learn(12).random_shift == 4
    assert QAM.load(tmp_path / "model", env=env, random_shift=0).random_shift == 0


def test_there_must_be_images_to_shift():
    with pytest.raises(ValueError, match=r"random_shift=4 shifts images, and there are none in Box\(.* leave it at 0"):
        QAM("MlpPolicy", "Pendulum-v1", random_shift=4)
    with pytest.raises(ValueError, match="random_shift must be an integer of at least 0, got -1"):
        QAM("CnnPolicy", RandomEnv(images()), random_shift=-1)
