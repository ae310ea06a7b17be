"""ReBRAC is what the design says it is."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise

from sb3_qam import ReBRAC
from sb3_qam.common.buffers import TransitionBatch
from tests.conftest import record, write_dataset

SMALL: dict[str, Any] = {"batch_size": 32, "policy_kwargs": {"net_arch": [16]}, "seed": 0}


def a_batch(model: ReBRAC, n: int = 16) -> TransitionBatch:
    observations, ones = th.randn(n, 3), th.ones(n)
    return TransitionBatch(observations, th.rand(n, 1) * 2 - 1, observations, ones, 0.99 * ones, ones, ones)


def test_the_same_action_whether_deterministic_or_not_and_noise_explores():
    kwargs = SMALL | {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.2)), "learning_starts": 0}
    model = ReBRAC("MlpPolicy", "Pendulum-v1", buffer_size=100, **kwargs).learn(20)
    observations = model.replay_buffer.observations[:20, 0]
    actions, _ = model.predict(observations)
    np.testing.assert_array_equal(actions, model.predict(observations, deterministic=True)[0])
    executed = 2 * model.replay_buffer.actions[:20, 0]
    assert 0.1 < np.std(executed - actions) / 2 < 0.4
    # tanh has its slope where actions begin
    fresh = ReBRAC("MlpPolicy", "Pendulum-v1", buffer_size=10)
    assert np.abs(fresh.predict(observations)[0]).max() < 1


def test_targets_move_in_every_second_update_and_the_actor_in_each(pendulum_dataset):
    model = ReBRAC("MlpPolicy", offline_dataset=pendulum_dataset, **SMALL)
    moved = []
    for _ in range(4):
        before = {name: value.clone() for name, value in model.policy.named_parameters()}
        model.pretrain(gradient_steps=1)
        after = dict(model.policy.named_parameters())
        moved.append({name.split(".")[0] for name, value in after.items() if not th.equal(before[name], value)})
    trained, targets = {"actor", "critic"}, {"actor_target", "critic_target"}
    assert moved == [trained, trained | targets, trained, trained | targets]


def test_the_noise_of_the_target_is_clipped():
    model = ReBRAC("MlpPolicy", "Pendulum-v1", buffer_size=10, **SMALL)
    batch = a_batch(model)
    at_the_limit = model.td_target(batch, th.full((16, 1), 2.5))
    assert th.equal(model.td_target(batch, th.full((16, 1), 100.0)), at_the_limit)
    model.target_policy_noise = 0.0
    assert not th.allclose(model.td_target(batch, th.full((16, 1), 100.0)), at_the_limit)


def test_the_scale_of_values_does_not_matter_to_the_actor():
    """The reason for dividing by the mean of their magnitude: bc_coef means the same for all rewards."""
    gradients = []
    for scale in (1.0, 100.0):
        model = ReBRAC("MlpPolicy", "Pendulum-v1", buffer_size=10, **SMALL)
        th.manual_seed(1)
        batch = a_batch(model)
        with th.no_grad():
            for parameter in model.critic.mlp[-1].parameters():
                parameter.mul_(scale)
        model._update(batch, model._sample_noise(16))
        gradients.append(model.actor.mlp[0].weight.grad.clone())
    th.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_cloning_alone_finds_the_action_of_each_state():
    env = gym.make("Pendulum-v1", max_episode_steps=40)
    episodes = record(env, 5, lambda observation: 2 * observation[1:2])
    dataset = write_dataset(episodes, env.observation_space, env.action_space)
    kwargs = SMALL | {"policy_kwargs": {"net_arch": [64], "share_features_extractor": True}, "learning_rate": 3e-3}
    model = ReBRAC("MlpPolicy", offline_dataset=dataset, **kwargs)
    critic = [parameter.clone() for parameter in model.critic.parameters()]
    model.pretrain(gradient_steps=400, objective="bc")
    observations = np.concatenate([np.array(episode["observations"]) for episode in episodes])
    np.testing.assert_allclose(model.predict(observations)[0], 2 * observations[:, 1:2], atol=0.3)
    assert all(th.equal(*pair) for pair in zip(critic, model.critic.parameters(), strict=True))


@pytest.mark.parametrize("argument", ["bc_coef", "target_policy_noise", "target_noise_clip", "pessimism"])
def test_what_is_out_of_range_is_refused(argument: str):
    with pytest.raises(ValueError, match=f"{argument} must be a finite number .* at least 0, got -1"):
        ReBRAC("MlpPolicy", "Pendulum-v1", buffer_size=10, **{argument: -1})


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="ReBRAC has no argument 'bc_coeff': did you mean 'bc_coef'"):
        ReBRAC("MlpPolicy", "Pendulum-v1", bc_coeff=2)
