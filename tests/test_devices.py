"""Devices: the type that each computes in."""

from __future__ import annotations

import pytest
import torch

from domainfusion.devices import choose_device, choose_dtype
from domainfusion.errors import UsageError


def test_choose_dtype() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert choose_dtype("float16", cpu) == torch.float16
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpu", "; did you mean 'cuda'?"),
        ("GPU:1", "; did you mean 'cuda:1'?"),
        ("cdua", "; did you mean 'cuda'?"),
        ("other", "."),
        ("", "."),
    ],
)
def test_an_unknown_device_is_told_the_ones_of_the_help(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(name)
    assert str(caught.value) == f"unknown device {name!r}{hint} Known: auto, cpu, cuda, cuda:1, mps"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")
def test_a_device_that_is_not_here_is_told_in_plain_words() -> None:
    with pytest.raises(UsageError) as caught:
        choose_device("mps")
    assert str(caught.value) == "--device mps is not available here: PyTorch finds no Apple GPU"
