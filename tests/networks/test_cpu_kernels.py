"""Networks evaluated as a whole give what their modules give one after the other, and so do their gradients."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_qam import QAM
from sb3_qam.networks import cpu_kernels
from sb3_qam.networks.cpu_kernels import RecordingKernel, disabled, members_of
from sb3_qam.networks.features import frozen
from sb3_qam.networks.flows import ConditionedVelocity, Recorder, kernel_of, recorder, vector_jacobian_product
from sb3_qam.networks.layers import LAYER_NORM_EPS, EnsembleLayerNorm, EnsembleLinear, TanhGELU, xavier_linear
from sb3_qam.networks.mlp import MLP, create_mlp
from sb3_qam.qam.adjoint_matching import lean_adjoint


def make_mlp(sizes: list[int], norm: bool = True, members: int | None = None, seed: int = 0) -> MLP:
    """With parameters that are all different from where they begin."""
    th.manual_seed(seed)
    if members is None:
        make_norm = (lambda width: nn.LayerNorm(width, eps=LAYER_NORM_EPS)) if norm else None
        mlp = create_mlp(sizes[0], sizes[-1], sizes[1:-1], TanhGELU, xavier_linear, make_norm)
    else:
        mlp = create_mlp(
            sizes[0],
            sizes[-1],
            sizes[1:-1],
            TanhGELU,
            lambda n_in, n_out: EnsembleLinear(members, n_in, n_out),
            (lambda width: EnsembleLayerNorm(members, width)) if norm else None,
            members,
        )
    with th.no_grad():
        for parameter in mlp.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    return mlp


def plain(mlp: MLP, inputs: th.Tensor) -> th.Tensor:
    """What the modules give one after the other."""
    with disabled():
        return mlp(inputs)


def gradients(outputs: th.Tensor, weights: th.Tensor, mlp: MLP, inputs: th.Tensor) -> list[th.Tensor]:
    return list(th.autograd.grad((outputs * weights).sum(), [inputs, *mlp.parameters()]))


def assert_close(got: list[th.Tensor], expected: list[th.Tensor], rows: int = 1) -> None:
    """To float32 rounding of the largest magnitude in each array, and of what cancels in a sum over rows."""
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-4 * float(other.detach().abs().max()) + 3e-6 * rows


@settings(max_examples=40)
@given(
    rows=st.sampled_from([1, 7, 16, 100, 1100]),
    sizes=st.lists(st.sampled_from([1, 3, 40, 70]), min_size=2, max_size=5),
    norm=st.booleans(),
    members=st.sampled_from([None, 1, 3]),
    takes_onednn=st.booleans(),
)
def test_outputs_and_gradients_equal_those_of_the_modules(
    rows: int, sizes: list[int], norm: bool, members: int | None, takes_onednn: bool
):
    # Of a single number a normalization makes zero, and its gradient is rounding
    # Normalizing a few numbers that are nearly the same makes much of rounding
    sizes = [sizes[0], *(max(size, 40 if norm else 1) for size in sizes[1:-1]), sizes[-1]]
    mlp = make_mlp(sizes, norm, members)
    assert members_of(mlp, members) is not None
    exact = copy.deepcopy(mlp).double()
    assert members_of(exact, members) is None
    inputs = th.randn(rows, sizes[0], requires_grad=True)
    exact_inputs = inputs.detach().double().requires_grad_()
    expected = exact(exact_inputs)
    weights = th.randn(expected.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_kernels, "ONEDNN_IS_FASTER", takes_onednn and cpu_kernels.HAS_ONEDNN)
        with th.no_grad():
            assert_close([mlp(inputs)], [expected])
        outputs = mlp(inputs)
        got = gradients(outputs, weights, mlp, inputs)
    assert_close([outputs], [expected])
    assert_close(got, gradients(expected, weights.double(), exact, exact_inputs), rows)


def in_bfloat16(mlp: MLP, evaluate: Callable[[th.Tensor], th.Tensor], inputs: th.Tensor, weights: th.Tensor):
    with th.autocast("cpu", th.bfloat16, cache_enabled=False):
        outputs = evaluate(inputs)
        return [outputs.float(), *gradients(outputs, weights, mlp, inputs)]


@settings(max_examples=30)
@given(
    rows=st.sampled_from([1, 16, 100]),
    sizes=st.lists(st.sampled_from([3, 40, 70]), min_size=2, max_size=5),
    norm=st.booleans(),
    members=st.sampled_from([None, 3]),
    has_bfloat16=st.booleans(),
)
def test_bfloat16_is_as_exact_as_the_modules_in_it(
    rows: int, sizes: list[int], norm: bool, members: int | None, has_bfloat16: bool
):
    mlp = make_mlp([sizes[0], *(max(size, 40) for size in sizes[1:-1]), sizes[-1]], norm, members)
    inputs = th.randn(rows, sizes[0], requires_grad=True)
    exact = plain(mlp, inputs)
    weights = th.randn(exact.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_kernels, "HAS_BFLOAT16", has_bfloat16 and cpu_kernels.HAS_BFLOAT16)
        results = in_bfloat16(mlp, mlp, inputs, weights)
        with th.no_grad(), th.autocast("cpu", th.bfloat16):
            without_gradient = mlp(inputs)
    of_modules = in_bfloat16(mlp, partial(plain, mlp), inputs, weights)
    for got, other, expected in zip(
        [without_gradient, *results],
        of_modules[:1] + of_modules,
        [exact, exact, *gradients(exact, weights, mlp, inputs)],
        strict=True,
    ):
        assert got.dtype == th.float32
        # 2^-8 is the step of bfloat16
        assert (got - expected).norm() <= 2 * (other - expected).norm() + 2**-8 * expected.norm()


def test_the_slope_in_bfloat16_is_that_of_gelu():
    h = th.linspace(-12, 12, 2000).bfloat16().view(4, -1)
    exact = h.double().requires_grad_()
    value = nn.functional.gelu(exact, approximate="tanh")
    (slope,) = th.autograd.grad(value.sum(), exact)
    got_value, got_slope = cpu_kernels.gelu_and_slope(h)
    th.testing.assert_close(got_value.double(), value, rtol=2**-8, atol=1e-6)
    th.testing.assert_close(got_slope.double(), slope, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("members", [None, 2])
def test_any_number_of_leading_axes(members: int | None):
    mlp = make_mlp([4, 8, 3], members=members)
    inputs = th.randn(5, 2, 6, 4)
    expected = plain(mlp, inputs)
    assert expected.shape == ((5, 2, 6, 3) if members is None else (2, 5, 2, 6, 3))
    th.testing.assert_close(mlp(inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_network_passes_gradients_on_and_takes_none():
    mlp = make_mlp([4, 8, 1], members=3)
    inputs = th.randn(20, 4, requires_grad=True)
    with frozen(mlp):
        mlp(inputs).sum().backward()
    assert all(parameter.grad is None for parameter in mlp.parameters())
    expected = th.autograd.grad(plain(mlp, inputs).sum(), inputs)[0]
    th.testing.assert_close(inputs.grad, expected, rtol=1e-4, atol=1e-5)
    # and inputs without gradient cost none
    mlp(inputs.detach()).sum().backward()
    assert all(parameter.grad is not None for parameter in mlp.parameters())


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)],
        [nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)],
        [nn.Linear(4, 8), TanhGELU(), nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 2)],
        [nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), TanhGELU(), nn.Linear(8, 2)],
        [nn.Linear(4, 8), TanhGELU()],
        [nn.Linear(4, 8), nn.Linear(8, 2)],
        [nn.Linear(4, 8, bias=False), TanhGELU(), nn.Linear(8, 2)],
        [nn.Linear(4, 8), TanhGELU(), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 2)],
    ],
)
def test_other_layers_are_evaluated_one_after_the_other(layers: list[nn.Module]):
    mlp = MLP(*layers).eval()
    assert members_of(mlp) is None
    inputs = th.randn(6, 4)
    th.testing.assert_close(mlp(inputs), nn.Sequential(*layers)(inputs))


@pytest.mark.parametrize("norm", [False, True])
def test_the_adjoint_is_that_of_autograd(norm: bool):
    mlp, features = make_mlp([9, 32, 32, 3], norm), th.randn(20, 5)
    path, g_N = th.randn(6, 20, 3), th.randn(20, 3)
    fused = ConditionedVelocity(mlp, features)
    assert kernel_of(fused, path[0]) is not None

    def module_by_module(x: th.Tensor, t: float) -> th.Tensor:
        return plain(mlp, th.cat([features, x, th.full((len(x), 1), t)], dim=1))

    product = vector_jacobian_product(fused, path[0], 0.3, g_N)
    th.testing.assert_close(product, vector_jacobian_product(module_by_module, path[0], 0.3, g_N), rtol=1e-4, atol=1e-5)
    with th.no_grad():
        th.testing.assert_close(fused(path[0], 0.3), module_by_module(path[0], 0.3), rtol=1e-4, atol=1e-5)
        got, expected = (lean_adjoint(velocity, path[:-1], g_N) for velocity in (fused, module_by_module))
    th.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_what_was_recorded_has_the_gradients_of_evaluating_it_again(norm: bool):
    mlp = make_mlp([9, 32, 32, 3], norm)
    features = th.randn(20, 5, requires_grad=True)
    velocity = ConditionedVelocity(mlp, features)
    recorded, again = recorder(velocity, th.randn(20, 3)), Recorder(velocity)
    assert isinstance(recorded, RecordingKernel)
    for k in range(4):
        x = th.randn(20, 3)
        given = recorded(x, k / 4)
        assert not given.requires_grad
        th.testing.assert_close(given, again(x, k / 4))
    weights = th.randn(4, 20, 3)
    results = []
    for each in (recorded, again):
        velocities = each.velocities()
        results.append([velocities, *gradients(velocities, weights, mlp, features)])
    for got, expected in zip(*results, strict=True):
        th.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_whole_run_is_the_same_up_to_rounding(pendulum_dataset):
    models = []
    for is_fused in (True, False):
        model = QAM("FlowPolicy", offline_dataset=pendulum_dataset, seed=0, device="cpu", batch_size=32)
        with nullcontext() if is_fused else disabled():
            models.append(model.pretrain(gradient_steps=5))
    for got, expected in zip(*(model.policy.parameters() for model in models), strict=True):
        th.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
