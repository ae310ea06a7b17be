"""IFQL is what the design says it is."""

from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_qam import IFQL
from sb3_qam.common.noise import draw_from_observations
from sb3_qam.ifql.ifql import expectile_loss

SMALL: dict[str, Any] = {"batch_size": 32, "flow_steps": 4, "policy_kwargs": {"net_arch": [16]}, "seed": 0}


@given(st.floats(0.01, 0.99))
def test_the_expectile_of_a_fair_coin_is_kappa(kappa: float):
    value = th.tensor(kappa, requires_grad=True)
    expectile_loss(th.tensor([0.0, 1.0]) - value, kappa).backward()
    assert float(value.grad) == pytest.approx(0, abs=1e-6)
    # and with 0.5 it is half the squared error
    difference = th.tensor([-2.0, 1.0, 3.0])
    assert float(expectile_loss(difference, 0.5)) == pytest.approx(0.5 * float((difference**2).mean()))


def test_values_are_those_of_actions_in_the_data_whatever_the_policy_does(pendulum_dataset):
    model, other = (IFQL("FlowPolicy", offline_dataset=pendulum_dataset, **SMALL) for _ in range(2))
    with th.no_grad():
        for parameter in other.policy.behavior_flow.parameters():
            parameter.mul_(2)
    for each in (model, other):
        each.set_random_seed(1)
        each.pretrain(gradient_steps=5)
    for network in ("critic", "value"):
        pairs = zip(*(getattr(each.policy, network).parameters() for each in (model, other)), strict=True)
        assert all(th.equal(*pair) for pair in pairs)


def test_the_best_of_the_candidates_by_the_least_of_the_critics_acts(pendulum_dataset):
    model = IFQL("FlowPolicy", offline_dataset=pendulum_dataset, **SMALL).pretrain(gradient_steps=20)
    policy, observations = model.policy, th.randn(6, 3)
    noise = policy.draw_noise(6, draw_from_observations(observations))
    assert noise.x0.shape == (32, 6, 1)
    with th.no_grad():
        candidates = policy.candidate_actions(observations, noise)
        features = policy.critic.features(observations)
        best = policy.critic(features, candidates).amin(dim=0).argmax(dim=0)
    expected = candidates[best, th.arange(6)]
    actions, _ = model.predict(observations.numpy(), deterministic=True)
    np.testing.assert_allclose(actions, policy.unscale_action(expected.numpy()), atol=1e-6)
    # all of them are a function of the observation: neither its place in a batch nor what was drawn before matters
    th.randn(5)
    reversed_actions, _ = model.predict(observations.numpy()[::-1].copy(), deterministic=True)
    np.testing.assert_allclose(reversed_actions[::-1], actions, atol=1e-5)


def test_a_clone_acts_by_a_single_sample_until_there_are_critics(pendulum_dataset, tmp_path):
    model = IFQL("FlowPolicy", offline_dataset=pendulum_dataset, best_of_n=4, **SMALL)
    model.pretrain(gradient_steps=3, objective="bc")
    assert model.policy.draw_noise(1).x0.shape[0] == 1
    model.save(tmp_path / "clone")
    loaded = IFQL.load(tmp_path / "clone")
    assert loaded.policy.draw_noise(1).x0.shape[0] == 1
    # it may be set meanwhile
    loaded.best_of_n = 7
    assert loaded.policy.draw_noise(1).x0.shape[0] == 1
    loaded.pretrain(pendulum_dataset, gradient_steps=3)
    assert loaded.policy.draw_noise(1).x0.shape[0] == 7


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("expectile", 1.0, "expectile must be a finite number .* greater than 0 and less than 1, got 1.0"),
        ("best_of_n", 0, "best_of_n must be an integer of at least 1, got 0"),
        ("flow_steps", 0, "flow_steps must be an integer of at least 1, got 0"),
        ("max_grad_norm", 0, "max_grad_norm must be .* greater than 0, got 0"),
        ("policy_kwargs", {"best_of_n": 3}, r"sets what IFQL sets itself \(best_of_n\): pass it to IFQL"),
    ],
)
def test_what_is_out_of_range_is_refused(argument: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        IFQL("FlowPolicy", "Pendulum-v1", buffer_size=10, **{argument: value})


def test_networks_of_another_chunk_are_refused_at_loading(tmp_path):
    IFQL("FlowPolicy", "Pendulum-v1", chunk_size=3, buffer_size=10).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"made for chunk_size=3 and do not fit chunk_size=2\. Make a new model\.$"):
        IFQL.load(tmp_path / "model", chunk_size=2)
