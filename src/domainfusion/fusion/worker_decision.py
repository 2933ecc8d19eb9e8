"""Whether a run has a worker that makes candidates beside training (`ahead`), where, and with how many threads."""

from __future__ import annotations

import dataclasses
import os

import torch

from domainfusion.devices import device_named
from domainfusion.errors import UsageError

# Share of coming candidates below which the threads that training lends cost more than a worker on the CPU saves.
FEW = 0.2


@dataclasses.dataclass(frozen=True)
class Situation:
    """What decides whether there is a worker, and where."""

    mode: str  # --generate.worker
    updating: bool
    device: torch.device  # of training
    wanted_device: str  # --generate.worker-device
    gpus: int
    threads: int  # that training computes with on the CPU
    missing: int  # coming generations of whose candidates the cache lacks any
    ahead: int  # how many of these are due later than now
    lacking: float = 1.0  # which share of the candidates of these is missing
    processes: int = 1  # that train together on this machine
    first: bool = True  # whether this is the first of them
    began: int | None = None  # threads that a resumed run left to its worker (None: a new run)


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether there is a worker (`device`), the threads left to it until the last generation, and why, for people."""

    device: str | None
    threads: int
    reason: str = ""


def decide(now: Situation) -> Decision:
    """The worker of a run, or none and the reason; an empty reason where there is nothing to tell.

    A run that began with training's threads shared keeps them so, whether or not there is still work for a worker.
    """
    half = max(1, now.threads // 2)
    kept = min(now.began or 0, now.threads - 1)
    if now.mode == "off" or not now.first:
        return Decision(None, kept)
    reason = _against(now)
    if reason:
        return Decision(None, kept, reason)
    return Decision(_device(now), kept or half)


def _against(now: Situation) -> str:
    """What speaks against a worker, if anything."""
    if now.updating:
        return "with --generate.updating a generation starts from what training chose of the one before"
    if not now.missing:
        return "those of all coming generations are in the cache"
    if now.mode == "on":
        return ""
    if not now.ahead:
        return "no generation is due later than the one to be made now"
    if now.device.type == "cuda":
        return "" if now.wanted_device != "auto" or _spare_gpu(now) is not None else "there is no second GPU"
    if now.device.type != "cpu":
        return f"there is one {now.device.type} device"
    if now.processes > 1:
        return "processes that train together make them together"
    if now.began == 0:
        return "the run began without a worker, and training keeps its threads"
    if now.began is None and now.lacking < FEW:
        return "nearly all of coming generations' candidates are in the cache"
    return "" if now.threads > 1 else "training has one thread, and none to share (OMP_NUM_THREADS)"


def _spare_gpu(now: Situation) -> str | None:
    """The first GPU that training leaves free."""
    taken = range(now.processes) if now.processes > 1 else [now.device.index or 0]
    return next((f"cuda:{i}" for i in range(now.gpus) if i not in taken), None)


def _device(now: Situation) -> str:
    if now.wanted_device != "auto":
        return now.wanted_device
    return (_spare_gpu(now) if now.device.type == "cuda" else None) or str(now.device)


def check_device(name: str) -> None:
    """Raise `UsageError` where no worker could run on the device called `name`."""
    if name == "auto":
        return
    try:
        device = device_named(name)
    except UsageError as error:
        raise UsageError(f"--generate.worker-device {name}: {error}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--generate.worker-device {name}: there are {torch.cuda.device_count()} GPUs here; give another, or auto"
        )


def threads_to_share() -> int:
    """Threads that torch computes with on the CPU, as far as this process has cores for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(torch.get_num_threads(), cores)


def local_processes(count: int) -> int:
    """How many of `count` processes that train together are on this machine, as their launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count)) if count > 1 else 1
