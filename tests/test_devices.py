"""Devices: the type that each computes in."""

from __future__ import annotations

import torch

from domainfusion.devices import choose_dtype


def test_choose_dtype() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert choose_dtype("float16", cpu) == torch.float16
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
