"""A row about whose slopes training reads: the stored image's, in place of its view's or a synthetic image's own."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.candidates import pictures
from benchmarks.direct_slopes import direct_slopes
from benchmarks.timing import device, row
from domainfusion.config import DataConfig, DistillConfig, GenerateConfig
from domainfusion.data.transforms import augment, resize
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion

IMAGES, DRAWS, STRENGTH = 24, 32, 0.7
CONFIDENCES = (0.02, 0.08, 0.14, 0.26, 0.55, 0.79, 0.89, 0.96)


def compared(found: torch.Tensor, own: torch.Tensor) -> dict[str, float]:
    """Of slopes (N, G) taken for others (N, G): the error's share of their size, and the correlation over images.

    The correlation is that of what is left when each confidence's mean over the images is taken off.
    """
    error = (found - own).square().mean().sqrt() / own.square().mean().sqrt()
    a, b = found - found.mean(0), own - own.mean(0)
    return {"error": float(error), "correlation": float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())}


def slope_views() -> list[dict[str, Any]]:
    """Slopes of augmented views and of candidates, beside those of the stored images, on the same draws."""
    ldm = LatentDiffusion.load("embedded", device=device())
    pixels, prompts = pictures(IMAGES)
    stored = resize(pixels, ldm.image_size)
    generator = torch.Generator().manual_seed(0)
    config = GenerateConfig()
    candidates = image_to_image(
        ldm, stored, prompts, torch.full((IMAGES, 1), STRENGTH), generator=generator, candidates=1,
        steps=config.steps, guidance_scale=config.guidance,
    ).flatten(0, 1)  # fmt: skip
    views = augment((stored + 1) / 2, DataConfig(), generator) * 2 - 1

    def slopes(images: torch.Tensor, seed: str) -> torch.Tensor:
        images = resize(images.float(), ldm.image_size)
        return direct_slopes(ldm, DistillConfig(estimator="curve"), images, prompts, CONFIDENCES, DRAWS, seed)

    mine = slopes(stored, "a")
    again = compared(slopes(stored, "b"), mine)
    rows = []
    for name, images in (("its augmented view's", views), (f"its candidate's (strength {STRENGTH:g})", candidates)):
        own = slopes(images, "a")
        found, mean = compared(mine, own), compared(mine.mean(0).expand_as(own), own)
        rows.append(
            row("slope_views", f"error of the stored image's slopes in place of {name}",
                "error of the mean slopes of all images in their place", ratio=found["error"] / mean["error"],
                target="< 1", reached=found["error"] < mean["error"], ours=found["error"], theirs=mean["error"],
                unit="of their size (rms)", correlation=found["correlation"], noise=again)
        )  # fmt: skip
    return rows
