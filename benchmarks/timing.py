"""Fair timing: both sides alternate, so that whatever else the machine does falls on both; medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from domainfusion.devices import choose_device


def device() -> torch.device:
    """Where rows are measured: the first GPU, or the CPU (`CUDA_VISIBLE_DEVICES=` hides GPUs)."""
    return choose_device("auto")


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object]) -> float:
    """Wall seconds of one call, what it gives a GPU to do included."""
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of both sides, measured in turn, and the quartiles of the ratio theirs/ours of each turn."""
    for _ in range(warm_up):
        ours()
        theirs()
    pairs = [(seconds_of(ours), seconds_of(theirs)) for _ in range(repeats)]
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "theirs": statistics.median(b for _, b in pairs),
        "speedup": statistics.median(ratios),
        "low": ratios[len(ratios) // 4],
        "high": ratios[-1 - len(ratios) // 4],
    }


def row(
    name: str, what: str, against: str, *, ratio: float, target: str, reached: bool, ours: float, theirs: float,
    unit: str, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """One row of the table. `target` is what the ratio should reach, in words; `reached` whether it does."""
    return {"row": name, "what": what, "against": against, "ratio": ratio, "target": target, "reached": reached,
            "ours": ours, "theirs": theirs, "unit": unit, **more}  # fmt: skip
