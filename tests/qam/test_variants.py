"""Each variant is what the design says it is."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_qam import QAM, FlowPolicy
from sb3_qam.common.noise import SamplingNoise
from sb3_qam.common.phases import SpacesOnlyEnv
from sb3_qam.qam.temperature import TrustRegion

SMALL = {"batch_size": 32, "flow_steps": 4, "buffer_size": 1000, "seed": 0, "policy_kwargs": {"net_arch": [16, 16]}}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"chunk_size": 3},
    {"n_steps": 3},
    {"best_of_n": 4},
    {"edit_scale": 0.2},
    {"distill_coef": 10.0},
    {"residual": True},
    {"kl_budget": 0.5},
    {"adjoint": "scalar"},
    {"adjoint": "bptt"},
    {"inverse_temperature": 0.0},
    {"inverse_temperature": 0.0, "distill_coef": 10.0, "max_grad_norm": float("inf")},
    {"adjoint": "scalar", "kl_budget": 0.5, "value_penalty": 0.3},
    {"chunk_size": 3, "best_of_n": 2, "edit_scale": 0.2, "residual": True, "kl_budget": 0.5, "adjoint": "scalar"},
]


def parameters_of(module: th.nn.Module) -> dict[str, th.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(before: dict[str, th.Tensor], module: th.nn.Module) -> set[str]:
    """The networks (first part of the name) with a parameter that is no longer what it was."""
    return {
        name.split(".")[0] for name, parameter in module.named_parameters() if not th.equal(before[name], parameter)
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_learns_offline_and_online_and_comes_back_from_a_file(variant, pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, **variant, **SMALL)
    before = parameters_of(model.policy)
    model.pretrain(gradient_steps=5)
    model.learn(20, reset_num_timesteps=False)
    expected = {"behavior_flow", "behavior_flow_target", "critic", "critic_target"}
    if variant.get("inverse_temperature") != 0:
        expected.add("policy_flow")
    if variant.get("edit_scale") or variant.get("distill_coef"):
        expected.add("head")
    assert moved(before, model.policy) == expected
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model")
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for deterministic in (True, False):
        th.manual_seed(0)
        first, _ = model.predict(observations, deterministic=deterministic)
        th.manual_seed(0)
        np.testing.assert_array_equal(first, loaded.predict(observations, deterministic=deterministic)[0])
    assert first.shape == (5, 1)
    assert (np.abs(first) <= 2).all()


class LinearExtractor(FlattenExtractor):
    """Features with parameters, one of which is frozen."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space)
        self.linear = th.nn.Linear(self.features_dim, self.features_dim)
        self.linear.bias.requires_grad_(False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(super().forward(observations))


class OneLossQAM(QAM):
    kept_losses: tuple[str, ...]

    def _optimize(self, losses: dict[str, th.Tensor], *args) -> None:
        super()._optimize({name: loss * (name in self.kept_losses) for name, loss in losses.items()}, *args)


@pytest.mark.parametrize(
    ("variant", "losses"),
    [
        ({"edit_scale": 0.2}, ("edit_q_loss", "edit_entropy_loss", "edit_alpha_loss")),
        ({"distill_coef": 10.0}, ("fql_loss",)),
    ],
)
def test_an_action_head_learns_alone(variant: dict, losses: tuple[str, ...], pendulum_dataset):
    kwargs = SMALL | {"policy_kwargs": {"net_arch": [16], "features_extractor_class": LinearExtractor}}
    model = OneLossQAM("FlowPolicy", offline_dataset=pendulum_dataset, tau=0.0, **variant, **kwargs)
    model.kept_losses = losses
    before = parameters_of(model.policy)
    trained = {name for name, parameter in model.policy.critic.named_parameters() if parameter.requires_grad}
    model.pretrain(gradient_steps=3)
    assert moved(before, model.policy) == {"head"}
    # what was frozen before is so again, and nothing else
    assert "features_extractor.linear.bias" not in trained
    assert trained == {name for name, parameter in model.policy.critic.named_parameters() if parameter.requires_grad}


def test_the_best_of_n_is_the_candidate_that_the_online_critics_value_most():
    model = QAM("FlowPolicy", "Pendulum-v1", best_of_n=6, **SMALL)
    policy = model.policy
    with th.no_grad():
        for parameter in policy.critic_target.parameters():
            parameter.normal_()
    observations = th.randn(20, 3)
    noise = policy.draw_noise(20)
    assert noise.x0.shape == (6, 20, 1)
    with th.no_grad():
        chosen = policy.sample_actions(observations, noise)
        candidates = th.stack([policy.sample_actions(observations, SamplingNoise(x0[None])) for x0 in noise.x0])
        values = th.stack([policy.critic(observations, candidate).mean(dim=0) for candidate in candidates])
    for row in range(20):
        # One by one they are rounded otherwise
        th.testing.assert_close(chosen[row], candidates[values[:, row].argmax(), row])


def test_an_edit_changes_the_flows_action_by_at_most_its_scale():
    plain = QAM("FlowPolicy", "Pendulum-v1", **SMALL).policy
    policy = QAM("FlowPolicy", "Pendulum-v1", edit_scale=0.25, **SMALL).policy
    policy.policy_flow.load_state_dict(plain.policy_flow.state_dict())
    observations = th.randn(500, 3)
    noise = policy.draw_noise(500)
    with th.no_grad():
        edited = policy.sample_actions(observations, noise)
        flow = plain.sample_actions(observations, SamplingNoise(noise.x0))
    difference = (edited - flow).abs()
    assert 0.1 < difference.max() <= 0.25 + 1e-6
    assert (edited.abs() <= 1).all()


def test_the_log_density_of_edits_is_that_of_a_transformed_gaussian():
    policy = QAM("FlowPolicy", "Pendulum-v1", edit_scale=0.25, chunk_size=3, **SMALL).policy
    edit_policy = policy.head.edit_policy
    features, actions, noise = th.randn(50, 3), th.rand(50, 3) * 2 - 1, th.randn(50, 3)
    with th.no_grad():
        edits, log_density = edit_policy(features, actions, noise)
        latent = edit_policy.mlp(th.cat([features, actions], dim=1))
        mean, std = edit_policy.mean(latent), edit_policy.log_std(latent).clamp(-20, 2).exp()
    gaussian = th.distributions.Normal(mean, std)
    squashed = th.distributions.TransformedDistribution(gaussian, [th.distributions.TanhTransform(cache_size=1)])
    raw = mean + std * noise
    th.testing.assert_close(edits, raw.tanh())
    th.testing.assert_close(log_density, squashed.log_prob(raw.tanh()).sum(dim=1), rtol=1e-3, atol=1e-3)


def test_the_one_step_policy_acts_without_the_flow():
    policy = QAM("FlowPolicy", "Pendulum-v1", distill_coef=10.0, **SMALL).policy
    observations, noise = th.randn(6, 3), th.randn(1, 6, 1)
    with th.no_grad():
        expected = policy.head.one_step_flow(observations, noise[0]).clamp(-1, 1)
        policy.policy_flow.mlp[-1].bias.fill_(100.0)
        th.testing.assert_close(policy.sample_actions(observations, SamplingNoise(noise)), expected)


def test_a_residual_policy_begins_as_the_behavior():
    policy = QAM("FlowPolicy", "Pendulum-v1", residual=True, **SMALL).policy
    observations, noise = th.randn(6, 3), SamplingNoise(th.randn(1, 6, 1))
    first = policy.sample_actions(observations, noise)
    policy.acts_as = "behavior"
    th.testing.assert_close(policy.sample_actions(observations, noise), first)
    policy.acts_as = "policy"
    with th.no_grad():
        policy.policy_flow.mlp[-1].bias.fill_(0.05)
        policy.behavior_flow_target.mlp[-1].bias.fill_(1.0)
    x = th.randn(6, 1)
    flows = policy.flows(observations)
    # Trained beside the Polyak average, acting beside the behavior flow itself
    for whole, behavior in ((flows.policy, flows.behavior_target), (flows.acting_policy, flows.behavior)):
        th.testing.assert_close(whole(x, 0.3) - behavior(x, 0.3), th.full((6, 1), 0.05))


def test_the_dual_variable_rises_above_the_budget_and_falls_below():
    trust_region = TrustRegion(0.5, th.ones(()), th.zeros(()))
    assert (trust_region.kl_lambda, trust_region.kl_average) == (1, 0)
    averages, lambdas = [0.0], [1.0]
    for kl in [5.0] * 30 + [0.1] * 60:
        trust_region.update(th.tensor(kl))
        averages.append(0.9 * averages[-1] + 0.1 * min(kl, 1.0))
        lambdas.append(lambdas[-1] + 0.01 * (averages[-1] - 0.5))
        assert trust_region.kl_average.item() == pytest.approx(averages[-1], rel=1e-4)
        assert trust_region.kl_lambda.item() == pytest.approx(lambdas[-1], rel=1e-4)
    assert lambdas[30] > lambdas[6] < 1.0
    assert lambdas[90] < lambdas[32]
    for kl, bound in ((0.0, 0.01), (1e9, 100.0)):
        for _ in range(30_000):
            trust_region.update(th.tensor(kl))
        assert trust_region.kl_lambda.item() == pytest.approx(bound)


def test_the_dual_variable_is_logged_and_saved(pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, kl_budget=0.5, **SMALL)
    assert model.inverse_temperature == 1.0
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.pretrain(gradient_steps=20, log_interval=5)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    lambdas = [float(row["train/kl_lambda"]) for row in rows]
    assert len(set(lambdas)) == 4
    assert all(float(row["train/path_kl"]) > 0 and float(row["train/kl_average"]) >= 0 for row in rows)
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model")
    assert model.temperature.kl_lambda != 1
    assert loaded.temperature.kl_lambda == model.temperature.kl_lambda
    assert loaded.temperature.kl_average == model.temperature.kl_average
    # a plain model takes no notice of it
    plain = QAM.load(tmp_path / "model", kl_budget=None, inverse_temperature=3.0)
    assert plain.temperature.diagnostics() == {}
    plain.pretrain(pendulum_dataset, gradient_steps=1)


def test_a_wide_budget_lets_the_policy_go_further_than_a_narrow_one(pendulum_dataset):
    def path_kl(budget: float) -> float:
        values: list[float] = []

        class KeepsKL(QAM):
            def _optimize(self, losses: dict[str, th.Tensor], reported: dict[str, th.Tensor], *args) -> None:
                values.append(reported["path_kl"].item())
                super()._optimize(losses, reported, *args)

        kwargs = SMALL | {"learning_rate": 3e-3}
        KeepsKL("FlowPolicy", offline_dataset=pendulum_dataset, kl_budget=budget, **kwargs).pretrain(gradient_steps=800)
        return float(np.mean(values[-100:]))

    narrow, wide = path_kl(0.05), path_kl(2.0)
    assert narrow < wide


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"edit_scale": 0.1, "distill_coef": 10.0},
            r"edit_scale=0.1 \(QAM-E\) and distill_coef=10.0 \(QAM-F\) exclude",
        ),
        (
            {"kl_budget": 0.5, "inverse_temperature": 3.0},
            "kl_budget=0.5.*got inverse_temperature=3.0. Pass inverse_temperature=None",
        ),
        ({"kl_budget": 0.5, "inverse_temperature": 0.0}, "kl_budget=0.5.*got inverse_temperature=0.0"),
        ({"kl_budget": 0.5, "adjoint": "bptt"}, "kl_budget=0.5.*adjoint='bptt'"),
        ({"chunk_size": 3, "n_steps": 3}, "chunk_size=3 and n_steps=3 exclude each other"),
        ({"value_penalty": 0.3, "inverse_temperature": 0.0}, "value_penalty=0.3 .*inverse_temperature=0.0"),
        ({"value_penalty": 0.3, "adjoint": "bptt"}, "value_penalty=0.3 .*adjoint='bptt'"),
        ({"flow_steps": 1, "adjoint": "bptt"}, "flow_steps=1 adjoint='bptt' never shows the critic"),
    ],
)
def test_impossible_combinations_are_refused(arguments: dict, message: str):
    env = SpacesOnlyEnv(spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (2,)))
    with pytest.raises(ValueError, match=message):
        QAM("FlowPolicy", env, **arguments)


# ---------------------------------------------------------------------- behavior first


def behavior_action(model: QAM, observations: th.Tensor, x0: th.Tensor) -> th.Tensor:
    """What the behavior flow would do, without anything behind it."""
    reference = QAM("FlowPolicy", "Pendulum-v1", inverse_temperature=0.0, chunk_size=model.chunk_size, **SMALL).policy
    reference.behavior_flow.load_state_dict(model.policy.behavior_flow.state_dict())
    return reference.sample_actions(observations, SamplingNoise(x0))


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"kl_budget": 0.5},
        {"residual": True},
        {"best_of_n": 3, "chunk_size": 2},
        {"edit_scale": 0.5},
        {"distill_coef": 1.0},
    ],
    ids=str,
)
def test_cloning_trains_the_behavior_flow_alone_and_acts_with_it(variant: dict, pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, **variant, **SMALL)
    before = parameters_of(model.policy)
    model.pretrain(gradient_steps=5, objective="bc")
    assert moved(before, model.policy) == {"behavior_flow", "behavior_flow_target"}
    model.save(tmp_path / "bc")
    observations, x0 = th.randn(6, 3), th.randn(1, 6, model.policy.action_dim)
    for clone in (model, QAM.load(tmp_path / "bc")):
        th.testing.assert_close(
            clone.policy.sample_actions(observations, SamplingNoise(x0)), behavior_action(clone, observations, x0)
        )
        assert clone.predict(observations.numpy(), deterministic=True)[0].shape == (6, 1)
        assert len(clone.policy.draw_noise(4).x0) == 1
    model.pretrain(gradient_steps=1)
    assert model.policy.acts_as != "bc"


@pytest.mark.parametrize("variant", [{}, {"residual": True}], ids=str)
def test_training_after_cloning_starts_the_policy_where_the_clone_is(variant: dict, pendulum_dataset):
    class KeepsFirst(QAM):
        first = None

        def _sample_batch(self, batch_size: int) -> Any:
            if self._objective == "full" and self.first is None:
                self.first = self.policy.sample_actions(observations, noise)
            return super()._sample_batch(batch_size)

    observations, noise = th.randn(6, 3), SamplingNoise(th.randn(1, 6, 1))
    model = KeepsFirst("FlowPolicy", offline_dataset=pendulum_dataset, **variant, **SMALL)
    model.pretrain(gradient_steps=5, objective="bc")
    clone = model.policy.sample_actions(observations, noise)
    model.pretrain(gradient_steps=1)
    th.testing.assert_close(model.first, clone)


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("variant", [{}, {"edit_scale": 0.2}, {"distill_coef": 10.0}, {"kl_budget": 0.5}], ids=str)
def test_a_clone_starts_a_run_of_any_variant(variant: dict, from_file: bool, pendulum_dataset, tmp_path: Path):
    clone = QAM("FlowPolicy", offline_dataset=pendulum_dataset, **SMALL)
    clone.pretrain(gradient_steps=5, objective="bc").save(tmp_path / "bc")
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, **variant, **{**SMALL, "seed": 1})
    model.load_behavior(tmp_path / "bc" if from_file else clone)
    for name, value in clone.policy.state_dict().items():
        if name.startswith("behavior_flow"):
            assert th.equal(value, model.policy.state_dict()[name])
    model.pretrain(gradient_steps=2)
    assert model._n_offline_steps_done == 2


def test_a_clone_of_another_size_is_refused_and_nothing_is_loaded(pendulum_dataset):
    clone = QAM("FlowPolicy", offline_dataset=pendulum_dataset, chunk_size=2, **SMALL)
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, **SMALL)
    before = parameters_of(model.policy)
    with pytest.raises(
        ValueError, match=r"The behavior flow of the given QAM does not fit this model: chunk_size is 2"
    ):
        model.load_behavior(clone)
    assert not moved(before, model.policy)
    assert model.policy.acts_as != "bc"


def test_bc_steps_are_not_offline_steps(pendulum_dataset):
    model = QAM("FlowPolicy", "Pendulum-v1", offline_steps=3, **SMALL)
    model.pretrain(pendulum_dataset, gradient_steps=4, objective="bc")
    assert model.num_timesteps == 4
    model.learn(5, reset_num_timesteps=False)
    assert model.num_timesteps == 4 + 3 + 5
    assert model._n_offline_steps_done == 3


@pytest.mark.parametrize("loaded", [False, True])
def test_a_clone_acts_from_the_first_online_step(loaded: bool, pendulum_dataset, monkeypatch):
    def no_random_action(*args: Any) -> None:
        raise AssertionError("a random action was taken")

    model = QAM("FlowPolicy", "Pendulum-v1", learning_starts=100, offline_fraction=0.0, **SMALL)
    model.pretrain(pendulum_dataset, gradient_steps=4, objective="bc")
    if loaded:
        clone, model = model, QAM("FlowPolicy", "Pendulum-v1", learning_starts=100, **SMALL)
        model.load_behavior(clone)
    monkeypatch.setattr(spaces.Box, "sample", no_random_action)
    model.learn(10)
    assert model.replay_buffer.pos == 10


def test_a_clone_is_saved_for_deployment(pendulum_dataset, tmp_path: Path):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, edit_scale=0.5, best_of_n=20, **SMALL)
    model.pretrain(gradient_steps=2, objective="bc")
    model.policy.save(tmp_path / "policy.pt")
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    loaded = FlowPolicy.load(tmp_path / "policy.pt", device="cpu")
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )
    assert loaded.acts_as == "bc"


@pytest.mark.parametrize("share", [False, True])
def test_cloning_trains_the_extractor_of_its_flow_also_where_it_is_shared(share: bool, pendulum_dataset):
    extractor = {"features_extractor_class": LinearExtractor, "share_features_extractor": share}
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, **SMALL | {"policy_kwargs": extractor})
    before = model.policy.behavior_flow.features_extractor.linear.weight.clone()
    model.pretrain(gradient_steps=2, objective="bc")
    cloned = model.policy.behavior_flow.features_extractor.linear.weight.clone()
    assert not th.equal(before, cloned)
    model.pretrain(gradient_steps=1)
    assert model.policy.behavior_flow.trains_features_extractor is not share


@pytest.mark.parametrize("share", [False, True])
def test_cloning_again_gives_up_the_policy_and_all_that_belongs_to_it(share: bool, pendulum_dataset):
    extractor = {"features_extractor_class": LinearExtractor, "share_features_extractor": share}
    arguments = SMALL | {"policy_kwargs": extractor, "kl_budget": 0.5}
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, **arguments).pretrain(gradient_steps=3)
    assert model.temperature.kl_lambda != 1
    model.pretrain(gradient_steps=1, objective="bc")
    model._set_objective("full")
    assert model.temperature.kl_lambda == 1
    states, policy = model.policy.optimizer.state, model.policy
    assert not any(parameter in states for parameter in policy.policy_flow.mlp.parameters())
    assert (policy.policy_flow.features_extractor.linear.weight in states) is share
    for flow_or_critic in (policy.behavior_flow, policy.critic):
        assert flow_or_critic.features_extractor.linear.weight in states
    assert all(parameter in states for parameter in policy.behavior_flow.mlp.parameters())


def test_what_fails_leaves_policy_and_clone_as_they_were(pendulum_dataset):
    model = QAM("FlowPolicy", "Pendulum-v1", offline_dataset=pendulum_dataset, **SMALL).pretrain(gradient_steps=3)
    with pytest.raises(TypeError, match=r"callback must be an SB3 callback.*got 'no callback'"):
        model.pretrain(gradient_steps=3, objective="bc", callback="no callback")
    assert model.policy.acts_as != "bc"
    before = parameters_of(model.policy)
    model.pretrain(gradient_steps=1)
    assert "policy_flow" in moved(before, model.policy)

    clone = QAM("FlowPolicy", "Pendulum-v1", offline_steps=5, **SMALL)
    clone.load_behavior(model)
    before = parameters_of(clone.policy)
    with pytest.raises(ValueError, match="offline_steps=5 needs offline data"):
        clone.learn(5)
    assert not moved(before, clone.policy)
    assert clone.policy.acts_as == "bc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_space": spaces.Box(-50.0, 50.0, (1,))}, r"action_space is Box\(-2.0, 2.0"),
        ({"policy_kwargs": {"net_arch": [16, 16], "activation_fn": th.nn.Tanh}}, "activation_fn is .*TanhGELU"),
        ({"policy_kwargs": {"net_arch": [8, 8]}}, r"the shape of behavior_flow.mlp.0.bias is \(16,\) there and \(8,\)"),
        ({"chunk_size": 2}, "chunk_size is 1 there and 2 here"),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_a_clone_that_does_not_fit_is_refused(change: dict, message: str, from_file: bool, tmp_path: Path):
    clone = QAM("FlowPolicy", "Pendulum-v1", **SMALL)
    clone.save(tmp_path / "bc")
    action_space = change.pop("action_space", clone.action_space)
    model = QAM("FlowPolicy", SpacesOnlyEnv(clone.observation_space, action_space), **{**SMALL, **change})
    before = parameters_of(model.policy)
    with pytest.raises(ValueError, match=message):
        model.load_behavior(tmp_path / "bc" if from_file else clone)
    assert not moved(before, model.policy)
    assert model.policy.acts_as != "bc"
    change["action_space"] = action_space


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({"activation_fn": partial(th.nn.LeakyReLU, 0.1)}, {"activation_fn": partial(th.nn.LeakyReLU, 0.1)}),
        ({"activation_fn": lambda: th.nn.LeakyReLU(0.1)}, {"activation_fn": lambda: th.nn.LeakyReLU(0.1)}),
        ({}, {"features_extractor_class": FlattenExtractor, "features_extractor_kwargs": {}}),
    ],
)
def test_a_clone_fits_what_computes_the_same(there: dict, here: dict, tmp_path: Path):
    kwargs = {**SMALL, "policy_kwargs": {"net_arch": [16], **there}}
    QAM("FlowPolicy", "Pendulum-v1", **kwargs).save(tmp_path / "bc")
    QAM.load(tmp_path / "bc").load_behavior(tmp_path / "bc")
    QAM("FlowPolicy", "Pendulum-v1", **{**SMALL, "policy_kwargs": {"net_arch": [16], **here}}).load_behavior(
        tmp_path / "bc"
    )
    other = {"net_arch": [16], **here, "activation_fn": th.nn.Tanh}
    with pytest.raises(ValueError, match="activation_fn is"):
        QAM("FlowPolicy", "Pendulum-v1", **{**SMALL, "policy_kwargs": other}).load_behavior(tmp_path / "bc")


def test_what_is_no_model_gives_no_clone(tmp_path: Path):
    model = QAM("FlowPolicy", "Pendulum-v1", **SMALL)
    with pytest.raises(TypeError, match="Expected a QAM model or the path of a saved one, got int"):
        model.load_behavior(3)
    with pytest.raises(TypeError, match="got FlowPolicy"):
        model.load_behavior(model.policy)
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"sac' is not a saved QAM model, as QAM.save\(\) writes it"):
        model.load_behavior(tmp_path / "sac")
    with pytest.raises(FileNotFoundError):
        model.load_behavior(tmp_path / "missing")


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        ({"residual": True}, {"residual": False}, "made for residual=True and do not fit residual=False"),
        ({}, {"chunk_size": 2}, r"made for chunk_size=1 and do not fit chunk_size=2.*load_behavior\(path\)"),
        ({}, {"edit_scale": 0.1}, "made for edit_scale=0 and do not fit edit_scale=positive"),
        ({"distill_coef": 1.0}, {"distill_coef": 0.0}, "made for distill_coef=positive"),
    ],
)
def test_a_file_with_other_networks_is_refused(saved: dict, loaded: dict, message: str, tmp_path: Path):
    QAM("FlowPolicy", "Pendulum-v1", **saved, **SMALL).save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        QAM.load(tmp_path / "model", **loaded)


def test_arguments_that_ask_for_the_same_networks_may_change_at_loading(tmp_path: Path):
    QAM("FlowPolicy", "Pendulum-v1", edit_scale=0.1, **SMALL).save(tmp_path / "model")
    changed = {"edit_scale": 0.2, "best_of_n": 20, "adjoint": "scalar", "inverse_temperature": None, "kl_budget": 0.5}
    model = QAM.load(tmp_path / "model", **changed)
    assert model.policy.head.edit_scale == 0.2
    assert model.inverse_temperature == 1.0
    assert model.predict(np.zeros(3, np.float32), deterministic=True)[0].shape == (1,)


def test_unknown_objectives_and_clones_without_steps_are_refused(pendulum_dataset):
    model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, offline_steps=5, **SMALL)
    with pytest.raises(ValueError, match="objective must be one of 'full', 'bc', got 'clone'"):
        model.pretrain(gradient_steps=1, objective="clone")
    with pytest.raises(ValueError, match="needs gradient_steps"):
        model.pretrain(objective="bc")
