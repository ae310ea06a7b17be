"""Fitted Q evaluation finds the value of a policy that is known."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_qam import QAM, fitted_q_evaluation
from tests.conftest import write_dataset

# A chain: to the right for nothing, to its end for 1, or out of it at any place for 0.3
N_PLACES, OUT, GAMMA = 5, 0.3, 0.9
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
    model = QAM(
        "FlowPolicy",
        env,
        gamma=GAMMA,
        offline_dataset=data,
        learning_rate=1e-2,
        batch_size=32,
        tau=0.05,
        policy_kwargs={"net_arch": [32]},
        seed=0,
        device="cpu",
        **kwargs,
    )
    return model.pretrain(gradient_steps=300, objective="bc")


def recorded() -> Any:
    """What everyone did, and episodes that were cut off: their last step has a value, too."""
    everything = [episode(n) for n in range(N_PLACES + 1)] + [episode(n, truncated=True) for n in range(2, N_PLACES)]
    return write_dataset(everything * 2, *SPACES)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("n_right", "value"), [(N_PLACES, GAMMA ** (N_PLACES - 1)), (0, OUT)])
def test_in_a_chain_it_is_the_discounted_reward_of_what_the_policy_does(
    n_right: int, value: float, deterministic: bool
):
    found = fitted_q_evaluation(clone_of(n_right), recorded(), 1500, deterministic)
    assert found.value == pytest.approx(value, abs=0.03)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.1
    assert str(found).startswith(f"{found.value:.4g} (95 %: ")
