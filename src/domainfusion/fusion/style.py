"""Style and content of images: channel statistics and what they leave (AdaIN, Huang & Belongie 2017)."""

from __future__ import annotations

from typing import Literal

import torch

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


def recombine(content_of: torch.Tensor, style_of: torch.Tensor) -> torch.Tensor:
    """Images (n, S, S, 3) uint8 with the content of the first n and the style of the others, on their device.

    `fuse` after `split_style` as the one affine map of each channel that they are together.
    """
    content, style = (images.movedim(-1, -3).float() for images in (content_of, style_of))  # 0 to 255
    var, mean = torch.var_mean(content, (-2, -1), correction=0)  # (n, 3)
    style_var, style_mean = torch.var_mean(style, (-2, -1), correction=0)
    epsilon = EPSILON * 127.5**2  # `split_style` has images in [-1, 1]
    scale = ((style_var + epsilon) / (var + epsilon)).sqrt()
    shift = style_mean - mean * scale
    fused = torch.addcmul(shift[..., None, None], content, scale[..., None, None])
    return fused.round_().clamp_(0, 255).byte().movedim(-3, -1)


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
