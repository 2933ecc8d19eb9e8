"""Contrast reduction against other corruptions, with what the LDM makes of each (Fig. 2 of the supplement)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainfusion.config import Corruption, DistillConfig
from domainfusion.data.transforms import to_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.corruption import corrupt, degrade
from domainfusion.distillation.noise_pictures import noise_maps, prior_pictures
from domainfusion.distillation.slopes import SlopeEstimator
from domainfusion.picture_grid import Row, picture_grid, save_figure
from domainfusion.report.label_evidence import correlation
from domainfusion.report.overlays import noise_picture

CONFIDENCES = (1.0, 0.7, 0.4, 0.2, 0.05)
NAMES = {"contrast": "contrast reduction", "mask": "random mask", "blur": "Gaussian blur", "pepper": "pepper noise"}


@dataclasses.dataclass(frozen=True)
class CorruptionPictures:
    """An image corrupted at several confidences, and what the LDM makes of it."""

    kind: Corruption
    confidences: tuple[float, ...]
    corrupted: np.ndarray  # (P, S, S, 3) uint8
    priors: np.ndarray  # (P, S, S, 3) uint8, what the LDM takes them for in one step
    noise: torch.Tensor | None  # (P, S, S) in [0, 1], LD noise
    structure: tuple[float, ...]  # (P,) how much of the image's outlines the priors have


def corruption_pictures(
    ldm: LatentDiffusion, image: torch.Tensor, prompt: str, kind: Corruption, *,
    confidences: Sequence[float] = CONFIDENCES, noise: bool = True, distill: DistillConfig | None = None,
    samples: int = 4, seed: int = 0,
) -> CorruptionPictures:  # fmt: skip
    """The pictures of an image (3, S, S) in [-1, 1] under a prompt; priors as `prior_pictures` makes them.

    Args:
        distill: its residual is what LD noise is of.
    """
    count = len(confidences)
    degraded = degrade(image[None], kind, torch.Generator().manual_seed(seed))
    images = corrupt(image.expand(count, -1, -1, -1), degraded, torch.tensor(confidences))
    priors = to_uint8(prior_pictures(ldm, images, [prompt] * count, samples=samples, seed=seed))
    maps = None
    if noise:
        estimator = SlopeEstimator(ldm, dataclasses.replace(distill or DistillConfig(), corruption=kind))
        maps = noise_maps(estimator, images, [prompt] * count, seed=seed)
    outlines = outlines_of(to_uint8(image))
    structure = tuple(correlation(outlines, outlines_of(prior)) for prior in priors)
    return CorruptionPictures(kind, tuple(confidences), to_uint8(images), priors, maps, structure)


def outlines_of(image: np.ndarray) -> np.ndarray:
    """(S, S): how steeply the lightness of an image (S, S, 3) uint8 changes, whatever its colours."""
    lightness = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    down, across = np.gradient(lightness)
    return np.hypot(down, across)


def corruption_figure(
    ldm: LatentDiffusion, images: torch.Tensor, words: Sequence[str], path: Path, *,
    kinds: Sequence[Corruption] = ("contrast", "mask"), confidences: Sequence[float] = CONFIDENCES,
    template: str = "{label}", noise: bool = False, distill: DistillConfig | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Write Fig. 2 for images (B, 3, S, S) in [-1, 1] of labels in words (B), and return the facts behind it.

    Facts: `structure` {kind: [one figure for each confidence]}, the mean over the images of the correlation between the
    outlines of an image and those of its prior.
    """
    found = [
        [
            corruption_pictures(
                ldm, image, template.format(label=word), kind, confidences=confidences, noise=noise, distill=distill,
                seed=seed,
            )
            for kind in kinds
        ]
        for image, word in zip(images, words, strict=True)
    ]  # fmt: skip
    save_figure(draw_corruptions(found, words), path)
    return {
        "confidences": list(confidences), "labels": list(words), "ldm": ldm.name,
        "structure": {
            kind: np.mean([parts[k].structure for parts in found], 0).tolist() for k, kind in enumerate(kinds)
        },
    }  # fmt: skip


def draw_corruptions(found: Sequence[Sequence[CorruptionPictures]], words: Sequence[str]) -> Any:
    """The figure of one or more images with labels in words, each under several corruptions."""
    rows, noise = [], any(part.noise is not None for parts in found for part in parts)
    for parts, word in zip(found, words, strict=True):
        for number, part in enumerate(parts):
            what = f"{word}\n" if number == 0 else ""
            rows.append(Row(f"{what}{NAMES[part.kind]}", list(part.corrupted), apart=noise or number == 0))
            kept = [f"{value:.2f}" for value in part.structure]
            rows.append(Row("LDM prior", list(part.priors), kept))
            if part.noise is not None:
                rows.append(Row("LD noise", [noise_picture(level) for level in part.noise]))
    more = "\nLD noise: what the LDM would change in the corrupted image, given the label; each map has its own scale."
    return picture_grid(
        rows, heads=[f"p = {p:g}" for p in found[0][0].confidences],
        title="What a confidence p leaves of an image, and what the LDM takes it for",
        notes="LDM prior: the clean image that the LDM predicts in one step from the corrupted one, half way up the\n"
        "noise schedule, given the label. Below it: correlation of its outlines with those of the uncorrupted image."
        + (more if noise else ""),
    )  # fmt: skip
