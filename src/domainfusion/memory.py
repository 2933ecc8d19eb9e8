"""Memory of the machine and its accelerator: what was used, how running out of it shows, and work in smaller parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from domainfusion.errors import show_note

T = TypeVar("T")
# What PyTorch's allocators say where they raise a plain RuntimeError.
SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of its accelerator, did not suffice.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    (True, True)
    >>> is_out_of_memory(RuntimeError("shapes differ"))
    False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def peak_gpu_memory(device: torch.device) -> float:
    """GPU memory in GiB that this process's tensors took at most so far on `device`; 0 where it is no CUDA device.

    >>> peak_gpu_memory(torch.device("cpu"))
    0.0
    """
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def release() -> None:
    """Give back what a failed attempt has left: objects in cycles, and blocks that the allocator keeps."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halve_until_it_fits(work: Callable[[int], T], size: int, what: str) -> tuple[T, int]:
    """What `work(size)` returns, and the size it was done with: halved, and said so, as often as memory runs out.

    Args:
        work: does the same whatever its size, which only says how much of it is done at once.
        what: names the work and its option in the message.

    An error at size 1 is let through.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if size <= 1 or not is_out_of_memory(error):
                raise
        # Outside of `except`, where the error no longer holds on to the frames, and they to their tensors.
        size = size // 2
        release()
        show_note(f"out of memory in {what}: {size} at once from here on")
