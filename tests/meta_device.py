"""A device that is not the CPU, without a GPU.

torch's meta device computes shapes only, and refuses tensors of another device as a GPU does. What a program asks a
device's values for (a loss, a tensor back on the CPU) is answered in its place.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch


def _on_the_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Ascending numbers; of integers, which may be places in a table, zeros."""
    if not tensor.dtype.is_floating_point:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.ones(tensor.shape).cumsum(0).to(tensor.dtype)


def answer_for_meta_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers where a meta tensor has none; autocast, which knows no meta device, does nothing."""
    answers = {
        "item": lambda tensor: 1.0,
        "tolist": lambda tensor: [1.0] * tensor.numel(),
        "cpu": _on_the_cpu,
        "numpy": lambda tensor: np.ones(tensor.shape),
        "__bool__": lambda tensor: True,
        "__float__": lambda tensor: 1.0,
    }
    kept = {name: getattr(torch.Tensor, name) for name in answers}
    for name, answer in answers.items():
        monkeypatch.setattr(
            torch.Tensor, name,
            lambda tensor, *args, name=name, answer=answer, **options: (
                answer(tensor) if tensor.is_meta else kept[name](tensor, *args, **options)
            ),
        )  # fmt: skip
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
