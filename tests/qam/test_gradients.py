"""Each loss reaches the network it is for, and no other."""

from collections.abc import Callable

import pytest
import torch as th
from gymnasium import spaces

from sb3_qam import QAM
from sb3_qam.networks.features import FeaturesNetwork

NETWORKS = ("behavior_flow", "policy_flow", "critic", "behavior_flow_target", "critic_target")


class OneLossQAM(QAM):
    """Trains with one of the three losses, the others times zero."""

    kept_loss: str

    def _optimize(self, losses: dict[str, th.Tensor], *args) -> None:
        super()._optimize({name: loss * (name == self.kept_loss) for name, loss in losses.items()}, *args)


def moved_by(model: QAM, update: Callable[[], object]) -> set[str]:
    before = {name: [p.clone() for p in getattr(model.policy, name).parameters()] for name in NETWORKS}
    update()
    return {
        name
        for name, parameters in before.items()
        if any(
            not th.equal(old, new)
            for old, new in zip(parameters, getattr(model.policy, name).parameters(), strict=True)
        )
    }


@pytest.mark.parametrize(
    ("loss", "network"), [("critic_loss", "critic"), ("bc_loss", "behavior_flow"), ("adjoint_loss", "policy_flow")]
)
def test_each_loss_moves_one_network_alone(loss: str, network: str, pendulum_dataset):
    # tau=0 keeps the targets where they are
    model = OneLossQAM("FlowPolicy", offline_dataset=pendulum_dataset, batch_size=32, flow_steps=4, tau=0.0, seed=0)
    model.kept_loss = loss
    assert moved_by(model, lambda: model.pretrain(gradient_steps=3)) == {network}


def test_all_losses_move_all_networks_and_the_targets_follow(pendulum_dataset):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, batch_size=32, flow_steps=4, seed=0)
    assert moved_by(model, lambda: model.pretrain(gradient_steps=2)) == set(NETWORKS)


def test_targets_are_averaged_with_the_parameters_from_before_the_step(pendulum_dataset):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, batch_size=32, flow_steps=4, tau=0.1, seed=0)
    model.pretrain(gradient_steps=1)
    for _ in range(3):
        expected = [
            0.9 * target + 0.1 * source
            for target, source in zip(
                model.policy.critic_target.parameters(), model.policy.critic.parameters(), strict=True
            )
        ]
        model.train(gradient_steps=1, batch_size=32)
        for mean, target in zip(expected, model.policy.critic_target.parameters(), strict=True):
            th.testing.assert_close(mean, target)


def test_a_shared_extractor_is_trained_by_the_critic_alone(pendulum_dataset):
    class LinearExtractor(th.nn.Module):
        features_dim = 5

        def __init__(self, observation_space: spaces.Box) -> None:
            super().__init__()
            self.linear = th.nn.Linear(observation_space.shape[0], self.features_dim)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.linear(observations)

    for loss, expected in {"critic_loss": True, "bc_loss": False, "adjoint_loss": False}.items():
        model = OneLossQAM(
            "FlowPolicy",
            offline_dataset=pendulum_dataset,
            batch_size=32,
            policy_kwargs={"features_extractor_class": LinearExtractor, "share_features_extractor": True},
        )
        model.kept_loss = loss
        policy = model.policy
        assert policy.critic.features_extractor is policy.policy_flow.features_extractor
        assert policy.critic.features_extractor is policy.behavior_flow.features_extractor
        assert policy.critic.features_extractor is not policy.critic_target.features_extractor
        before = policy.critic.features_extractor.linear.weight.clone()
        model.pretrain(gradient_steps=2)
        assert th.equal(before, policy.critic.features_extractor.linear.weight) is not expected


def test_joint_clipping_bounds_the_norm_over_all_networks(pendulum_dataset):
    norms = []

    class KeepsNorm(QAM):
        def _clip_gradients(self) -> th.Tensor:
            before = super()._clip_gradients()
            gradients = [p.grad for group in self.policy.optimizer.param_groups for p in group["params"]]
            norms.append((before, th.cat([gradient.flatten() for gradient in gradients]).norm()))
            return before

    model = KeepsNorm("FlowPolicy", offline_dataset=pendulum_dataset, batch_size=32, max_grad_norm=0.1, seed=0)
    model.pretrain(gradient_steps=3)
    for before, after in norms:
        assert before > 0.1
        th.testing.assert_close(after, th.tensor(0.1), rtol=1e-4, atol=0)


def test_the_features_extractor_runs_once_per_network_and_observation(pendulum_dataset, monkeypatch):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, batch_size=32, flow_steps=7)
    model.pretrain(gradient_steps=1)
    calls = []
    original = FeaturesNetwork.features
    monkeypatch.setattr(FeaturesNetwork, "features", lambda self, obs: (calls.append(self), original(self, obs))[1])
    model.train(gradient_steps=1, batch_size=32)
    policy = model.policy
    # the policy flow also makes the next actions, from the next observations
    assert calls.count(policy.behavior_flow) == calls.count(policy.behavior_flow_target) == 1
    assert calls.count(policy.policy_flow) == 2
    # the target critics value next actions at the next observations, and give the adjoint at these
    assert calls.count(policy.critic) == 1
    assert calls.count(policy.critic_target) == 2
