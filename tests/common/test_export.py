"""What onnxruntime makes of an exported policy is what the policy makes of the same observations and noise."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_qam import QAM, CnnPolicy, FlowPolicy, MultiInputPolicy
from sb3_qam.common.buffers import map_observations
from sb3_qam.common.export import Sampler, export_onnx
from sb3_qam.common.noise import SamplingNoise
from sb3_qam.common.policies import BaseFlowPolicy
from sb3_qam.networks.cpu_kernels import members_of
from sb3_qam.runtime import ObservationNoise

VECTOR = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (3, 12, 12), np.uint8)
# Bounds that are not symmetric
ACTIONS = spaces.Box(np.array([0.0, -5.0], np.float32), np.array([10.0, 2.0], np.float32))


class SmallCnn(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 5)
        layers = [nn.Conv2d(observation_space.shape[0], 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(5))
        self.layers(th.zeros(2, *observation_space.shape))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def make_policy(space: spaces.Space = VECTOR, policy_class: type[Any] = FlowPolicy, **kwargs: Any) -> Any:
    th.manual_seed(0)
    steps = {"flow_steps": 3} if issubclass(policy_class, BaseFlowPolicy) else {}
    kwargs = {"net_arch": [16, 16], **steps, **kwargs}
    policy = policy_class(space, kwargs.pop("action_space", ACTIONS), lambda _: 1e-3, **kwargs)
    with th.no_grad():
        # Edits and residuals begin near zero
        for parameter in policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    return policy


def inputs_for(policy: FlowPolicy, n: int) -> tuple[Any, SamplingNoise]:
    """Observations as numpy arrays, and noise."""
    policy.observation_space.seed(n)
    samples = [policy.observation_space.sample() for _ in range(n)]
    th.manual_seed(n)
    return map_observations(lambda *parts: np.stack(parts), *samples), policy.draw_noise(n)


def run(path: Path, observations: Any, noise: SamplingNoise) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = observations if isinstance(observations, dict) else {"observation": observations}
    noises = {"noise": noise.x0, "edit_noise": noise.edit}
    feed = {**parts, **{name: each.numpy() for name, each in noises.items() if each is not None}}
    assert {each.name for each in session.get_inputs()} == feed.keys()
    (actions,) = session.run(["action"], feed)
    return actions


def assert_exported(policy: FlowPolicy, path: Path) -> None:
    export_onnx(policy, path)
    for n in (1, 4, 9):
        observations, noise = inputs_for(policy, n)
        actions = run(path, observations, noise)
        policy.set_training_mode(False)
        with th.no_grad():
            scaled = policy.sample_actions(policy.obs_to_tensor(observations)[0], noise).numpy()
        shape = policy.action_space.shape
        scaled = scaled.reshape(n, *shape) if policy.chunk_size == 1 else scaled.reshape(n, policy.chunk_size, *shape)
        expected = policy.unscale_action(scaled)
        assert actions.shape == expected.shape
        assert actions.dtype == np.float32
        # to 1e-5 of the scaled actions
        np.testing.assert_allclose(policy.scale_action(actions), scaled, atol=1e-5)
        np.testing.assert_allclose(actions, expected, atol=1e-4)


POLICIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunk": {"chunk_size": 3},
    "edit": {"edit_scale": 0.5},
    "one-step": {"distill_coef": 1.0},
    "best of n": {"best_of_n": 4, "n_critics": 3},
    "edit, best of n, chunk": {"edit_scale": 0.5, "best_of_n": 3, "chunk_size": 2},
    "residual": {"residual": True},
    "behavior": {"acts_as": "behavior"},
    "bc": {"acts_as": "bc", "edit_scale": 0.5, "best_of_n": 3},
    "layer norm, ReLU": {"flow_layer_norm": True, "activation_fn": nn.ReLU},
    "midpoint": {"ode_method": "midpoint"},
    "rk4": {"ode_method": "rk4"},
    "heun2": {"ode_method": "heun2"},
    "heun3": {"ode_method": "heun3"},
    "explicit_adams": {"ode_method": "explicit_adams", "flow_steps": 6},
    "options": {"ode_method": "rk4", "ode_options": {"step_size": 0.2}},
    "actions of two axes": {"action_space": spaces.Box(-2.0, 1.0, (2, 3)), "chunk_size": 2},
    "Dict": {
        "space": spaces.Dict(b=VECTOR, a=spaces.Box(-1.0, 1.0, (2, 2)), c=spaces.Discrete(3)),
        "policy_class": MultiInputPolicy,
    },
    "Discrete": {"space": spaces.Discrete(4)},
    "MultiDiscrete": {"space": spaces.MultiDiscrete([2, 3])},
    "MultiBinary": {"space": spaces.MultiBinary(3)},
    "float64": {"space": spaces.Box(-1.0, 1.0, (3,), np.float64)},
    "image": {
        "space": IMAGE,
        "policy_class": CnnPolicy,
        "features_extractor_class": SmallCnn,
        "share_features_extractor": True,
        "best_of_n": 2,
    },
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_actions(name: str, tmp_path: Path):
    policy = make_policy(**POLICIES[name])
    if name == "float64":
        # The file takes what networks compute with
        policy.observation_space = VECTOR
    assert_exported(policy, tmp_path / "policy.onnx")


@pytest.mark.parametrize("name", ["plain", "edit, best of n, chunk", "one-step", "Dict", "Discrete", "image"])
def test_the_file_acts_deterministically_with_noise_made_without_pytorch(name: str, tmp_path: Path):
    policy = make_policy(**POLICIES[name])
    export_onnx(policy, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    observations, _ = inputs_for(policy, 5)
    draw = ObservationNoise(observations)
    feed = dict(observations) if isinstance(observations, dict) else {"observation": observations}
    for each in session.get_inputs():
        if each.name in ("noise", "edit_noise"):
            n_candidates, _, action_dim = each.shape
            feed[each.name] = draw(n_candidates, action_dim)
    (actions,) = session.run(["action"], feed)
    expected = policy.predict(observations, deterministic=True)[0]
    # Of a chunk, predict() gives the first action
    np.testing.assert_allclose(actions[:, 0] if policy.chunk_size > 1 else actions, expected, atol=1e-4)


def test_a_trained_model(tmp_path: Path):
    model = QAM("MlpPolicy", gym.make("Pendulum-v1"), learning_starts=10, batch_size=16, flow_steps=4).learn(40)
    assert_exported(model.policy, tmp_path / "pendulum.onnx")


def test_exporting_leaves_the_policy_as_it_is(tmp_path: Path):
    policy = make_policy(IMAGE, CnnPolicy, features_extractor_class=SmallCnn)
    policy.set_training_mode(True)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    modes = [module.training for module in policy.modules()]
    random_state, sampled = th.get_rng_state(), policy.observation_space.np_random.bit_generator.state
    export_onnx(policy, tmp_path / "deeper" / "policy")
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["policy.onnx"]
    assert [module.training for module in policy.modules()] == modes
    assert all(th.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert th.equal(th.get_rng_state(), random_state)
    assert policy.observation_space.np_random.bit_generator.state == sampled
    assert members_of(policy.policy_flow.mlp) is not None


@pytest.mark.parametrize("method", ["dopri5", "implicit_adams"])
def test_methods_without_a_fixed_number_of_steps_are_refused(method: str, tmp_path: Path):
    policy = make_policy(ode_method=method)
    with pytest.raises(ValueError, match=f"ode_method='{method}' cannot be exported to ONNX.*'rk4'"):
        export_onnx(policy, tmp_path / "policy.onnx")
    # the way out
    policy.ode_method = "rk4"
    assert_exported(policy, tmp_path / "policy.onnx")


class OfOneBatchSize(BaseFeaturesExtractor):
    """Tracing takes a number that Python computes for a constant."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations * float(observations.abs().sum())


class Unknown(BaseFeaturesExtractor):
    """ONNX has no operator for it."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.special.bessel_j0(observations)


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        (OfOneBatchSize, "In onnxruntime the actions differ from the policy's by .*OfOneBatchSize"),
        (Unknown, "(?s)cannot be exported to ONNX: .*bessel.*the features extractor Unknown"),
    ],
)
def test_what_onnx_cannot_express_is_refused_and_leaves_no_file(extractor: type, message: str, tmp_path: Path):
    policy = make_policy(features_extractor_class=extractor)
    with pytest.raises(ValueError, match=message):
        export_onnx(policy, tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_keys_that_are_names_of_the_files_own_are_refused(tmp_path: Path):
    policy = make_policy(spaces.Dict(noise=VECTOR), MultiInputPolicy)
    with pytest.raises(ValueError, match=r"observation keys \['noise'\] are names of the file's own"):
        export_onnx(policy, tmp_path / "policy.onnx")
    with pytest.raises(ValueError, match=r"observation keys \[''\] are names of the file's own"):
        export_onnx(make_policy(spaces.Dict({"": VECTOR}), MultiInputPolicy), tmp_path / "policy.onnx")


def test_what_to_install_is_said(tmp_path: Path, monkeypatch):
    # How Python itself marks a module that is not to be had
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-qam\[onnx\]"'):
        export_onnx(make_policy(), tmp_path / "policy.onnx")


def test_a_full_disk_or_a_folder_that_cannot_be_made_is_named_and_nothing_is_left(small_disk: Path, tmp_path: Path):
    policy = make_policy(net_arch=[1024] * 5)
    with pytest.raises(OSError, match=r"policy.onnx cannot be written: .*No space left.*Make room"):
        export_onnx(policy, small_disk / "policy.onnx")
    assert list(small_disk.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/policy.onnx cannot be written: .*another folder"):
        export_onnx(make_policy(), tmp_path / "file" / "policy.onnx")


@pytest.mark.parametrize("name", ["plain", "edit, best of n, chunk", "one-step", "residual", "Dict", "image"])
def test_torch_export_takes_what_is_exported(name: str):
    policy = make_policy(**POLICIES[name])
    sampler = Sampler(policy).eval()
    inputs = sampler.example_inputs(2)
    batch = th.export.Dim("batch", min=1)
    shapes = tuple({1 if key.endswith("noise") else 0: batch} for key in inputs)
    program = th.export.export(sampler, tuple(inputs.values()), dynamic_shapes=(shapes,))
    for n in (1, 5):
        others = sampler.example_inputs(n, seed=n).values()
        with th.no_grad():
            assert th.allclose(program.module()(*others), sampler(*others), atol=1e-5)
