"""What an update costs, counted in products: a guard against slow changes that no noise of a machine can hide."""

from itertools import pairwise
from typing import Any

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_qam import QAM
from sb3_qam.networks.cpu_kernels import disabled

BATCH, OBS, ACTION, WIDTH, DEPTH, CRITICS, N = 32, 3, 1, 48, 2, 3, 5
# Where the two matrices are among the arguments of each product
PRODUCTS = {
    th.ops.aten.mm.default: (0, 1),
    th.ops.aten.addmm.default: (1, 2),
    th.ops.aten.bmm.default: (0, 1),
    th.ops.aten.baddbmm.default: (1, 2),
}
ONEDNN_PRODUCT = "mkldnn::_linear_pointwise"


class CountProducts(TorchDispatchMode):
    """Counts the products of matrices that PyTorch carries out, and their multiply-adds."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.multiply_adds = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            a, b = (args[position] for position in PRODUCTS[func])
            self._add_product(a.numel() * b.shape[-1])
        elif func.name() == ONEDNN_PRODUCT:
            x, weight = args[:2]
            self._add_product(x.numel() * weight.shape[0])
        return result

    def _add_product(self, multiply_adds: int) -> None:
        self.products += 1
        self.multiply_adds += multiply_adds


def count_update(dataset: Any, **arguments: Any) -> CountProducts:
    """The operations of one update."""
    model = QAM(
        "FlowPolicy",
        offline_dataset=dataset,
        batch_size=BATCH,
        flow_steps=N,
        policy_kwargs={"net_arch": [WIDTH] * DEPTH, "n_critics": CRITICS},
        device="cpu",
        **arguments,
    )
    # What is made once, in the first update, is not counted
    model.pretrain(gradient_steps=1)
    with CountProducts() as count:
        model.train(1, BATCH)
    return count


def multiply_adds(n_flow: int, n_critic: int = 6) -> int:
    """Of so many evaluations of a velocity field and of the ensemble, each forward or of gradients."""
    flow, critic = [OBS + ACTION + 1, *[WIDTH] * DEPTH, ACTION], [OBS + ACTION, *[WIDTH] * DEPTH, 1]
    of_flow, of_critic = (sum(a * b for a, b in pairwise(sizes)) for sizes in (flow, critic))
    return BATCH * (n_flow * of_flow + n_critic * CRITICS * of_critic)


@pytest.mark.parametrize(
    ("arguments", "n_flow", "n_critic"),
    [
        ({}, 7 * N + 3, 6),
        ({"precision": "bf16"}, 7 * N + 3, 6),
        # Sampling the target and the end of the path, bridges, the behavior there, and two gradients
        ({"adjoint": "scalar"}, 6 * N + 3, 6),
        # Neither path nor adjoint: sampling the target, flow matching
        ({"inverse_temperature": 0.0}, N + 3, 4),
    ],
    ids=str,
)
def test_an_update_makes_the_products_that_the_mathematics_asks_for(
    arguments: dict[str, Any], n_flow: int, n_critic: int, pendulum_dataset
):
    count = count_update(pendulum_dataset, **arguments)
    # Less, because the observations' part of a first layer is the same for all flow steps
    expected = multiply_adds(n_flow, n_critic)
    assert 0.95 * expected < count.multiply_adds <= expected
    # Layer by layer, and member by member: nothing is cut into smaller pieces
    n_layers = DEPTH + 1
    assert count.products <= n_layers * (n_flow + n_critic * CRITICS)


def test_cloning_evaluates_the_behavior_alone(pendulum_dataset):
    model = QAM(
        "FlowPolicy",
        offline_dataset=pendulum_dataset,
        batch_size=BATCH,
        policy_kwargs={"net_arch": [WIDTH] * DEPTH},
        device="cpu",
    )
    model.pretrain(gradient_steps=1, objective="bc")
    with CountProducts() as count:
        model.train(1, BATCH)
    # Forward, input gradient, weight gradient
    assert count.multiply_adds <= multiply_adds(n_flow=3, n_critic=0)


def test_the_guard_notices_an_update_that_evaluates_more_than_once(pendulum_dataset):
    with disabled():
        count = count_update(pendulum_dataset)
    assert count.multiply_adds > multiply_adds(7 * N + 3)
