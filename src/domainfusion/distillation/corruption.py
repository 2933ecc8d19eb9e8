"""Corruption of an image by the classifier's confidence: C_p(x) = p·x + (1-p)·D(x).

What the classifier is sure of stays; the rest fades into a degraded version D(x): mid grey (contrast reduction, the
paper's), a blurred, a peppered, or a masked image. dC_p/dp = x - D(x) for all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from domainfusion.config import Corruption


def degrade(images: torch.Tensor, kind: Corruption, generator: torch.Generator | None = None) -> torch.Tensor:
    """D(x) of images (B, 3, H, W) in [-1, 1].

    contrast: 0 (mid grey). blur: Gaussian, σ = H/16. pepper: 30 % of the pixels black. mask: half of the cells of an
    8 x 8 grid mid grey. Pepper and mask draw from `generator`.

    >>> degrade(torch.ones(1, 3, 8, 8), "contrast").abs().sum().item()
    0.0
    """
    if kind == "contrast":
        return torch.zeros_like(images)
    if kind == "blur":
        return gaussian_blur(images, images.shape[-1] / 16)
    count, _, height, width = images.shape
    if kind == "pepper":
        black = torch.rand(count, 1, height, width, generator=generator).to(images.device) < 0.3
        return torch.where(black, -torch.ones_like(images), images)
    if kind == "mask":
        hidden = (torch.rand(count, 1, 8, 8, generator=generator) < 0.5).to(images.dtype)
        hidden = F.interpolate(hidden, size=(height, width), mode="nearest").to(images.device)
        return images * (1 - hidden)
    raise ValueError(f"corruption {kind!r} is not contrast, blur, pepper or mask")


def corrupt(images: torch.Tensor, degraded: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """C_p(x) = p·x + (1-p)·D(x) for images and D(x) (B, 3, H, W), confidence p (B,) in [0, 1]."""
    p = confidence.view(-1, 1, 1, 1).to(images.dtype)
    return p * images + (1 - p) * degraded


def gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images (B, C, H, W) convolved with a Gaussian of `sigma` pixels cut at 3σ, edges reflected."""
    radius = min(max(1, round(3 * sigma)), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
