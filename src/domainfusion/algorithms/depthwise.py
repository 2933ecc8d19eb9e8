"""Depthwise convolutions in single precision, inside a network that computes in bfloat16 on a CPU.

PyTorch's library of convolutions for CPUs (oneDNN) has fast gradients in single precision alone for depthwise kernels
above 3 × 3 and for those with a stride. They are a few per cent of a network's operations, and were three quarters of
the time of its training step in bfloat16 (EfficientNet-Lite0 at 128 pixels).
"""

from __future__ import annotations

import torch
from torch import nn


class _SinglePrecision(nn.Conv2d):
    """Put before a class of convolutions: its forward pass and gradients in float32 under autocast on a CPU."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(images)
        with torch.autocast("cpu", enabled=False):
            return super().forward(images.float()).to(torch.get_autocast_dtype("cpu"))


def _in_single_precision(convolution: type[nn.Conv2d]) -> type[nn.Conv2d]:
    return type(convolution.__name__, (_SinglePrecision, convolution), {"__module__": __name__})


def is_slow(module: nn.Module) -> bool:
    """Whether `module` is a depthwise convolution whose gradients are slow in bfloat16 on CPUs."""
    if not isinstance(module, nn.Conv2d) or not 1 < module.groups == module.in_channels:
        return False
    return max(module.kernel_size) > 3 or max(module.stride) > 1


def speed_up_depthwise(network: nn.Module) -> None:
    """Let the depthwise convolutions of `network` that are slow in bfloat16 compute in float32 under a CPU's autocast.

    Names and values of weights stay what they are; without autocast, and on other devices, nothing changes.
    """
    for module in list(network.modules()):
        if is_slow(module):
            assert isinstance(module, nn.Conv2d)
            module.__class__ = _in_single_precision(type(module))
