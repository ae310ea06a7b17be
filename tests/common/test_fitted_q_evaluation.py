"""Fitted Q evaluation finds the value of a policy that is known."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_qam import QAM, fitted_q_evaluation
from sb3_qam.common.phases import SpacesOnlyEnv
from tests.conftest import write_dataset
from tests.contract.conftest import parameters_of, same_parameters

# A chain: to the right for nothing, to its end for 1, or out of it at any place for 0.3
N_PLACES, OUT, GAMMA = 5, 0.3, 0.9
SMALL: dict[str, Any] = {
    "gamma": GAMMA,
    "learning_rate": 1e-2,
    "batch_size": 32,
    "tau": 0.05,
    "flow_steps": 3,
    "policy_kwargs": {"net_arch": [32]},
    "seed": 0,
    "device": "cpu",
}
SPACES = spaces.Box(0, 1, (N_PLACES + 1,), np.float32), spaces.Box(-1, 1, (1,), np.float32)


def episode(n_right: int, truncated: bool = False) -> dict[str, Any]:
    """Some steps to the right, then out unless that is the end."""
    actions = [0.5] * n_right + [-0.5] * (n_right < N_PLACES and not truncated)
    rewards = [0.0] * len(actions)
    if not truncated:
        rewards[-1] = 1.0 if n_right == N_PLACES else OUT
    return {
        "observations": np.eye(N_PLACES + 1, dtype=np.float32)[: len(actions) + 1],
        "actions": np.array(actions, np.float32)[:, None],
        "rewards": rewards,
        "terminations": [False] * (len(actions) - 1) + [not truncated],
        "truncations": [False] * (len(actions) - 1) + [truncated],
    }


def clone_of(n_right: int, env: Any = None, **kwargs: Any) -> QAM:
    """A policy that does what these episodes do."""
    data = write_dataset([episode(n_right)] * 4, *SPACES)
    model = QAM("FlowPolicy", env, offline_dataset=data, **SMALL, **kwargs)
    return model.pretrain(gradient_steps=300, objective="bc")


def recorded() -> Any:
    """What everyone did, and episodes that were cut off: their last step has a value, too."""
    everything = [episode(n) for n in range(N_PLACES + 1)] + [episode(n, truncated=True) for n in range(2, N_PLACES)]
    return write_dataset(everything * 2, *SPACES)


@pytest.mark.parametrize(
    ("n_right", "value", "deterministic"), [(N_PLACES, GAMMA ** (N_PLACES - 1), True), (0, OUT, False)]
)
def test_in_a_chain_it_is_the_discounted_reward_of_what_the_policy_does(
    n_right: int, value: float, deterministic: bool
):
    found = fitted_q_evaluation(clone_of(n_right), recorded(), 1000, deterministic, n_critics=3)
    assert found.value == pytest.approx(value, abs=0.03)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.1
    assert found.halfway == pytest.approx(value, abs=0.1)


def test_the_discount_is_the_models():
    model, data = clone_of(N_PLACES), recorded()
    buffer = model.make_offline_buffer(data)
    model.gamma = 0.5
    by_id, by_buffer = (fitted_q_evaluation(model, each, 20, n_critics=2) for each in (data, buffer))
    assert by_id == by_buffer
    in_chunks = QAM("FlowPolicy", offline_dataset=data, chunk_size=2, **SMALL)
    with pytest.raises(
        ValueError, match=r"data is in chunks of 1, and the model's chunk_size is 2: use .*make_offline"
    ):
        fitted_q_evaluation(in_chunks, buffer, 1)


def test_the_value_halfway_is_that_of_half_as_many_steps():
    model, data = clone_of(N_PLACES), recorded()
    found, half = (fitted_q_evaluation(model, data, n, n_critics=2) for n in (40, 20))
    assert found.halfway == pytest.approx(half.value, abs=1e-6)
    assert found.halfway != found.value
    interval = f"95%: {found.low:.4g} to {found.high:.4g}"
    assert str(found) == f"{found.value:.4g} ({interval}; after half of the gradient steps: {found.halfway:.4g})"


def test_a_chunk_is_one_action():
    model = clone_of(3, chunk_size=2)
    data = write_dataset([episode(3)] * 2, *SPACES)
    # Two chunks of two steps, in whatever length of returns
    found = fitted_q_evaluation(model, data, 600, n_steps=5, n_critics=2)
    assert found.value == pytest.approx(GAMMA**3 * OUT, abs=0.05)


def test_rewards_and_observations_are_those_of_training():
    env = VecNormalize(DummyVecEnv([lambda: SpacesOnlyEnv(*SPACES)]), norm_reward=False, training=False)
    env.obs_rms.var = np.full(N_PLACES + 1, 0.25)
    model = clone_of(0, env, reward_transform={"scale": 2.0})
    assert fitted_q_evaluation(model, recorded(), 1000, n_critics=2).value == pytest.approx(2 * OUT, abs=0.06)


def test_the_model_and_its_random_numbers_stay_as_they_are():
    data = recorded()
    model = QAM("FlowPolicy", offline_dataset=data, **SMALL).pretrain(gradient_steps=2)
    buffer, parameters = model.make_offline_buffer(data), parameters_of(model)
    numbers, random_state = np.random.get_state()[1].copy(), th.get_rng_state()
    first, second, another = (fitted_q_evaluation(model, data, 5, seed=seed) for seed in (0, 0, 1))
    assert first == second != another
    assert fitted_q_evaluation(model, buffer, 5) == first
    assert fitted_q_evaluation(model, buffer, 5, n_steps=2) != first
    assert buffer.n_steps == 1
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)
    assert th.equal(th.get_rng_state(), random_state)
    assert same_parameters(parameters_of(model), parameters)


def test_bad_arguments_and_divergence_are_errors(monkeypatch: pytest.MonkeyPatch):
    data = recorded()
    model = QAM("FlowPolicy", offline_dataset=data, **SMALL)
    for name in ("gradient_steps", "n_steps", "n_critics"):
        with pytest.raises(ValueError, match=name):
            fitted_q_evaluation(model, data, **{name: 0})
    with pytest.raises(ValueError, match="has the 9 steps of a return: reduce n_steps"):
        fitted_q_evaluation(model, data, n_steps=9)
    for what in ("qam.zip", data, model.policy):
        with pytest.raises(TypeError, match=f"takes a model .* got {type(what).__name__}"):
            fitted_q_evaluation(what, data)
    with pytest.raises(ValueError, match="deterministic must be True or False, got 'no'"):
        fitted_q_evaluation(model, data, deterministic="no")
    with pytest.raises(ValueError, match="does not fit the environment"):
        fitted_q_evaluation(QAM("FlowPolicy", "Pendulum-v1"), data)
    monkeypatch.setattr("sb3_qam.common.fitted_q_evaluation.LEARNING_RATE", 1e30)
    with pytest.raises(FloatingPointError, match="diverged within 5 gradient steps"):
        fitted_q_evaluation(model, data, 5)
