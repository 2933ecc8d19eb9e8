"""How samples change over generations, with their LD noise (Fig. 3 and, for busy backgrounds, Fig. 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from domainfusion.config import DistillConfig, GenerateConfig
from domainfusion.config_files import build_config
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.noise_pictures import noise_maps
from domainfusion.distillation.slopes import SlopeEstimator
from domainfusion.errors import UsageError
from domainfusion.picture_grid import Row, picture_grid, save_figure
from domainfusion.report.corruption_figure import outlines_of
from domainfusion.report.evolution import StoredGeneration, choose_rows, stored_generations
from domainfusion.report.overlays import noise_picture
from domainfusion.report.reading import Run

MOST_FRAMES = 4  # generations shown behind the raw image
BORDER = 6  # the frame around an image that counts as background is 1/BORDER of its side wide


@dataclasses.dataclass(frozen=True)
class EvolutionPictures:
    """What an image becomes, itself first, and what the LDM would change in each frame under one prompt."""

    names: tuple[str, ...]  # F: "raw", then the numbers of generations
    frames: np.ndarray  # (F, S, S, 3) uint8
    prompt: str
    noise: torch.Tensor  # (F, H, W) in [0, 1], LD noise, at the size of images at the LDM

    def borders(self) -> list[float]:
        """For each frame the mean LD noise in the frame around the image over its mean everywhere."""
        return [border_share(level) for level in self.noise]


def evolution_pictures(
    estimator: SlopeEstimator, names: Sequence[str], frames: np.ndarray, prompt: str, size: int, *, samples: int = 8,
    seed: int = 0,
) -> EvolutionPictures:  # fmt: skip
    """The LD noise of frames (F, S, S, 3) uint8 (`noise_maps`), at `size` pixels."""
    pixels = resize(from_uint8(frames), size)
    maps = noise_maps(estimator, pixels, [prompt] * len(pixels), samples=samples, seed=seed)
    return EvolutionPictures(tuple(names), frames, prompt, maps)


def evolution_figure(
    run: Run, dataset: MultiDomainDataset, ldm: LatentDiffusion, path: Path, *, images: int = 5,
    backgrounds: Literal["any", "busy"] = "any", samples: int = 8,
) -> dict[str, Any]:  # fmt: skip
    """Write Fig. 3 (or, with busy backgrounds, Fig. 4) of a run to `path`, and return the facts behind it.

    Left: the raw image and its image in some generations; right: the LD noise of each.

    Facts: for each image its `row`, `class`, `domain`, the `generations` shown, and for each frame `border`, the mean
    LD noise in the frame around the image over its mean everywhere (below 1: the noise keeps to the middle).

    Args:
        run: a finished run with synthetic images (`domainfusion.report.reading.read_runs`).
        dataset: the data set that it ran on.
        backgrounds: which images: spread over classes and domains, or those with most outlines near their edge.

    Raises `UsageError` where the run made no generations.
    """
    generations = stored_generations(run, most=MOST_FRAMES)
    if not generations:
        raise UsageError(f"the run in {run.folder} made no synthetic images: its evolution cannot be shown")
    last = generations[-1]
    rows = choose_rows(last, images) if backgrounds == "any" else busiest_rows(last, dataset, images)
    found = [_frames(row, generations, dataset) for row in rows]
    estimator = SlopeEstimator(ldm, _config(run, "distill", DistillConfig))
    generate = _config(run, "generate", GenerateConfig)
    size = generate.image_size or ldm.image_size
    lines, facts = [], []
    for row, (names, frames) in zip(rows, found, strict=True):
        name, domain = dataset.classes[dataset.labels[row]], dataset.domains[dataset.domain_of[row]]
        prompt = generate.plain_template.format(label=dataset.words()[dataset.labels[row]])
        part = evolution_pictures(estimator, names, frames, prompt, size, samples=samples)
        blanks: list[np.ndarray | None] = [None] * (len(generations) + 1 - len(frames))
        lines.append(
            Row(f"{name}\nfrom {domain}", [*frames, *blanks, *(noise_picture(level) for level in part.noise), *blanks])
        )
        facts.append({
            "row": int(row), "class": name, "domain": domain, "generations": names, "border": part.borders(),
        })  # fmt: skip
    heads = ["raw", *(f"generation {generation.number}" for generation in generations)]
    busy = ", on busy backgrounds" if backgrounds == "busy" else ""
    figure = picture_grid(
        lines, heads=heads * 2, splits=[len(heads)],
        title=f"Samples over the generations{busy} (left), their LD noise (right)",
        notes="LD noise: what the LDM would change, given the label; bright is much. Each map has its own scale.",
    )  # fmt: skip
    save_figure(figure, path)
    return {
        "run": str(run.folder), "ldm": ldm.name, "image_size": size, "residual": estimator.config.residual,
        "images": facts,
    }  # fmt: skip


def _config(run: Run, part: str, kind: Any) -> Any:
    """The options of one part (`distill`) of a run."""
    prefix = f"{part}."
    values = {name.removeprefix(prefix): value for name, value in run.options.items() if name.startswith(prefix)}
    return build_config(kind, values, str(run.folder / "config.toml"))


def _frames(
    row: int, generations: Sequence[StoredGeneration], dataset: MultiDomainDataset
) -> tuple[list[str], np.ndarray]:
    """Names and pictures (F, S, S, 3) uint8 of an image: raw, then the generations that have it."""
    having = [generation for generation in generations if row in generation.position]
    pictures = [dataset.images[row], *(generation.images[generation.position[row]] for generation in having)]
    return ["raw", *(str(generation.number) for generation in having)], np.stack(pictures)


def busiest_rows(generation: StoredGeneration, dataset: MultiDomainDataset, count: int) -> list[int]:
    """`count` rows of a generation whose raw images have most outlines near their edge.

    A class or a domain that has been chosen gives way to those that have not.
    """
    rows, mask = list(generation.position), border_mask(dataset.size)
    busy = {row: float(outlines_of(dataset.images[row])[mask].mean()) for row in rows}
    chosen: list[int] = []
    for _ in range(min(count, len(rows))):
        labels = [dataset.labels[row] for row in chosen]
        domains = [dataset.domain_of[row] for row in chosen]

        def place(row: int, labels: list[int] = labels, domains: list[int] = domains) -> tuple[int, float]:
            return labels.count(dataset.labels[row]) + domains.count(dataset.domain_of[row]), -busy[row]

        chosen.append(min((row for row in rows if row not in chosen), key=place))
    return chosen


def border_mask(size: int) -> np.ndarray:
    """(size, size) bool: the frame of 1/BORDER of the side around an image."""
    width = max(1, size // BORDER)
    mask = np.ones((size, size), dtype=bool)
    mask[width:-width, width:-width] = False
    return mask


def border_share(noise: torch.Tensor) -> float:
    """Mean of a map (S, S) in the frame around the image, over its mean everywhere."""
    level = noise.numpy().astype(np.float64)
    return float(level[border_mask(len(level))].mean() / max(level.mean(), 1e-12))
