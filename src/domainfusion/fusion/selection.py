"""The sampling strategy of Algorithm 1: which candidate gives the content, which the style (lines 10 and 11)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from domainfusion.config import GenerateConfig
from domainfusion.fusion.style import fuse, split_style, style_divergence


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was chosen among N candidates for each of B images."""

    images: torch.Tensor  # (B, C, H, W) fused
    content: torch.Tensor  # (B,) index of the candidate that gave the content
    style: torch.Tensor  # (B,) index of the candidate that gave the style
    content_scores: torch.Tensor  # (B, N)
    style_scores: torch.Tensor  # (B, N)


def content_scores(
    features0: torch.Tensor, features: torch.Tensor, confidence: torch.Tensor, weight: float
) -> torch.Tensor:
    """λs·cos(features(x), features(candidate)) + (1-λs)·confidence, (B, N).

    Args:
        features0: (B, D) of the images.
        features: (B, N, D) of the candidates.
        confidence: (B, N) softmax probability of the label.
        weight: λs.
    """
    similarity = F.cosine_similarity(features0.unsqueeze(1), features, dim=-1)
    return weight * similarity + (1 - weight) * confidence


def select(
    images: torch.Tensor, candidates: torch.Tensor, features0: torch.Tensor, features: torch.Tensor,
    confidence: torch.Tensor, config: GenerateConfig,
) -> Selection:  # fmt: skip
    """Images (B, C, H, W) fused from candidates (B, N, C, H, W); with `config.sampling` off, the first candidate."""
    count = len(images)
    rows = torch.arange(count)
    content, mean, std = split_style(candidates)
    _, mean0, std0 = split_style(images)
    by_content = content_scores(features0, features, confidence, config.content_weight)
    by_style = style_divergence(mean0, std0, mean, std, config.style_divergence)
    if not config.sampling:
        first = torch.zeros(count, dtype=torch.long)
        return Selection(candidates[:, 0], first, first, by_content, by_style)
    best_content, best_style = by_content.argmax(1), by_style.argmax(1)
    fused = fuse(content[rows, best_content], mean[rows, best_style], std[rows, best_style])
    return Selection(fused, best_content, best_style, by_content, by_style)
