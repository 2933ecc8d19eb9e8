"""Slopes straight from the estimator, at any confidences: what rows about curves compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from domainfusion.config import DistillConfig
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.slopes import Draws, SlopeEstimator, draw
from domainfusion.seeding import seed_hash


def direct_slopes(
    ldm: LatentDiffusion, config: DistillConfig, images: torch.Tensor, prompts: Sequence[str],
    confidences: Sequence[float], draws: int, seed: str, keys: Sequence[int] | None = None, rounds: int = 1,
) -> torch.Tensor:  # fmt: skip
    """(N, P) slopes of images (N, 3, S, S) at confidences (P,), which share an image's draws.

    Args:
        draws: in each round, in antithetic pairs of stratified timesteps; seed "curve" and the images' keys
            (`domainfusion.data.content`) make them those of curves.
        keys: numbers that images' draws depend on (default: 0 to N - 1).
    """
    points, size = len(confidences), images.shape[-1]
    estimator = SlopeEstimator(ldm, config)
    paired = dataclasses.replace(config, samples=draws // 2)
    found = torch.zeros(len(images), points)
    for place, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        many = image.expand(points, -1, -1, -1)
        degraded = degrade(many, config.corruption)
        for number in range(rounds):
            key = place if keys is None else int(keys[place])
            drawn = draw(ldm, 1, size, paired, torch.Generator().manual_seed(seed_hash(seed, key, number)))
            both = Draws(
                torch.cat([drawn.timesteps] * 2).expand(-1, points),
                torch.cat([drawn.noise, -drawn.noise]).expand(-1, points, -1, -1, -1), 0,
            )  # fmt: skip
            given = [prompt] * points
            slopes = estimator.slopes(many, given, torch.tensor(confidences), both, degraded=degraded)
            found[place] += slopes.cpu() / rounds
    return found


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean square error as a share of the root mean square."""
    return float((found.float() - truth.float()).square().mean().sqrt() / truth.float().square().mean().sqrt())
