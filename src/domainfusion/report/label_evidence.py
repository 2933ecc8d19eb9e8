"""What an LDM has to say for each of some labels on one image: heat maps, denoising errors, slopes over p.

Everything is computed on draws (timesteps, noise) that all labels share, so that what differs is the label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from domainfusion.algorithms.diffusion_classifier import DiffusionClassifier
from domainfusion.config import Corruption, DistillConfig, ZeroShotConfig
from domainfusion.diffusion.heatmaps import heat_maps, label_tokens, merge_tokens
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.slopes import Draws, SlopeEstimator, draw

GRID = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)  # confidences of a curve; dense where slopes bend
ROUNDS = 4  # independent estimates of a curve, whose spread is its error


@dataclasses.dataclass(frozen=True)
class LabelHeat:
    """Where on an image the words of a label find attention."""

    prompt: str
    shares: torch.Tensor  # (S, S) share of attention that each place gives to the label's words

    @property
    def share(self) -> float:
        """The mean share over the image."""
        return float(self.shares.mean())

    @property
    def relative(self) -> torch.Tensor:
        """(S, S) shares as multiples of their mean: what the maps of labels with more or fewer words compare by."""
        return self.shares / max(self.share, 1e-12)


def label_heat(
    ldm: LatentDiffusion, images: torch.Tensor, words: Sequence[str], *, template: str = "{label}", draws: int = 2,
    seed: int = 0,
) -> list[LabelHeat]:  # fmt: skip
    """The heat of labels in words (B) on images (B, 3, S, S) in [-1, 1].

    Raises `UsageError` where a prompt is longer than the LDM reads.
    """
    prompts = [label_tokens(ldm.tokenizer, template, word) for word in words]
    maps = heat_maps(ldm, images, [prompt for prompt, _ in prompts], draws=draws, seed=seed)
    return [LabelHeat(prompt, merge_tokens(part, tokens)) for (prompt, tokens), part in zip(prompts, maps, strict=True)]


def likeness(first: LabelHeat, second: LabelHeat) -> float:
    """Pearson's correlation of two maps over the image: 1 where the labels are looked for in the same places."""
    return correlation(first.shares.numpy(), second.shares.numpy())


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two arrays of one shape; 0 where one is constant.

    >>> correlation(np.array([1.0, 2.0, 3.0]), np.array([0.0, -1.0, -2.0]))
    -1.0
    """
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class LabelScores:
    """Diffusion Classifier's errors of K labels on the same draws: the smaller, the better the label fits."""

    errors: np.ndarray  # (draws, K) mean squared errors of the predicted noise, over the latents' values

    def means(self) -> np.ndarray:
        """(K,) mean errors."""
        return self.errors.mean(0)

    def differences(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """(K,) mean errors less that of `label`, and the standard errors of these paired differences.

        The draws are spread evenly over the timesteps, not independent: what the difference has of a trend in t counts
        as chance here, so the standard error is rather too large.
        """
        paired = self.errors - self.errors[:, label : label + 1]
        return paired.mean(0), paired.std(0, ddof=1) / np.sqrt(len(paired))

    @property
    def best(self) -> int:
        """The label with the smallest mean error."""
        return int(self.means().argmin())


def label_scores(
    ldm: LatentDiffusion, image: torch.Tensor, prompts: Sequence[str], *, draws: int = 32, seed: int = 0
) -> LabelScores:
    """The scores of prompts (K) for an image (3, S, S) in [-1, 1], by `draws` timesteps spread over the schedule."""
    config = ZeroShotConfig(samples=(draws,), keep=(1,), seed=seed)
    classifier = DiffusionClassifier(ldm, prompts, config, image_size=image.shape[-1])
    errors = classifier.paired_errors(image, range(draws))
    side = image.shape[-1] // ldm.latent_factor
    return LabelScores(errors / (ldm.unet.config.in_channels * side**2))


def slope_curves(
    ldm: LatentDiffusion, image: torch.Tensor, prompts: Sequence[str], *, corruption: Corruption = "contrast",
    distill: DistillConfig | None = None, samples: int = 4, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """(ROUNDS, K, G) slopes dL/dp of an image (3, S, S) under K prompts at the confidences of `GRID`, by `score`.

    Args:
        distill: what else shapes a slope: residual, weights and timesteps.
        samples: draws in each round, shared by all prompts and confidences.
    """
    config = dataclasses.replace(distill or DistillConfig(), corruption=corruption, samples=samples)
    estimator = SlopeEstimator(ldm, config)
    points, count = len(GRID), len(prompts)
    images = image[None].to(ldm.device).expand(points, -1, -1, -1)
    embeds = ldm.prompt_embeds(list(prompts)).repeat_interleave(points, 0)
    generator = torch.Generator().manual_seed(seed)
    degraded = degrade(image[None], corruption, generator).to(ldm.device).expand_as(images)
    # The way of the latents does not depend on the prompt.
    latents, tangent = estimator.path(images, degraded, torch.tensor(GRID, device=ldm.device))
    latents, tangent = latents.repeat(count, 1, 1, 1), tangent.repeat(count, 1, 1, 1)
    rounds = []
    for _ in range(ROUNDS):
        one = draw(ldm, 1, image.shape[-1], config, generator)
        shared = Draws(
            one.timesteps.expand(-1, points * count), one.noise.expand(-1, points * count, -1, -1, -1), one.seed
        )
        rounds.append(estimator.project(latents, tangent, embeds, shared).view(count, points))
    return torch.stack(rounds).double().cpu().numpy()
