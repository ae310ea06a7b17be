"""Custom extractors and policies, and the modes that BatchNorm and Dropout are in."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor

from sb3_qam import QAM, FlowPolicy
from sb3_qam.networks.features import FeaturesNetwork
from tests.contract.conftest import SMALL, RandomEnv, same_parameters, small


class NormAndDropout(BaseFeaturesExtractor):
    """A layer with BatchNorm and Dropout, which keeps the mode of each call."""

    def __init__(self, observation_space: spaces.Space, features_dim: int = 6) -> None:
        super().__init__(observation_space, features_dim)
        self.flatten = FlattenExtractor(observation_space)
        self.linear = th.nn.Linear(self.flatten.features_dim, features_dim)
        self.norm, self.dropout = th.nn.BatchNorm1d(features_dim), th.nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        assert self.training == self.norm.training == self.dropout.training
        self.modes.append(self.training)
        return self.dropout(self.norm(self.linear(self.flatten(observations))))


def model_with(extractor: type[BaseFeaturesExtractor], share: bool = False, **kwargs) -> QAM:
    policy_kwargs = {"features_extractor_class": extractor, "share_features_extractor": share}
    return QAM("MlpPolicy", "Pendulum-v1", **small(policy_kwargs=policy_kwargs, **kwargs))


def extractors_of(model: QAM) -> dict[str, BaseFeaturesExtractor]:
    networks = ("critic", "behavior_flow", "policy_flow", "critic_target", "behavior_flow_target")
    return {name: getattr(model.policy, name).features_extractor for name in networks}


@pytest.mark.parametrize("share", [False, True])
def test_modes_of_collecting_training_and_predicting(share: bool):
    model = model_with(NormAndDropout, share, learning_starts=0)
    extractors = extractors_of(model)

    def modes_of(action) -> dict[str, set[bool]]:
        for each in extractors.values():
            each.modes.clear()
        action()
        return {name: set(each.modes) for name, each in extractors.items() if each.modes}

    acting = {"policy_flow": {False}} | ({"critic": {False}, "behavior_flow": {False}} if share else {})
    assert modes_of(lambda: model.predict(np.zeros(3))) == acting
    model.gradient_steps = 0
    assert modes_of(lambda: model.learn(4)) == acting
    training = {"critic": {True}, "behavior_flow": {True}, "policy_flow": {True}}
    targets = {"critic_target": {False}, "behavior_flow_target": {False}}
    assert modes_of(lambda: model.train(gradient_steps=2, batch_size=4)) == training | targets
    assert modes_of(lambda: model.predict(np.zeros(3))) == acting


def test_predicting_with_dropout_is_deterministic_and_moves_no_statistics():
    model = model_with(NormAndDropout).learn(20)
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    observations = np.random.default_rng(0).normal(size=(6, 3))
    first, second = (model.predict(observations, deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert same_parameters(state, model.policy.state_dict())


@pytest.mark.parametrize("share", [False, True])
def test_the_targets_have_the_statistics_of_what_they_follow(share: bool):
    model = model_with(NormAndDropout, share)
    extractors = extractors_of(model)
    before = extractors["critic"].norm.running_mean.clone()
    model.learn(30)
    for name in ("critic", "behavior_flow"):
        source, target = extractors[name].norm, extractors[f"{name}_target"].norm
        assert not th.equal(source.running_mean, before)
        for statistic in ("running_mean", "running_var"):
            th.testing.assert_close(getattr(target, statistic), getattr(source, statistic), rtol=0, atol=0)
        # weights are averaged, statistics are copied
        assert not th.equal(target.weight, source.weight)


def test_a_model_with_statistics_comes_back_from_its_file(tmp_path):
    model = model_with(NormAndDropout).learn(20)
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model")
    observations = np.random.default_rng(0).normal(size=(6, 3))
    np.testing.assert_array_equal(*(each.predict(observations, deterministic=True)[0] for each in (model, loaded)))
    for each, other in zip(extractors_of(model).values(), extractors_of(loaded).values(), strict=True):
        assert th.equal(each.norm.running_var, other.norm.running_var)


class Counting(FlattenExtractor):
    """Counts its forward passes."""

    n_calls = 0

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.n_calls += 1
        return super().forward(observations)


# Observations for all, next observations for what makes and values the next actions
EXTRACTIONS = {"critic": 1, "behavior_flow": 1, "policy_flow": 2, "critic_target": 2, "behavior_flow_target": 1}


WITHOUT_POLICY_FLOW = {"behavior_flow": 2, "policy_flow": 0, "critic_target": 1, "behavior_flow_target": 0}


@pytest.mark.parametrize("flow_steps", [2, 9])
@pytest.mark.parametrize(
    ("variant", "other"),
    [
        ({}, {}),
        ({"adjoint": "scalar"}, {}),
        # the online critics value the end of the path
        ({"adjoint": "bptt"}, {"critic_target": 1}),
        ({"kl_budget": 0.1}, {}),
        ({"chunk_size": 3}, {}),
        ({"n_steps": 3}, {}),
        # values the candidates for the next action
        ({"best_of_n": 3}, {"critic": 2}),
        # is a part of what makes the next action
        ({"residual": True}, {"behavior_flow": 2}),
        # the action head, in the loss and for the next action
        ({"edit_scale": 0.2}, {"head": 2}),
        ({"edit_scale": 0.2, "best_of_n": 3}, {"head": 2, "critic": 2}),
        ({"edit_scale": 0.2, "residual": True}, {"head": 2, "behavior_flow": 2}),
        ({"distill_coef": 1.0}, {"head": 2, "policy_flow": 1}),
        # the behavior makes the next action
        ({"inverse_temperature": 0.0}, WITHOUT_POLICY_FLOW),
        ({"inverse_temperature": 0.0, "edit_scale": 0.2}, {**WITHOUT_POLICY_FLOW, "head": 2}),
    ],
    ids=str,
)
def test_an_update_extracts_features_once_for_each_use_and_not_for_each_flow_step(
    flow_steps: int, variant: dict, other: dict[str, int]
):
    model = model_with(Counting, flow_steps=flow_steps, **variant).learn(10)
    extractors = extractors_of(model)
    of_head = [module for module in model.policy.head.modules() if isinstance(module, Counting)]
    extractors |= dict.fromkeys(["head"] * len(of_head), *of_head) if of_head else {}
    for each in extractors.values():
        each.n_calls = 0
    model.train(gradient_steps=1, batch_size=8)
    assert {name: each.n_calls for name, each in extractors.items()} == EXTRACTIONS | other


def test_an_update_of_the_clone_extracts_the_features_of_the_behavior_alone(pendulum_dataset):
    model = model_with(Counting, offline_dataset=pendulum_dataset)
    extractors = extractors_of(model)
    model.pretrain(gradient_steps=3, objective="bc")
    assert {name: each.n_calls for name, each in extractors.items()} == dict.fromkeys(EXTRACTIONS, 0) | {
        "behavior_flow": 3
    }


@pytest.mark.parametrize("flow_steps", [2, 9])
def test_an_action_extracts_its_observation_once(flow_steps: int):
    model = model_with(Counting, flow_steps=flow_steps)
    for deterministic in (False, True):
        extractor = model.policy.policy_flow.features_extractor
        extractor.n_calls = 0
        model.predict(np.zeros((4, 3)), deterministic=deterministic)
        assert extractor.n_calls == 1


@pytest.mark.parametrize("variant", [{}, {"edit_scale": 0.2}, {"distill_coef": 1.0}], ids=str)
def test_a_shared_extractor_is_one_and_the_targets_have_their_own(variant: dict):
    model = model_with(Counting, share=True, **variant)
    trained = {
        id(module.features_extractor)
        for network in model.policy.trained_networks()
        for module in network.modules()
        if isinstance(module, FeaturesNetwork)
    }
    targets = {id(target.features_extractor) for target, _ in model.policy.target_pairs()}
    assert len(trained) == 1
    assert len(targets) == 2
    assert not trained & targets


class Deep(FlowPolicy):
    """A custom policy: other default sizes and an argument of its own."""

    def __init__(self, *args, temperature: float = 1.0, **kwargs) -> None:
        super().__init__(*args, **{"net_arch": [8, 8, 8], **kwargs})
        self.temperature = temperature

    def draw_noise(self, batch_size: int, draw=None):
        noise = super().draw_noise(batch_size, draw)
        return noise._replace(x0=self.temperature * noise.x0)

    def _get_constructor_parameters(self) -> dict:
        return super()._get_constructor_parameters() | {"temperature": self.temperature}


def test_a_subclass_of_the_policy_trains_acts_and_comes_back(tmp_path):
    kwargs = {name: value for name, value in SMALL.items() if name != "policy_kwargs"}
    model = QAM(Deep, "Pendulum-v1", policy_kwargs={"temperature": 0.0}, **kwargs).learn(20)
    assert len([layer for layer in model.policy.policy_flow.mlp if isinstance(layer, th.nn.Linear)]) == 4
    observations = np.random.default_rng(0).normal(size=(6, 3))
    # without noise, sampling is a function of the observation
    np.testing.assert_array_equal(model.predict(observations)[0], model.predict(observations)[0])
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    for loaded in (QAM.load(tmp_path / "model"), Deep.load(tmp_path / "policy", device="cpu")):
        np.testing.assert_array_equal(loaded.predict(observations)[0], model.predict(observations)[0])


def test_net_arch_activation_and_optimizer_are_sb3s_arguments():
    policy_kwargs = {
        "net_arch": [],
        "activation_fn": th.nn.Tanh,
        "optimizer_class": th.optim.RMSprop,
        "optimizer_kwargs": {"eps": 1e-3},
    }
    model = QAM("MlpPolicy", "Pendulum-v1", **small(policy_kwargs=policy_kwargs)).learn(15)
    # no hidden layer, as in SB3, is a linear network
    assert [type(layer) for layer in model.policy.policy_flow.mlp] == [th.nn.Linear]
    assert isinstance(model.policy.optimizer, th.optim.RMSprop)
    assert model.policy.optimizer.param_groups[0]["eps"] == 1e-3
    hidden = QAM("MlpPolicy", "Pendulum-v1", **small(policy_kwargs={"activation_fn": th.nn.Tanh}))
    assert any(isinstance(layer, th.nn.Tanh) for layer in hidden.policy.policy_flow.mlp)


def test_an_extractor_of_a_dict_may_leave_keys_out():
    class OnlyA(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Dict) -> None:
            super().__init__(observation_space, features_dim=2)

        def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
            return observations["a"]

    space = spaces.Dict(a=spaces.Box(-1.0, 1.0, (2,)), b=spaces.Box(-1.0, 1.0, (50,)))
    kwargs = small(policy_kwargs={"features_extractor_class": OnlyA})
    model = QAM("MultiInputPolicy", RandomEnv(space), **kwargs).learn(15)
    assert model.policy.policy_flow.mlp[0].in_features == 2 + 2 + 1


def test_an_unknown_argument_of_the_policy_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_crtics'"):
        QAM("MlpPolicy", gym.make("Pendulum-v1"), policy_kwargs={"n_crtics": 3})
