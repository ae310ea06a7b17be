"""The published hyper-parameters, and that the algorithms take them."""

import math

import pytest
from gymnasium import spaces

from sb3_qam import preset
from sb3_qam.common.phases import SpacesOnlyEnv
from sb3_qam.presets import DOMAINS
from sb3_qam.variants import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_algorithm_takes_every_preset(domain: str, variant: str):
    kwargs = preset(domain, variant).kwargs
    env = SpacesOnlyEnv(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)))
    small = {"policy_kwargs": {**kwargs["policy_kwargs"], "net_arch": [8]}, "buffer_size": 100, "device": "cpu"}
    chosen = VARIANTS[variant]
    model = chosen.algorithm(chosen.policy, env, **{**kwargs, **small})
    assert model.gamma == kwargs["gamma"]
    assert len(kwargs["policy_kwargs"]["net_arch"]) == 4


@pytest.mark.parametrize(
    ("task", "variant", "expected"),
    [
        ("puzzle-3x3-play-singletask-task4-v0", "QAM", {"inverse_temperature": 3.0, "chunk_size": 5, "gamma": 0.99}),
        ("scene-play", "QAM-F", {"inverse_temperature": 1.0, "distill_coef": 300.0, "pessimism": 0.5}),
        ("cube-quadruple-play-100m-v0", "QAM-E", {"inverse_temperature": 3.0, "edit_scale": 0.1}),
        ("humanoidmaze-medium-navigate", "QAM", {"gamma": 0.995, "pessimism": 0.0, "chunk_size": 1}),
        ("humanoidmaze-large-navigate", "TRQAM", {"gamma": 0.999, "pessimism": 0.0, "kl_budget": 1.0}),
        ("cube-triple-play", "TRQAM", {"gamma": 0.995, "kl_budget": 0.5}),
        ("cube-triple-play", "SQAM", {"adjoint": "scalar", "kl_budget": 0.5, "value_penalty": 0.3, "gamma": 0.995}),
        ("cube-double-play", "SQAM", {"value_penalty": 0.0}),
        ("humanoidmaze-large-navigate", "SQAM", {"gamma": 0.999, "pessimism": 0.0}),
        ("scene-play", "FQL", {"inverse_temperature": 0.0, "distill_coef": 300.0, "max_grad_norm": math.inf}),
        ("puzzle-4x4-play", "BAM", {"inverse_temperature": 30.0, "adjoint": "bptt"}),
        ("scene-play", "IFQL", {"chunk_size": 5, "pessimism": 0.5}),
        ("antmaze-large-navigate", "QAM", {"inverse_temperature": 10.0, "gamma": 0.99}),
        ("antmaze-giant-navigate", "QAM-E", {"inverse_temperature": 10.0, "gamma": 0.995}),
    ],
)
def test_published_values(task: str, variant: str, expected: dict):
    kwargs = preset(task, variant).kwargs
    assert {name: kwargs[name] for name in expected} == expected
    assert (kwargs["batch_size"], kwargs["flow_steps"], kwargs["policy_kwargs"]["n_critics"]) == (256, 10, 10)


def test_only_where_there_is_a_flow_it_has_steps():
    assert "flow_steps" not in preset("scene-play", "rebrac").kwargs


def test_what_surrounds_the_arguments():
    assert preset("cube-double-play", "TRQAM").bc_steps == 300_000
    assert preset("cube-double-play").bc_steps == 0
    assert preset("scene-play").sparse_rewards
    assert not preset("cube-double-play").sparse_rewards
    assert preset("puzzle-4x4-play", "TRQAM").kwargs["policy_kwargs"]["net_arch"] == [1024] * 4
    assert preset("cube-double-play", "TRQAM").kwargs["policy_kwargs"]["net_arch"] == [512] * 4


def test_what_is_not_published_is_named():
    with pytest.raises(ValueError, match=r"Nothing is published for 'cube-single-play'.*cube-double-play"):
        preset("cube-single-play")
    with pytest.raises(ValueError, match=r"variant must be one of QAM, .*, FQL, BC, IFQL, ReBRAC, got 'SAC'"):
        preset("scene-play", "SAC")
