"""Convolutions that compute in single precision inside a network that computes in bfloat16 on a CPU.

PyTorch's library of convolutions for CPUs (oneDNN) has two weaknesses there, both of gradients:

- *Depthwise kernels* above 3 × 3 and those with a stride are fast in single precision alone. They are a few per cent of
  a network's operations, and were three quarters of the time of its step (EfficientNet-Lite0 at 128 pixels).
- *Kernels that reach beyond a small input*: where a row or column of a kernel sees padding alone, its gradient is zero,
  and may be left as whatever the memory held before, NaN included (a last stage of 1 × 1, images of 16 pixels).
"""

from __future__ import annotations

import torch
from torch import nn


class _SinglePrecision(nn.Conv2d):
    """Put before a class of convolutions: where it needs that, forward pass and gradients in float32 under autocast."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(images)
        if not is_slow(self) and all_reached(self, images.shape):
            return super().forward(images)
        with torch.autocast("cpu", enabled=False):
            return super().forward(images.float()).to(torch.get_autocast_dtype("cpu"))


def is_slow(convolution: nn.Conv2d) -> bool:
    """Whether a convolution is depthwise, with gradients that are slow in bfloat16 on CPUs."""
    if not 1 < convolution.groups == convolution.in_channels:
        return False
    return max(convolution.kernel_size) > 3 or max(convolution.stride) > 1


def all_reached(convolution: nn.Conv2d, shape: torch.Size) -> bool:
    """Whether every row and column of the kernel meets a pixel of images of `shape` (..., H, W), not padding alone.

    >>> narrow = nn.Conv2d(3, 3, 3, stride=2, padding=1)
    >>> all_reached(narrow, torch.Size([3, 4, 4])), all_reached(narrow, torch.Size([3, 1, 1]))
    (True, False)
    """
    if isinstance(convolution.padding, str):  # "valid" has none, "same" a stride of 1: half of the kernel on each side
        same = convolution.padding == "same"
        padding = [dilation * (size - 1) // 2 if same else 0 for size, dilation in _sizes(convolution)]
    else:
        padding = list(convolution.padding)
    for (size, dilation), around, step, extent in zip(
        _sizes(convolution), padding, convolution.stride, shape[-2:], strict=True
    ):
        last = extent + 2 * around - dilation * (size - 1) - 1  # furthest place of the kernel's first row
        for tap in range(size):
            places = range(tap * dilation - around, tap * dilation - around + last + 1, step)
            if not any(0 <= place < extent for place in places):
                return False
    return True


def _sizes(convolution: nn.Conv2d) -> list[tuple[int, int]]:
    return list(zip(convolution.kernel_size, convolution.dilation, strict=True))


def in_single_precision_where_needed(network: nn.Module) -> None:
    """Let the convolutions of `network` compute in float32 under a CPU's autocast where bfloat16 is slow or wrong.

    Names and values of weights stay what they are; without autocast, and on other devices, nothing changes.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            kind = type(module)
            module.__class__ = type(kind.__name__, (_SinglePrecision, kind), {"__module__": __name__})
