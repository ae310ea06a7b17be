"""Updates that are recorded and replayed are the updates they were recorded from.

Where there is no GPU the recorder is one for a CPU, which does what a CUDA graph does: the same operations again, on
the same memory, without a line of the Python in between.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_qam import QAM
from sb3_qam.common.cuda_graph import GraphedUpdates, constants_of
from sb3_qam.networks.cpu_kernels import disabled
from tests.qam.test_variants import SMALL, VARIANTS

ONLINE: dict[str, Any] = {"env": "Pendulum-v1", "learning_starts": 5, "offline_steps": 6}


class CpuGraph(TorchDispatchMode):
    """
    Records operations. A GPU does not carry them out at first; here what they did is undone.

    :param state: Gives all tensors that an update changes and the next one needs
    """

    def __init__(self, state: Callable[[], list[th.Tensor]]) -> None:
        super().__init__()
        self.state = state
        self.operations: list[tuple[Any, tuple, dict, Any]] = []
        self.n_replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is th.ops.aten._local_scalar_dense.default:
            raise RuntimeError("A value was read back, which waits for a GPU and cannot be recorded.")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            self.operations.append((func, args, kwargs, result))
        return result

    def capture(self, function: Callable[[], None]) -> None:
        before = [tensor.detach().clone() for tensor in self.state()]
        with self:
            function()
        with th.no_grad():
            for tensor, value in zip(self.state(), before, strict=True):
                tensor.copy_(value)

    @th.no_grad()
    def replay(self) -> None:
        self.n_replays += 1
        for func, args, kwargs, recorded in self.operations:
            new = func(*args, **kwargs)
            for place, value in zip(pytree.tree_leaves(recorded), pytree.tree_leaves(new), strict=True):
                if isinstance(place, th.Tensor) and place is not value:
                    place.copy_(value)


def make_model(dataset: Any, **kwargs: Any) -> QAM:
    return QAM("FlowPolicy", offline_dataset=dataset, **{"device": "cpu", **SMALL, **kwargs})


def graph_on_cpu(model: QAM) -> list[CpuGraph]:
    """
    :return: Takes the graphs that the model makes
    """

    def state() -> list[th.Tensor]:
        moments = [tensor for each in model.policy.optimizer.state.values() for tensor in each.values()]
        return [
            *model.policy.state_dict().values(),
            *moments,
            model.kl_lambda,
            model.kl_average,
        ]

    graphs: list[CpuGraph] = []

    def make_graph(device: th.device) -> CpuGraph:
        graphs.append(CpuGraph(state))
        return graphs[-1]

    model._graphed_updates = GraphedUpdates(model.policy.optimizer, model._monitor, make_graph)
    return graphs


def assert_same(graphed: QAM, ordinary: QAM) -> None:
    assert graphed._n_updates == ordinary._n_updates
    # Adam multiplies in another order where the learning rate is a tensor
    close = {"rtol": 1e-5, "atol": 1e-6}
    th.testing.assert_close(graphed.policy.state_dict(), ordinary.policy.state_dict(), **close)
    th.testing.assert_close(graphed.kl_lambda, ordinary.kl_lambda, **close)
    means, expected = (model._monitor.read_means() for model in (graphed, ordinary))
    assert means == pytest.approx(expected, rel=1e-4)


@pytest.fixture(autouse=True)
def module_by_module():
    """As networks are evaluated on a GPU."""
    with disabled():
        yield


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_recorded_updates_equal_ordinary_ones(variant: dict, pendulum_dataset):
    def run(model: QAM) -> QAM:
        # To compare what the updates reported
        model._dump_logs = lambda: None  # type: ignore[method-assign]
        return model.pretrain(gradient_steps=7, log_interval=1000)

    arguments = {"learning_rate": lambda remaining: 1e-3 * remaining, **variant}
    graphed = make_model(pendulum_dataset, **arguments)
    graphs = graph_on_cpu(graphed)
    run(graphed)
    ordinary = run(make_model(pendulum_dataset, **arguments))
    assert len(graphs) == 1
    assert graphs[0].n_replays >= 3
    assert_same(graphed, ordinary)


def test_what_changes_in_between_is_recorded_again(pendulum_dataset):
    def run(model: QAM) -> QAM:
        model._dump_logs = lambda: None  # type: ignore[method-assign]
        model.pretrain(gradient_steps=10)
        model.inverse_temperature = 0.5
        model.pretrain(gradient_steps=8, reset_num_timesteps=False)
        model.batch_size = 16
        model.pretrain(gradient_steps=8, reset_num_timesteps=False)
        model.set_parameters(copy.deepcopy(model.get_parameters()))
        return model.pretrain(gradient_steps=10, reset_num_timesteps=False)

    graphed = make_model(pendulum_dataset, target_update_interval=2)
    graphs = graph_on_cpu(graphed)
    run(graphed)
    assert_same(graphed, run(make_model(pendulum_dataset, target_update_interval=2)))
    # With and without targets for each: at first, at the other temperature, the other batch size, and after loading
    assert len(graphs) == 8


def test_cloning_and_what_follows_it(pendulum_dataset):
    def run(model: QAM) -> QAM:
        model._dump_logs = lambda: None  # type: ignore[method-assign]
        model.pretrain(gradient_steps=6, objective="bc")
        return model.pretrain(gradient_steps=10, reset_num_timesteps=False)

    graphed = make_model(pendulum_dataset, kl_budget=0.5)
    graphs = graph_on_cpu(graphed)
    run(graphed)
    assert_same(graphed, run(make_model(pendulum_dataset, kl_budget=0.5)))
    assert len(graphs) == 2


@pytest.mark.parametrize("offline_fraction", [None, 0.5])
def test_online_updates_are_recorded_too(offline_fraction: float | None, pendulum_dataset):
    def run(model: QAM) -> QAM:
        model._dump_logs = lambda: None  # type: ignore[method-assign]
        return model.learn(30)

    arguments = {**ONLINE, "offline_fraction": offline_fraction}
    graphed = make_model(pendulum_dataset, **arguments)
    graphs = graph_on_cpu(graphed)
    run(graphed)
    assert len(graphs) == 1
    assert_same(graphed, run(make_model(pendulum_dataset, **arguments)))


def test_a_loss_that_is_not_finite_stops_training(pendulum_dataset):
    model = make_model(pendulum_dataset)
    graph_on_cpu(model)
    model.pretrain(gradient_steps=6)
    with th.no_grad():
        next(model.policy.critic.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"critic_loss.* at update 7\."):
        model.pretrain(gradient_steps=1, reset_num_timesteps=False)


def test_an_optimizer_that_cannot_be_recorded_is_refused(pendulum_dataset):
    model = make_model(pendulum_dataset, policy_kwargs={"optimizer_class": th.optim.SGD})
    with pytest.raises(ValueError, match=r"cuda_graph=True: SGD cannot be part of a CUDA graph"):
        graph_on_cpu(model)


def test_a_solver_that_reads_values_back_is_refused():
    with pytest.raises(ValueError, match=r"cuda_graph=True: ode_method='dopri5' reads values back"):
        QAM("FlowPolicy", "Pendulum-v1", cuda_graph=True, policy_kwargs={"ode_method": "dopri5"})


def test_on_a_cpu_the_argument_does_nothing(pendulum_dataset, tmp_path):
    model = make_model(pendulum_dataset, cuda_graph=True).pretrain(gradient_steps=6)
    model.save(tmp_path / "model")
    loaded = QAM.load(tmp_path / "model", offline_dataset=pendulum_dataset)
    assert loaded.cuda_graph
    assert loaded._graphed_updates is None
    ordinary = make_model(pendulum_dataset).pretrain(gradient_steps=6)
    th.testing.assert_close(loaded.policy.state_dict(), ordinary.policy.state_dict(), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_gpu_learns_the_same_with_graphs_and_without(variant: dict, pendulum_dataset, tmp_path):
    def run(cuda_graph: bool) -> QAM:
        model = make_model(pendulum_dataset, device="cuda", cuda_graph=cuda_graph, **variant)
        model._dump_logs = lambda: None  # type: ignore[method-assign]
        model.pretrain(gradient_steps=12)
        model.save(tmp_path / "model")
        loaded = QAM.load(tmp_path / "model", offline_dataset=pendulum_dataset)
        loaded._dump_logs = lambda: None  # type: ignore[method-assign]
        return loaded.pretrain(gradient_steps=12, reset_num_timesteps=False)

    graphed, ordinary = run(True), run(False)
    close = {"rtol": 1e-3, "atol": 1e-4}
    th.testing.assert_close(graphed.policy.state_dict(), ordinary.policy.state_dict(), **close)


@pytest.mark.gpu
@pytest.mark.parametrize("offline_fraction", [None, 0.5])
def test_a_gpu_learns_online_with_graphs(offline_fraction: float | None, pendulum_dataset):
    arguments = {**ONLINE, "offline_fraction": offline_fraction}
    model = make_model(pendulum_dataset, device="cuda", cuda_graph=True, **arguments).learn(30)
    assert model._n_updates > 20
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


def test_hyper_parameters_are_constants_of_an_update_and_counters_are_not(pendulum_dataset):
    class Own(QAM):
        """A subclass with a number of its own."""

    model = make_model(pendulum_dataset)
    model.__class__ = Own
    model.own_coefficient = 1.0  # type: ignore[attr-defined]
    keys = []
    model.pretrain(gradient_steps=3, callback=lambda *_: keys.append(constants_of(model, model.policy)) is None)
    assert keys[0] == keys[1] == keys[2]
    for name in ("pessimism", "tau", "max_grad_norm", "inverse_temperature", "own_coefficient"):
        setattr(model, name, 0.3)
        keys.append(constants_of(model, model.policy))
    assert len(set(keys)) == 6
    hash(keys[0])
