"""Updates as CUDA graphs: what a GPU is to do is recorded once, and then submitted as one piece.

An update of QAM is some thousand small kernels, and submitting them one by one takes longer than they run.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from types import NoneType
from typing import Any

import torch as th
from torch.utils import _pytree as pytree

from sb3_qam.common.update_monitor import UpdateMonitor

# Counters of SB3, which no update depends on; those of this package are private
COUNTERS = ("num_timesteps", "start_time")
# Ordinary updates before one is recorded: libraries set up what they need, and the optimizer its moments
N_WARM_UPS = 3
# Each has memory of its own
MAX_GRAPHS = 8


def constants_of(*objects: object) -> Hashable:
    """
    What a recorded update would keep as it is: every number, text, switch and ``None`` among the public attributes of
    the algorithm (its hyper-parameters, and what a subclass adds to them) and of whatever else the update reads.

    :param objects: The algorithm, and its policy for instance
    :return: Their names and values, to compare with those of another update
    """
    return tuple(
        (name, value)
        for each in objects
        for name, value in vars(each).items()
        if isinstance(value, (bool, int, float, str, NoneType)) and name[0] != "_" and name not in COUNTERS
    )


class CudaGraph:
    """
    Operations of a GPU that are recorded and replayed, at the same places in memory.

    :param device: The GPU, which need not be the one in use
    """

    def __init__(self, device: th.device) -> None:
        self.device = device
        with th.cuda.device(device):
            self._graph = th.cuda.CUDAGraph()

    def capture(self, function: Callable[[], None]) -> None:
        """:param function: Its operations are recorded, and not carried out"""
        with th.cuda.device(self.device), th.cuda.graph(self._graph, stream=th.cuda.Stream(self.device)):
            function()

    def replay(self) -> None:
        """Carry them out."""
        self._graph.replay()


class CapturedUpdate:
    """
    One update, for inputs of the same shapes.

    :param graph: An empty graph
    :param update: The update, a function of tensors that reads none of them back
    :param inputs: Tensors of the shapes to come
    :param optimizer: Makes the update's step
    :param monitor: To which the update reports
    """

    def __init__(
        self,
        graph: CudaGraph,
        update: Callable[..., None],
        inputs: tuple[Any, ...],
        optimizer: th.optim.Optimizer,
        monitor: UpdateMonitor,
    ) -> None:
        self._graph, self._optimizer, self._monitor = graph, optimizer, monitor
        self._inputs = pytree.tree_map_only(th.Tensor, th.clone, inputs)
        device = optimizer.param_groups[0]["params"][0].device
        # A number would be recorded as it is now
        self._learning_rates = [th.zeros((), device=device) for _ in optimizer.param_groups]
        learning_rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.zero_grad()
        with monitor.hold() as self._reported:
            try:
                for group, learning_rate in zip(optimizer.param_groups, self._learning_rates, strict=True):
                    group["lr"] = learning_rate
                graph.capture(lambda: update(*self._inputs))
            finally:
                for group, number in zip(optimizer.param_groups, learning_rates, strict=True):
                    group["lr"] = number

    def __call__(self, number: int, inputs: tuple[Any, ...]) -> None:
        """
        :param number: Number of the update
        :param inputs: Its inputs
        """
        for place, value in zip(pytree.tree_leaves(self._inputs), pytree.tree_leaves(inputs), strict=True):
            if isinstance(place, th.Tensor):
                place.copy_(value)
        for place, group in zip(self._learning_rates, self._optimizer.param_groups, strict=True):
            place.fill_(group["lr"])
        self._graph.replay()
        self._monitor.add(number, self._reported)


class GraphedUpdates:
    """
    Carries out updates as graphs, and records again what has become another update: for other shapes, other
    hyper-parameters, or parameters and moments that lie elsewhere.

    :param optimizer: Makes the step of each update
    :param monitor: To which updates report
    :param make_graph: Makes an empty graph
    :raises ValueError: if the optimizer cannot be recorded
    """

    def __init__(
        self,
        optimizer: th.optim.Optimizer,
        monitor: UpdateMonitor,
        make_graph: Callable[[th.device], CudaGraph] = CudaGraph,
    ) -> None:
        for group in optimizer.param_groups:
            if "capturable" not in group:
                raise ValueError(
                    f"cuda_graph=True: {type(optimizer).__name__} cannot be part of a CUDA graph. Use an optimizer of "
                    "PyTorch with the argument `capturable`, such as Adam, or cuda_graph=False."
                )
        self._optimizer, self._monitor, self._make_graph = optimizer, monitor, make_graph
        self._device = optimizer.param_groups[0]["params"][0].device
        self._captured: dict[Hashable, CapturedUpdate] = {}
        self._state: tuple[Any, ...] = ()
        self._n_warm_ups: Counter[Hashable] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        # Of a model that is sent to another process, where they are recorded again
        return {**vars(self), "_captured": {}, "_n_warm_ups": Counter()}

    def __call__(self, number: int, update: Callable[..., None], constants: Hashable, *inputs: Any) -> None:
        """
        :param number: Number of the update
        :param update: The update
        :param constants: What it depends on beside its inputs, parameters and learning rates: :func:`constants_of`
            the algorithm, and what else chooses between updates
        :param inputs: Its tensors
        """
        state = self._state_of_optimizer()
        if state != self._state or len(self._n_warm_ups) > MAX_GRAPHS:
            self._captured.clear()
            self._make_capturable()
            self._n_warm_ups.clear()
            self._state = self._state_of_optimizer()
        shapes = tuple(leaf.shape for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, th.Tensor))
        key = (constants, shapes)
        if self._n_warm_ups[key] < N_WARM_UPS:
            self._n_warm_ups[key] += 1
            update(*inputs)
            return
        if key not in self._captured:
            self._captured[key] = CapturedUpdate(
                self._make_graph(self._device), update, inputs, self._optimizer, self._monitor
            )
        self._captured[key](number, inputs)

    def _make_capturable(self) -> None:
        """Also an optimizer that was loaded: the number of its steps is to be counted on the device."""
        for group in self._optimizer.param_groups:
            group["capturable"] = True
            for parameter in group["params"]:
                state = self._optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = state["step"].to(parameter.device)

    def _state_of_optimizer(self) -> tuple[Any, ...]:
        """:return: Its settings but for the learning rates, what is trained, and where parameters and moments lie"""
        groups = self._optimizer.param_groups
        settings = [
            str(sorted((key, value) for key, value in group.items() if key not in ("params", "lr"))) for group in groups
        ]
        return (
            *settings,
            *(
                (parameter.requires_grad, tensor.data_ptr())
                for group in groups
                for parameter in group["params"]
                for tensor in (parameter, *self._optimizer.state.get(parameter, {}).values())
                if isinstance(tensor, th.Tensor)
            ),
        )
