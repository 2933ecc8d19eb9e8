"""Heat maps as pictures: laid over their image in colours that read alike in grey and by the colour-blind."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

COLOURS = "magma"  # of matplotlib: evenly rising lightness, dark is little
DIVERGING = "PuOr_r"  # violet below, orange above: told apart by the colour-blind
SIDE = 224  # pixels of a picture


def overlay(image: np.ndarray, heat: torch.Tensor, low: float, high: float, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) uint8: an image (S, S, 3) uint8 in pale grey under its heat (S, S), `low` dark and `high` bright.

    Outlines of the image stay visible through the heat, its colours do not: they would mix with the heat's.
    """
    return _laid_over(image, (heat - low) / max(high - low, 1e-12), COLOURS, side)


def difference_picture(image: np.ndarray, difference: torch.Tensor, reach: float, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) uint8: the outlines of an image under a map (S, S) with values from -`reach` to `reach`."""
    return _laid_over(image, difference / max(2 * reach, 1e-12) + 0.5, DIVERGING, side)


def _laid_over(image: np.ndarray, level: torch.Tensor, colours: str, side: int) -> np.ndarray:
    from matplotlib import colormaps

    size = (side, side)
    grey = Image.fromarray(image).convert("L").resize(size, Image.Resampling.LANCZOS)
    lightness = np.asarray(grey, dtype=np.float64)[..., None] / 255
    smooth = Image.fromarray(level.numpy().astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    colour = colormaps[colours](np.clip(np.asarray(smooth, dtype=np.float64), 0, 1))[..., :3]
    mixed = colour * (0.62 + 0.38 * lightness) + 0.16 * (lightness - 0.5)  # the image darkens or lightens the heat
    return (np.clip(mixed, 0, 1) * 255).round().astype(np.uint8)


def enlarge(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) uint8 of an image (S, S, 3) uint8."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def noise_picture(noise: torch.Tensor, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) uint8 of a map (S, S) in [0, 1] (`domainfusion.distillation.noise_pictures`)."""
    from matplotlib import colormaps

    return enlarge((colormaps[COLOURS](noise.numpy())[..., :3] * 255).round().astype(np.uint8), side)
