"""Style and content of images: channel statistics and what they leave (AdaIN, Huang & Belongie 2017)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from domainfusion.data.transforms import from_uint8, to_uint8

EPSILON = 1e-5


def split_style(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Content (..., C, H, W) = (x - μ)/σ, and style: μ and σ over space, each (..., C), of images (..., C, H, W)."""
    mean = images.mean((-2, -1))
    std = (images.var((-2, -1), unbiased=False) + EPSILON).sqrt()
    content = (images - mean[..., None, None]) / std[..., None, None]
    return content, mean, std


def fuse(content: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """x_gen = σ*·c* + μ* (Algorithm 1, line 12), the inverse of `split_style`."""
    return content * std[..., None, None] + mean[..., None, None]


def recombine(content_of: np.ndarray, style_of: np.ndarray) -> np.ndarray:
    """Images (n, S, S, 3) uint8 with the content of the first n and the style of the others."""
    content, _, _ = split_style(from_uint8(content_of))
    _, mean, std = split_style(from_uint8(style_of))
    return to_uint8(fuse(content, mean, std))


def style_divergence(
    mean0: torch.Tensor, std0: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, kind: Literal["softmax", "gaussian"]
) -> torch.Tensor:
    """How far styles (..., N, C) are from style 0 (..., C): (..., N), not negative (Algorithm 1, line 11).

    softmax: KL(μ0‖μj) + KL(σ0‖σj), each channel vector made a distribution by softmax. gaussian: the mean over the
    channels of KL(N(μ0, σ0²)‖N(μj, σj²)).
    """
    mean0, std0 = mean0.unsqueeze(-2), std0.unsqueeze(-2)
    if kind == "softmax":
        return _softmax_kl(mean0, mean) + _softmax_kl(std0, std)
    ratio = (std0 / std).square()
    return 0.5 * (ratio + ((mean - mean0) / std).square() - 1 - ratio.log()).mean(-1)


def _softmax_kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    a, b = first.log_softmax(-1), second.log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)
