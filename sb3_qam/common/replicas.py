"""One training run in several processes, each with a device of its own: data parallelism by torch.distributed.

All processes hold the same parameters, the same data and the same random numbers. They draw the same batch, each takes
its own rows of it, and the gradients are averaged before the optimizer's step. So an update is that of one process on
the whole batch, to float32 rounding, however many processes there are.
"""

import atexit
import functools
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch as th
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# The first process evaluates and saves while the others wait for it
PATIENCE = timedelta(days=7)
# Number of the process that has joined
JOINED_BY = "SB3_QAM_JOINED_BY"


class HasRows(Protocol):
    """What can be divided among processes."""

    def rows(self: "SelfHasRows", rows: slice) -> "SelfHasRows":
        """
        :param rows: Which rows to take
        :return: These
        """


SelfHasRows = TypeVar("SelfHasRows", bound=HasRows)
FirstPart = TypeVar("FirstPart", bound=HasRows)
SecondPart = TypeVar("SecondPart", bound=HasRows)


class Replicas:
    """
    The processes of a run, as one of them sees them: here, a single one, which has nobody to share with.
    """

    rank = 0
    n_processes = 1

    @property
    def is_first(self) -> bool:
        """
        Whether this process has the callbacks, the log and the files.
        """
        return self.rank == 0

    def own_rows(self, batch_size: int) -> slice:
        """
        :param batch_size: Number of rows of the whole batch
        :return: Which of them are this process's own
        :raises ValueError: if they cannot be divided evenly
        """
        n_rows, rest = divmod(batch_size, self.n_processes)
        if rest > 0:
            raise ValueError(
                f"batch_size={batch_size} cannot be divided among {self.n_processes} processes: use a multiple of "
                f"{self.n_processes}, such as {(n_rows + 1) * self.n_processes}."
            )
        return slice(self.rank * n_rows, (self.rank + 1) * n_rows)

    def share(self, batch_size: int, batch: FirstPart, noise: SecondPart) -> tuple[FirstPart, SecondPart]:
        """
        :param batch_size: Number of rows of the whole batch
        :param batch: The whole batch
        :param noise: The noise of its update
        :return: What of both is this process's own
        :raises ValueError: as :meth:`own_rows`
        """
        return batch, noise

    def check(self, policy: nn.Module) -> None:
        """
        :param policy: All networks
        :raises ValueError: if what they give for a row depends on the other rows of the batch
        """

    def align(self, tensors: Iterable[th.Tensor], state: Any, progress: dict[str, int]) -> Any:
        """
        Begin from what the first process has.

        :param tensors: Are overwritten
        :param state: Anything
        :param progress: How far training has come
        :return: The first process's own state
        :raises ValueError: if the processes have not come equally far, in all of them
        """
        return state

    def average(self, parameters: Iterable[nn.Parameter], values: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        Average over the processes, in one exchange.

        :param parameters: Their gradients are replaced by the averages, where there are any
        :param values: Scalars by name
        :return: Their averages
        """
        return values

    def agree(self, decide: Callable[[], bool], aside: Callable[[], AbstractContextManager[None]]) -> bool:
        """
        :param decide: Is called in the first process alone
        :param aside: Makes what to be in meanwhile, if what is done there must not reach the others
        :return: What it says there
        """
        return decide()


class ProcessGroup(Replicas):
    """
    The processes of torch.distributed's default group.
    """

    def __init__(self) -> None:
        self.rank, self.n_processes = dist.get_rank(), dist.get_world_size()
        # Between CPUs: to read a decision from a GPU would make every update wait for it
        self._control: dist.ProcessGroup | None = dist.new_group(backend="gloo", timeout=PATIENCE)
        atexit.register(self._leave)

    def _leave(self) -> None:
        """
        The threads of a group that is still there when the interpreter ends may abort the process.
        """
        self._control = None
        if JOINED_BY in os.environ and dist.is_initialized():
            dist.destroy_process_group()

    def share(self, batch_size: int, batch: FirstPart, noise: SecondPart) -> tuple[FirstPart, SecondPart]:
        rows = self.own_rows(batch_size)
        return batch.rows(rows), noise.rows(rows)

    def check(self, policy: nn.Module) -> None:
        for name, module in policy.named_modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                raise ValueError(
                    f"{name} is a {type(module).__name__}, whose statistics each of {self.n_processes} processes would "
                    "take from its own part of the batch: use layer or group normalization, or one process."
                )

    def align(self, tensors: Iterable[th.Tensor], state: Any, progress: dict[str, int]) -> Any:
        everybodys: list[Any] = [None] * self.n_processes
        # First what waits with patience
        dist.all_gather_object(everybodys, (progress, state), group=self._control)
        if any(each != progress for each, _ in everybodys):
            raise ValueError(
                f"The {self.n_processes} processes of this run have not come equally far "
                f"({', '.join(str(each) for each, _ in everybodys)}): after online learning, which is that of the "
                "first one alone, save the model and start anew from its file."
            )
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
        return everybodys[0][1]

    @th.no_grad()
    def average(self, parameters: Iterable[nn.Parameter], values: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        everything = [*gradients, *values.values()]
        flat = th.cat([each.detach().reshape(-1) for each in everything])
        dist.all_reduce(flat)
        flat /= self.n_processes
        parts = flat.split([each.numel() for each in everything])
        for gradient, part in zip(gradients, parts, strict=False):
            gradient.copy_(part.view_as(gradient))
        return {name: part.view(()) for name, part in zip(values, parts[len(gradients) :], strict=True)}

    def agree(self, decide: Callable[[], bool], aside: Callable[[], AbstractContextManager[None]]) -> bool:
        decision = th.zeros((), dtype=th.uint8)
        if self.is_first:
            with aside():
                decision.fill_(decide())
        dist.broadcast(decision, src=0, group=self._control)
        return bool(decision)


def find_replicas() -> Replicas:
    """
    The processes that ``torchrun`` has started together, or that have joined each other by
    ``torch.distributed.init_process_group()``. ``torchrun``'s are joined here, and each takes the GPU of its number on
    its machine, if there are as many.

    :return: The processes of the run that this one belongs to
    """
    # A process that one of torchrun's has started has its variables, and is none of them
    if dist.is_available() and os.environ.get(JOINED_BY, str(os.getpid())) == str(os.getpid()):
        if dist.is_torchelastic_launched() and not dist.is_initialized() and int(os.environ["WORLD_SIZE"]) > 1:
            _join()
        if dist.is_initialized() and dist.get_world_size() > 1:
            return _process_group(dist.group.WORLD)
    return Replicas()


@functools.cache
def _process_group(group: dist.ProcessGroup) -> ProcessGroup:
    """
    One object for all models: making it takes all processes, and making or loading a model must not.
    """
    return ProcessGroup()


def _join() -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank < th.cuda.device_count():
        # What "cuda" and "auto" then mean
        th.cuda.set_device(local_rank)
    os.environ[JOINED_BY] = str(os.getpid())
    dist.init_process_group("cpu:gloo,cuda:nccl" if th.cuda.is_available() else "gloo")
