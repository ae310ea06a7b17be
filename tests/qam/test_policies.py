"""FlowPolicy keeps SB3's policy conventions."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN

from sb3_qam import QAM, CnnPolicy, FlowPolicy, MultiInputPolicy
from sb3_qam.common.noise import SamplingNoise
from sb3_qam.common.phases import SpacesOnlyEnv
from sb3_qam.networks.actors import VelocityField
from sb3_qam.networks.critics import CriticEnsemble

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
ACTIONS = spaces.Box(np.array([0.0, -5.0], np.float32), np.array([10.0, 5.0], np.float32))


def policy_for(
    observation_space: spaces.Space = OBSERVATIONS, action_space: spaces.Box = ACTIONS, **kwargs
) -> FlowPolicy:
    th.manual_seed(0)
    return FlowPolicy(observation_space, action_space, lambda _: 1e-3, **kwargs)


def test_the_actor_is_where_sb3_has_it():
    model = QAM("FlowPolicy", "Pendulum-v1")
    assert model.policy.actor is model.actor is model.policy.policy_flow
    assert not any(name.startswith("actor") for name in model.policy.state_dict())


def test_aliases():
    assert QAM.policy_aliases == {
        "FlowPolicy": FlowPolicy,
        "MlpPolicy": FlowPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }


@pytest.mark.parametrize(
    ("policy", "space", "extractor"),
    [
        ("FlowPolicy", OBSERVATIONS, FlattenExtractor),
        ("MlpPolicy", spaces.Box(-1.0, 1.0, (2, 3)), FlattenExtractor),
        ("FlowPolicy", spaces.Dict(a=OBSERVATIONS, b=OBSERVATIONS), CombinedExtractor),
        ("MultiInputPolicy", spaces.Dict(a=OBSERVATIONS, b=OBSERVATIONS), CombinedExtractor),
        ("CnnPolicy", spaces.Box(0, 255, (36, 36, 3), np.uint8), NatureCNN),
        ("MlpPolicy", spaces.Discrete(4), FlattenExtractor),
        ("MlpPolicy", spaces.MultiDiscrete([2, 3]), FlattenExtractor),
        ("MlpPolicy", spaces.MultiBinary(4), FlattenExtractor),
    ],
    ids=str,
)
def test_observation_spaces(policy: str, space: spaces.Space, extractor: type):
    class Env(SpacesOnlyEnv):
        def step(self, action):
            assert self.action_space.contains(action)
            return self.observation_space.sample(), 1.0, False, False, {}

    kwargs = {"net_arch": [8]}
    model = QAM(
        policy, Env(space, ACTIONS), learning_starts=4, batch_size=4, flow_steps=2, buffer_size=20, policy_kwargs=kwargs
    )
    assert isinstance(model.policy.policy_flow.features_extractor, extractor)
    model.learn(8)
    action, _ = model.predict(space.sample())
    assert action.shape == (2,)


def test_actions_of_any_shape_and_bounds():
    space = spaces.Box(np.zeros((2, 3), np.float32), np.full((2, 3), 4.0, np.float32))
    policy = policy_for(action_space=space)
    single, _ = policy.predict(np.zeros(3, np.float32))
    batch, _ = policy.predict(np.zeros((50, 3), np.float32))
    assert single.shape == (2, 3)
    assert batch.shape == (50, 2, 3)
    assert batch.dtype == np.float32
    assert ((batch >= 0) & (batch <= 4)).all()
    # noise reaches everything between the bounds
    assert batch.min() < 1 < 3 < batch.max()


def test_the_default_sampler_is_the_papers_euler():
    policy = policy_for(flow_steps=4)
    observations, x = th.randn(5, 3), th.randn(1, 5, 2)
    expected = x.squeeze(0)
    for k in range(4):
        expected = expected + policy.policy_flow(observations, expected, k / 4) / 4
    th.testing.assert_close(policy.sample_actions(observations, SamplingNoise(x)), expected.clamp(-1, 1))


def test_an_adaptive_method_agrees_with_many_small_steps():
    observations, noise = th.randn(20, 3), SamplingNoise(th.randn(1, 20, 2))
    fine = policy_for(flow_steps=2000).sample_actions(observations, noise)
    for method, options in {"dopri5": {"rtol": 1e-4, "atol": 1e-4}, "rk4": None}.items():
        policy = policy_for(ode_method=method, ode_options=options, flow_steps=10)
        th.testing.assert_close(policy.sample_actions(observations, noise), fine, atol=2e-3, rtol=0)


def test_deterministic_actions_are_a_function_of_the_observation():
    policy = policy_for()
    observations = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype(np.float32)
    together, _ = policy.predict(observations, deterministic=True)
    again, _ = policy.predict(observations, deterministic=True)
    np.testing.assert_array_equal(together, again)
    for observation, action in zip(observations, together, strict=True):
        np.testing.assert_allclose(policy.predict(observation, deterministic=True)[0], action, rtol=1e-4, atol=1e-5)
    state = th.get_rng_state()
    policy.predict(observations, deterministic=True)
    assert th.equal(th.get_rng_state(), state)
    first, second = policy.predict(observations)[0], policy.predict(observations)[0]
    assert not np.array_equal(first, second)


def test_prediction_restores_nothing_but_leaves_evaluation_mode():
    policy = policy_for()
    policy.set_training_mode(True)
    assert policy.policy_flow.training
    assert not policy.critic_target.training
    assert not policy.behavior_flow_target.training
    policy.predict(np.zeros(3, np.float32))
    assert not policy.training
    assert not policy.policy_flow.training


def test_networks_follow_the_design():
    policy = policy_for(net_arch={"pi": [7, 5], "qf": [6]}, n_critics=4)
    for flow in (policy.policy_flow, policy.behavior_flow, policy.behavior_flow_target):
        kinds = [type(layer).__name__ for layer in flow.mlp]
        assert kinds == ["Linear", "TanhGELU", "Linear", "TanhGELU", "Linear"]
        assert [layer.weight.shape for layer in flow.mlp if hasattr(layer, "weight")] == [
            (7, 3 + 2 + 1),
            (5, 7),
            (2, 5),
        ]
    assert [type(layer).__name__ for layer in policy.critic.mlp] == [
        "EnsembleLinear",
        "TanhGELU",
        "EnsembleLayerNorm",
        "EnsembleLinear",
    ]
    assert policy.critic(th.zeros(9, 3), th.zeros(9, 2)).shape == (4, 9)
    with_norm = policy_for(net_arch=[7], flow_layer_norm=True)
    assert [type(layer).__name__ for layer in with_norm.policy_flow.mlp] == [
        "Linear",
        "TanhGELU",
        "LayerNorm",
        "Linear",
    ]


def test_kernels_are_xavier_uniform_and_biases_zero():
    policy = policy_for(net_arch=[300, 200], n_critics=3)
    for kernel in [policy.policy_flow.mlp[2].weight, *policy.critic.mlp[3].weight]:
        bound = (6 / (300 + 200)) ** 0.5
        assert kernel.abs().max() <= bound
        assert kernel.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not policy.policy_flow.mlp[2].bias.any()
    assert not policy.critic.mlp[3].bias.any()


def test_an_ensemble_member_is_the_network_it_would_be_alone():
    critic = policy_for(net_arch=[7, 5], n_critics=3).critic
    th.nn.init.normal_(critic.mlp[2].weight)
    th.nn.init.normal_(critic.mlp[2].bias)
    features, actions = th.randn(9, 3), th.randn(9, 2)
    values = critic(features, actions)
    for member in range(3):
        x = th.cat([features, actions], dim=1)
        for layer in critic.mlp:
            if hasattr(layer, "weight") and layer.weight.dim() == 3:
                x = x @ layer.weight[member] + layer.bias[member]
            elif hasattr(layer, "weight"):
                x = th.nn.functional.layer_norm(x, x.shape[-1:], layer.weight[member], layer.bias[member], eps=1e-6)
            else:
                x = layer(x)
        th.testing.assert_close(values[member], x.squeeze(1))


def test_shapes_broadcast_over_flow_steps_and_samples():
    policy = policy_for()
    features = th.randn(4, 3)
    flow: VelocityField = policy.policy_flow
    x, times = th.randn(5, 4, 2), th.arange(5).view(5, 1, 1) / 5
    batched = flow(features, x, times)
    for k in range(5):
        th.testing.assert_close(batched[k], flow(features, x[k], k / 5))
    critic: CriticEnsemble = policy.critic
    samples = th.randn(6, 4, 2)
    values = critic(features, samples)
    assert values.shape == (2, 6, 4)
    th.testing.assert_close(values[:, 3], critic(features, samples[3]))


def test_batch_norm_statistics_reach_the_targets():
    class Normalizing(FlattenExtractor):
        def __init__(self, observation_space: spaces.Box) -> None:
            super().__init__(observation_space)
            self.norm = th.nn.BatchNorm1d(self.features_dim)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.norm(super().forward(observations))

    kwargs = {"net_arch": [8], "features_extractor_class": Normalizing}
    model = QAM("FlowPolicy", "Pendulum-v1", learning_starts=5, batch_size=8, buffer_size=100, policy_kwargs=kwargs)
    model.learn(10)
    policy = model.policy
    for target, source in policy.target_pairs():
        assert source.features_extractor.norm.running_mean.any()
        th.testing.assert_close(
            target.features_extractor.norm.running_mean, source.features_extractor.norm.running_mean
        )


def test_optimizer_class_and_arguments():
    policy = policy_for(optimizer_class=th.optim.AdamW, optimizer_kwargs={"weight_decay": 0.25})
    assert type(policy.optimizer) is th.optim.AdamW
    (group,) = policy.optimizer.param_groups
    assert (group["weight_decay"], group["lr"]) == (0.25, 1e-3)
    n_parameters = sum(
        len(list(network.parameters())) for network in (policy.critic, policy.policy_flow, policy.behavior_flow)
    )
    assert len(group["params"]) == n_parameters
