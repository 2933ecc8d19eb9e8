"""Makes one generation of the synthetic dataset (Algorithm 1, lines 5 to 13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, to_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.fusion.candidates import Recipe, candidates_of
from domainfusion.fusion.selection import Selection, select
from domainfusion.fusion.synthetic import Generation, hash_of_pixels

# (features (B, D), confidence of the labels (B,)) of images (B, 3, S, S) in [0, 1] with labels (B,).
Judge = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
SHEET_ROWS, SHEET_COLUMNS = 6, 2


def make_generation(
    ldm: LatentDiffusion,
    dataset: MultiDomainDataset,
    rows: np.ndarray,
    current: np.ndarray | None,
    judge: Judge,
    config: GenerateConfig,
    *,
    number: int,
    styles: tuple[str, ...],
    stored: bool,
    fused: np.ndarray | None = None,
    progress: bool = True,
) -> Generation:
    """Generation `number`: for each row, N candidates from its current image, fused by the sampling strategy.

    Args:
        rows: (n,) rows of the data set.
        current: (n, S, S, 3) uint8, what each row's image has become; None for the stored images.
        judge: the classifier being trained, as features and confidences.
        styles: style words that prompts may use.
        stored: whether it is the stored images (their candidates come from the shared cache).
        fused: (n, S, S, 3) uint8 that the generation's images are written to; a new array where not given.
    """
    config = config.needed()
    if fused is None:
        fused = np.empty((len(rows), *(dataset.images if current is None else current).shape[1:]), dtype=np.uint8)
    lineage: list[dict[str, Any]] = []
    strips: list[np.ndarray] = []
    shown = set(sheet_positions(len(rows)))
    parts = candidates_of(
        ldm, dataset, rows, current, config, number=number, styles=styles, stored=stored, progress=progress
    )
    for part, recipes, made in parts:
        labels = torch.from_numpy(dataset.labels[rows[part]])
        before = dataset.images[rows[part]] if current is None else current[part]
        images, candidates = from_uint8(before), from_uint8(made)  # (B, 3, S, S), (B, N, 3, S, S)
        counts = candidates.shape[:2]
        features0, _ = judge((images + 1) / 2, labels)
        features, confidence = judge((candidates.flatten(0, 1) + 1) / 2, labels.repeat_interleave(counts[1]))
        picked = select(images, candidates, features0, features.view(*counts, -1), confidence.view(counts), config)
        fused[part] = to_uint8(picked.images)
        lineage += _records(dataset, rows[part], recipes, picked, number, fused[part])
        for i in range(counts[0]):
            if part.start + i in shown:
                strips.append(np.concatenate([before[i], *made[i], fused[part][i]], axis=1))
    return Generation(number, rows, fused, lineage, _sheet(strips))


def sheet_positions(count: int) -> list[int]:
    """Which of `count` images the sheet shows, in its order: evenly spread, six below each other in two columns."""
    return sorted(set(np.linspace(0, count - 1, SHEET_ROWS * SHEET_COLUMNS).round().astype(int).tolist()))


def _sheet(strips: list[np.ndarray]) -> np.ndarray | None:
    """A picture of some rows: image, candidates, fused image."""
    columns = [
        np.concatenate(strips[i : i + SHEET_ROWS], 0)
        for i in range(0, len(strips) // SHEET_ROWS * SHEET_ROWS, SHEET_ROWS)
    ]
    return np.concatenate(columns, 1) if columns else None


def _records(
    dataset: MultiDomainDataset, rows: np.ndarray, recipes: list[Recipe], picked: Selection, number: int,
    images: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """The lineage of each fused image: where its content and its style come from."""
    records = []
    for i, (row, made) in enumerate(zip(rows, recipes, strict=True)):
        content, style = int(picked.content[i]), int(picked.style[i])
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
                "content_prompt": made.prompts[content],
                "style_prompt": made.prompts[style],
                "content_strength": round(float(made.strengths[content]), 4),
                "style_strength": round(float(made.strengths[style]), 4),
                "seed": made.seed,
                "sha256": hash_of_pixels(images[i]),
            }
        )
    return records
