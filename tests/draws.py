"""Prompts of three images, what latent distillation draws for them, and options of curves that take little time."""

from __future__ import annotations

import torch

from domainfusion.config import DistillConfig
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.slopes import Draws, draw

PROMPTS = ["a cat", "a dog, ink", "a house"]
FEW_ROUNDS = DistillConfig(estimator="curve", curve_samples=2, curve_rounds=3, curve_tolerance=0.0)


def make_draws(ldm: LatentDiffusion, config: DistillConfig, seed: int = 0, count: int = 3) -> Draws:
    """Draws for `count` images of 16 pixels."""
    return draw(ldm, count, 16, config, torch.Generator().manual_seed(seed))
