"""Actions are in the space, to the last bit, on every way out."""

from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.noise import NormalActionNoise

from sb3_qam import QAM, FlowPolicy
from sb3_qam.common.export import export_onnx
from sb3_qam.runtime import OnnxPolicy
from tests.contract.conftest import RandomEnv, small

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
# The float32 next to 0.1 is larger, the one next to 0.7 smaller
FLOAT64 = spaces.Box(np.array([-0.1, -0.7]), np.array([0.1, 0.7]), dtype=np.float64)
widths = {"float32": 32, "float64": 64}


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_what_acts_stays_inside(algorithm, chunk_size: int):
    # The environment refuses what is not in its space
    env = RandomEnv(OBSERVATIONS, FLOAT64)
    noise = NormalActionNoise(np.zeros(2), np.full(2, 5.0))
    model = algorithm("MlpPolicy", env, chunk_size=chunk_size, action_noise=noise, **small(algorithm)).learn(20)
    state, observations = None, np.random.default_rng(0).uniform(-1, 1, (200, 3)).astype(np.float32)
    for ensemble_decay in (None, 0.01)[:chunk_size]:
        model.policy.ensemble_decay = ensemble_decay
        for observation in observations:
            action, state = model.predict(observation, state)
            assert FLOAT64.contains(action)


def test_whole_numbers_are_no_actions(algorithm):
    space = spaces.Box(-30_000, 30_000, (2,), np.int16)
    with pytest.raises(ValueError, match=r"needs actions of a floating-point type, got Box.*int16.*TransformAction"):
        algorithm("MlpPolicy", RandomEnv(OBSERVATIONS, space), **small(algorithm))


@pytest.mark.parametrize("dtype", widths)
@given(data=st.data())
def test_the_end_of_the_range_is_in_the_space(dtype: str, data: st.DataObject):
    numbers = st.floats(-1e6, 1e6, width=widths[dtype])
    low, high = sorted([data.draw(numbers), data.draw(numbers)])
    if high - low < 1e-6:
        high = low + 1.0
    space = spaces.Box(np.array([low], dtype), np.array([high], dtype), dtype=dtype)
    policy = FlowPolicy(OBSERVATIONS, space, lambda _: 1e-3, net_arch=[4])
    for scaled in (-1.0, 1.0, data.draw(st.floats(-1, 1, width=32))):
        assert space.contains(policy.unscale_action(np.array([scaled], np.float32)))


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("bound", [-50.0, 50.0])
def test_an_exported_policy_stays_inside(tmp_path: Path, chunk_size: int, bound: float):
    model = QAM("FlowPolicy", RandomEnv(OBSERVATIONS, FLOAT64), chunk_size=chunk_size, **small())
    # Every action is at its bound
    model.policy.policy_flow.mlp[-1].bias.data.fill_(bound)
    export_onnx(model, tmp_path / "policy.onnx")
    runtime, state = OnnxPolicy(tmp_path / "policy.onnx"), None
    for _ in range(4):
        observation = OBSERVATIONS.sample()
        action, state = runtime.predict(observation, state)
        assert FLOAT64.contains(action)
        np.testing.assert_allclose(action, FLOAT64.high if bound > 0 else FLOAT64.low)
