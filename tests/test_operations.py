"""What an update costs, counted in operations: a guard against slow changes that no noise of a machine can hide."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_qam import QAM
from sb3_qam.networks.mlp import MLP

BATCH, OBS, ACTION, WIDTH, DEPTH, CRITICS, N = 32, 3, 1, 48, 2, 3, 5
# Where the two matrices are among the arguments of each product
PRODUCTS = {
    th.ops.aten.mm.default: (0, 1),
    th.ops.aten.addmm.default: (1, 2),
    th.ops.aten.bmm.default: (0, 1),
    th.ops.aten.baddbmm.default: (1, 2),
}
ONEDNN_PRODUCT = "mkldnn::_linear_pointwise"


def tensors(arguments: Iterable[Any]) -> Iterable[th.Tensor]:
    for argument in arguments:
        if isinstance(argument, th.Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from tensors(argument)


class CountOperations(TorchDispatchMode):
    """Counts the operations that PyTorch carries out: products, their multiply-adds, and everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.products = self.multiply_adds = self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls[str(func)] += 1
        if func in PRODUCTS:
            a, b = (args[position] for position in PRODUCTS[func])
            self._add_product(a.numel() * b.shape[-1])
        elif func.name() == ONEDNN_PRODUCT:
            x, weight = args[:2]
            self._add_product(x.numel() * weight.shape[0])
        elif not func.is_view:
            self.elements += sum(each.numel() for each in tensors([result]))
        return result

    def _add_product(self, multiply_adds: int) -> None:
        self.products += 1
        self.multiply_adds += multiply_adds


def count_update(dataset: Any, **arguments: Any) -> CountOperations:
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
    with CountOperations() as count:
        model.train(1, BATCH)
    return count


def multiply_adds(n_flow: int, n_critic: int = 6) -> int:
    """Of so many evaluations of a velocity field and of the ensemble, each forward or of gradients."""
    flow, critic = [OBS + ACTION + 1, *[WIDTH] * DEPTH, ACTION], [OBS + ACTION, *[WIDTH] * DEPTH, 1]
    of_flow, of_critic = (sum(a * b for a, b in pairwise(sizes)) for sizes in (flow, critic))
    return BATCH * (n_flow * of_flow + n_critic * CRITICS * of_critic)


@pytest.mark.parametrize(
    ("arguments", "n_flow"),
    [
        ({}, 7 * N + 3),
        ({"precision": "bf16"}, 7 * N + 3),
        # A forward evaluation and an input gradient less for each step
        ({"adjoint": "scalar"}, 5 * N + 3),
    ],
    ids=str,
)
def test_an_update_makes_the_products_that_the_mathematics_asks_for(
    arguments: dict[str, Any], n_flow: int, pendulum_dataset
):
    count = count_update(pendulum_dataset, **arguments)
    # Less, because the observations' part of a first layer is the same for all flow steps
    assert 0.95 * multiply_adds(n_flow) < count.multiply_adds <= multiply_adds(n_flow)
    # Layer by layer, and member by member: nothing is cut into smaller pieces
    n_layers = DEPTH + 1
    assert count.products <= n_layers * (n_flow + 6 * CRITICS)


def test_what_is_no_product_stays_small(pendulum_dataset):
    count = count_update(pendulum_dataset)
    # Activations forward and backward take one pass each, normalizations too
    assert count.elements <= 165 * BATCH * WIDTH
    # Each costs a microsecond and more, whatever its size. How often it detaches is PyTorch's own affair
    del count.calls["aten.detach.default"]
    assert sum(count.calls.values()) <= 985, sum(count.calls.values())


def test_cloning_evaluates_the_behavior_alone(pendulum_dataset):
    model = QAM(
        "FlowPolicy",
        offline_dataset=pendulum_dataset,
        batch_size=BATCH,
        policy_kwargs={"net_arch": [WIDTH] * DEPTH},
        device="cpu",
    )
    model.pretrain(gradient_steps=1, objective="bc")
    with CountOperations() as count:
        model.train(1, BATCH)
    # Forward, input gradient, weight gradient
    assert count.multiply_adds <= multiply_adds(n_flow=3, n_critic=0)


def test_the_guard_notices_an_update_that_evaluates_more_than_once(pendulum_dataset, monkeypatch):
    monkeypatch.setattr(MLP, "fused_members", lambda self: None)
    count = count_update(pendulum_dataset)
    assert count.multiply_adds > multiply_adds(7 * N + 3)
    assert count.elements > 165 * BATCH * WIDTH
