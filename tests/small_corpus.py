"""Coloured squares to pretrain on, and options that take little time."""

from __future__ import annotations

import numpy as np

from domainfusion.config import PretrainConfig
from domainfusion.diffusion.corpus import Corpus

SIZE = 32
COLOURS = {"red": (200, 30, 30), "green": (20, 160, 40), "blue": (30, 60, 210), "grey": (130, 130, 130)}
TINY = PretrainConfig(
    size=SIZE, latent_channels=4, vae_channels=(8, 16), vae_steps=6, vae_batch_size=4, unet_channels=(32,),
    unet_steps=6, unet_batch_size=4, vocabulary=256, text_length=8, text_width=32, text_layers=1, pool_size=16,
    pool_epochs=1, save_every=2, log_every=1,
)  # fmt: skip


def square_image(number: int) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8: a square of one of the colours on white."""
    image = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    left = number // 4 * 3
    image[left : left + 12, 4:20] = list(COLOURS.values())[number % 4]
    return image


def make_corpus(images: np.ndarray, text: str = "text", category: str = "category", style: str = "style") -> Corpus:
    """`images` (N, S, S, 3) uint8, all with the same caption."""
    count = len(images)
    return Corpus(images, [text] * count, [category] * count, [style] * count, np.ones(count))
