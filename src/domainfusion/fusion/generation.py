"""Makes one generation of the synthetic dataset (Algorithm 1, lines 5 to 13)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import compose_prompts
from domainfusion.fusion.selection import Selection, select
from domainfusion.fusion.synthetic import Generation
from domainfusion.seeding import derive_numpy_rng, seed_hash

# (features (B, D), confidence of the labels (B,)) of images (B, 3, S, S) in [0, 1] with labels (B,).
Judge = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def candidate_randomness(
    seed: int, number: int, rows: np.ndarray, config: GenerateConfig, shape: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Strengths (B, N) and noise (B·N, C, h, w), each image's a function of (seed, generation, row) alone.

    Candidates therefore do not depend on how images are batched.
    """
    strengths, noises = [], []
    low, high = config.strength
    for row in rows:
        generator = torch.Generator().manual_seed(seed_hash("candidates", seed, number, int(row)))
        strengths.append(low + (high - low) * torch.rand(config.candidates, generator=generator))
        noises.append(torch.randn(config.candidates, *shape, generator=generator))
    return torch.stack(strengths), torch.cat(noises)


def make_generation(
    ldm: LatentDiffusion,
    dataset: MultiDomainDataset,
    rows: np.ndarray,
    current: np.ndarray,
    judge: Judge,
    config: GenerateConfig,
    *,
    number: int,
    seed: int,
    styles: tuple[str, ...],
    progress: bool = True,
) -> Generation:
    """Generation `number`: for each row, N candidates from its current image, fused by the sampling strategy.

    Args:
        rows: (n,) rows of the data set.
        current: (n, S, S, 3) uint8, what each row's image has become.
        judge: the classifier being trained, as features and confidences.
        styles: style words that prompts may use.
    """
    words = dataset.words()
    images_out = np.empty_like(current)
    lineage: list[dict[str, Any]] = []
    sheet: list[np.ndarray] = []
    size = ldm.image_size
    per_call = max(1, 4 * config.batch_size // config.candidates)
    bar = tqdm(total=len(rows), desc=f"generation {number}", unit="image", disable=not progress)
    shape = (ldm.unet.config.in_channels, size // ldm.latent_factor, size // ldm.latent_factor)
    for start in range(0, len(rows), per_call):
        part = slice(start, start + per_call)
        chosen = rows[part]
        labels = dataset.labels[chosen]
        pixels = torch.from_numpy(current[part]).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, S, S)
        inputs = _resize(pixels, size)
        repeated = np.repeat(labels, config.candidates)
        prompts: list[str] = []
        for row, label in zip(chosen, labels, strict=True):  # each row's prompts are a function of the row alone
            rng = derive_numpy_rng("prompts", seed, number, int(row))
            prompts += compose_prompts(words, np.repeat(label, config.candidates), config, styles, rng)
        strengths, noise = candidate_randomness(seed, number, chosen, config, shape)
        made = image_to_image(
            ldm, inputs, prompts, strengths, noise=noise.to(ldm.device), candidates=config.candidates,
            steps=config.steps, guidance_scale=config.guidance, batch_size=config.batch_size,
        )  # fmt: skip
        candidates = _resize(made.flatten(0, 1), dataset.size).view(len(chosen), config.candidates, *pixels.shape[1:])
        features0, _ = judge((pixels + 1) / 2, torch.from_numpy(labels))
        features, confidence = judge((candidates.flatten(0, 1) + 1) / 2, torch.from_numpy(repeated))
        counts = (len(chosen), config.candidates)
        picked = select(pixels, candidates, features0, features.view(*counts, -1), confidence.view(*counts), config)
        fused = picked.images.clamp(-1, 1)
        images_out[part] = ((fused + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        lineage += _records(dataset, chosen, prompts, strengths, picked, config, seed, number, images_out[part])
        if len(sheet) < 12:
            step = max(1, len(rows) // 12)
            wanted = [i for i in range(len(chosen)) if (start + i) % step == 0][: 12 - len(sheet)]
            for i in wanted:
                sheet.append(_strip(pixels[i], candidates[i], fused[i]))
        bar.update(len(chosen))
    bar.close()
    columns = [np.concatenate(sheet[i : i + 6], 0) for i in range(0, len(sheet) // 6 * 6, 6)]
    return Generation(number, rows, images_out, lineage, np.concatenate(columns, 1) if columns else None)


def _resize(images: torch.Tensor, size: int) -> torch.Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def _strip(image: torch.Tensor, candidates: torch.Tensor, fused: torch.Tensor) -> np.ndarray:
    """Image, candidates and fused image side by side, (S, (N+2)·S, 3) uint8."""
    row = torch.cat([image[None], candidates, fused[None]])
    pixels = ((row.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return np.concatenate(list(pixels), axis=1)


def _records(
    dataset: MultiDomainDataset, rows: np.ndarray, prompts: list[str], strengths: torch.Tensor, picked: Selection,
    config: GenerateConfig, seed: int, number: int, images: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    records = []
    for i, row in enumerate(rows):
        content, style = int(picked.content[i]), int(picked.style[i])
        first = i * config.candidates
        records.append(
            {
                "row": int(row),
                "source": dataset.keys[row],
                "domain": dataset.domains[dataset.domain_of[row]],
                "class": dataset.classes[dataset.labels[row]],
                "generation": number,
                "content_candidate": content,
                "style_candidate": style,
                "content_score": round(float(picked.content_scores[i, content]), 5),
                "style_score": round(float(picked.style_scores[i, style]), 6),
                "content_prompt": prompts[first + content],
                "style_prompt": prompts[first + style],
                "content_strength": round(float(strengths[i, content]), 4),
                "style_strength": round(float(strengths[i, style]), 4),
                "seed": seed_hash("candidates", seed, number, int(row)),
                "sha256": hashlib.sha256(images[i].tobytes()).hexdigest()[:16],
            }
        )
    return records
