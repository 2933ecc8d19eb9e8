"""One image over the generations, outside training: each starts from the last one's image, as in Algorithm 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.fusion.generation import Judge, make_generation
from domainfusion.fusion.synthetic import Generation


def evolve(
    ldm: LatentDiffusion, image: np.ndarray, label: str, words: Mapping[str, str], config: GenerateConfig, *,
    generations: int, judge: Judge | None = None, styles: tuple[str, ...] = (),
) -> list[Generation]:  # fmt: skip
    """Generations 0, 1, … of an image (S, S, 3) uint8, the first from the image itself, whatever `config.updating`.

    Nothing is taken from the cache that runs share, or left there.

    Args:
        label: the image's class.
        words: every class of the classifier, in its order, as prompts name it.
        judge: the classifier, which content and style are chosen with; without one, the first candidate is taken.
        styles: style words that prompts may use.

    Raises `Interrupted` between two denoising steps where a signal has come (see `domainfusion.interruption`).
    """
    classes = tuple(words)
    rows, number = np.zeros(1, dtype=np.int64), np.array([classes.index(label)])
    alone = MultiDomainDataset(
        "", ("",), classes, image[None].copy(), number, rows, ("",), "", class_words=tuple(words.values())
    )  # fmt: skip
    if judge is None:
        judge, config = _impartial, dataclasses.replace(config, sampling=False)
    made: list[Generation] = []
    for k in range(generations):
        current = made[-1].images if made else alone.images
        made.append(
            make_generation(
                ldm, alone, rows, current, judge, config, number=k, styles=styles, stored=False, progress=False
            )
        )
    return made


def _impartial(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is asked, and not used, where nothing is chosen."""
    return torch.zeros(len(images), 1), torch.zeros(len(images))
