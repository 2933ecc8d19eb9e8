"""Which device computes, and in which floating-point type."""

from __future__ import annotations

import os
import re

import torch

from domainfusion.config import Precision
from domainfusion.errors import UsageError, unknown_name

DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")  # what messages name; torch knows rarer ones


def device_named(name: str) -> torch.device:
    """The device called `name`, be it here or not. Raises `UsageError` where nothing is called so."""
    try:
        return torch.device(name)
    except RuntimeError:
        if re.fullmatch(r"gpu(:\d+)?", name.lower()):
            meant = name.lower().replace("gpu", "cuda")
            raise UsageError(f"unknown device {name!r}; did you mean {meant!r}? Known: {', '.join(DEVICES)}") from None
        raise unknown_name("device", name, DEVICES) from None


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first GPU, or the CPU. Raises `UsageError` where it is not there."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        rank = os.environ.get("LOCAL_RANK")  # of processes that train together
        return torch.device("cuda") if rank is None else torch.device("cuda", int(rank))
    device = device_named(name)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = "PyTorch finds no Apple GPU" if device.type == "mps" else str(error).splitlines()[0]
        raise UsageError(f"--device {name} is not available here: {reason}") from error
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The floating-point type for `precision` on `device`: `auto` is bfloat16 where the hardware computes in it."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)  # GPUs before Ampere emulate it, slowly
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bfloat16() -> bool:
    capability = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", None),
        getattr(torch.cpu, "_is_amx_tile_supported", None),
    )
    return any(check is not None and bool(check()) for check in capability)
