"""Several processes that train one classifier together: `accelerate launch -m domainfusion train ...`, or torchrun.

A step's batch is a function of (seed, step), so every process knows all of it; each computes its share, the same number
of images of every domain, and gradients are averaged over the processes before the optimizer's step, which all of them
take alike. So weights stay equal without ever being sent, evaluations agree without being gathered, and only the first
process writes. What is frozen (an LDM) is no part of this at all.

The average over the processes is the whole batch's mean wherever a loss is a mean over images. BatchNorm normalises by
what it sees: on GPUs its layers are turned into SyncBatchNorm, which sees all; on CPUs each process normalises its own
share (running statistics are averaged), unless `--freeze-bn`.

Where one process runs out of memory, the others wait for it in the next exchange, whichever that is. So every exchange
begins with a meeting, always of the same form, to which a process that failed can come too: the others learn of it
there, as an error of their own, and all of them go back together (`domainfusion.training.accumulation`). What an
exchange needs of memory it takes before the meeting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from domainfusion.errors import UsageError


class OutOfMemoryElsewhere(MemoryError):
    """Another of the processes that train together, `rank`, has run out of memory."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"process {rank}, which trains with this one, says why")
        self.rank = rank


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; one alone needs no other and does nothing here."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def prepare(self, module: nn.Module, *, batch_size: int, swad: bool, freeze_bn: bool, device: torch.device) -> None:
        """Ready a module to be trained by all: on GPUs its BatchNorm layers see the whole batch.

        Raises `UsageError` for options that several processes cannot follow.
        """
        if self.count == 1:
            return
        if batch_size % self.count:
            raise UsageError(
                f"--batch-size {batch_size} cannot be shared out equally to {self.count} processes; give a multiple"
            )
        if swad:
            raise UsageError("--average.method swad measures BatchNorm by one process; train with one, or with ema")
        if device.type == "cuda" and not freeze_bn:
            from timm.layers import convert_sync_batchnorm

            for name, child in module.named_children():
                setattr(module, name, convert_sync_batchnorm(child))

    def share(self, count: int) -> np.ndarray:
        """Where in `count` things this process's lie: every `self.count`-th from its rank on.

        >>> Processes(1, 2).share(5)
        array([1, 3])
        """
        return np.arange(self.rank, count, self.count)

    def weight(self, mine: int, count: int) -> float:
        """Factor that turns this process's mean over `mine` images into its part of the mean over all `count`.

        The processes' results are averaged, so Σ_r weight_r · mean_r / R is the mean over all of them.
        """
        return mine * self.count / count

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes (one message for all of them)."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._average([gradient for gradient in gradients if gradient is not None])

    def average_buffers(self, module: nn.Module) -> None:
        """Replace floating-point buffers (BatchNorm's running statistics) by their mean over the processes."""
        if self.count > 1:
            self._average([buffer for buffer in module.buffers() if buffer.is_floating_point()])

    def _average(self, tensors: list[torch.Tensor]) -> None:
        if not tensors:
            return
        whole = torch.cat([tensor.flatten().float() for tensor in tensors])
        self.meet(whole.device)
        torch.distributed.all_reduce(whole)
        whole /= self.count
        for tensor, part in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor's mean over the processes, without gradient; itself where there is one."""
        if self.count == 1:
            return tensor
        found = tensor.detach().clone()
        self._average([found])
        return found

    def any(self, value: bool, device: torch.device) -> bool:
        """Whether `value` is true in one process at least; all of them get the same answer."""
        return bool(self.most(float(value), device))

    def most(self, value: float, device: torch.device) -> float:
        """The largest of the processes' values."""
        return value if self.count == 1 else self._meet(value, device)

    def meet(self, device: torch.device) -> None:
        """Go on when every process has come here. Raises `OutOfMemoryElsewhere` where one came by `say_out_of_memory`.

        So do all other methods that take values of all processes; `wait` alone knows of none.
        """
        if self.count > 1:
            self._meet(0.0, device)

    def say_out_of_memory(self, device: torch.device) -> None:
        """Come to the meeting that the others wait in, or will, as a process that ran out of memory before it."""
        if self.count > 1:
            self._meet(0.0, device, failed=True)

    def _meet(self, value: float, device: torch.device, *, failed: bool = False) -> float:
        """The largest value; every meeting is this one message."""
        message = torch.tensor([value, self.rank + 1.0 if failed else 0.0], device=device)
        torch.distributed.all_reduce(message, op=torch.distributed.ReduceOp.MAX)
        found, failing = message.tolist()
        if failing and not failed:
            raise OutOfMemoryElsewhere(int(failing) - 1)
        return found

    def mean(self, values: dict[str, float], device: torch.device) -> dict[str, float]:
        """Each value's mean over the processes."""
        if self.count == 1 or not values:
            return values
        found = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float32, device=device)
        self._average([found])
        return dict(zip(sorted(values), found.tolist(), strict=True))

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """A block that the first process goes through while the others wait for it, and then they."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Processes()


@functools.cache
def join_processes() -> Processes:
    """This process's place among those that a launcher (accelerate, torchrun) started; alone without one.

    Raises `UsageError` where the launcher's variables are not complete.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return ALONE
    from accelerate import PartialState

    try:
        # The others wait while the first one makes a generation, however long that takes.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=datetime.timedelta(days=7))
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"WORLD_SIZE is {count}, but the processes cannot be joined ({error}); start them with `accelerate launch` "
            "or torchrun, or unset WORLD_SIZE"
        ) from error
    return Processes(state.process_index, state.num_processes)
