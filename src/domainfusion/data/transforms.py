"""Augmentation of whole batches on their device; each image has its own parameters, all a function of a generator.

DomainBed's recipe (random resized crop of 70 to 100 % of the area, mirror, colour jitter 0.3, grey with p = 0.1),
computed on (B, 3, H, W) tensors in one pass each instead of image by image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from domainfusion.config import DataConfig

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP_DRAWS = 10  # of area and aspect of a crop, as torchvision's `RandomResizedCrop.get_params` makes at most


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) as float (B, 3, H, W) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (B, 3, S, S) in [-1, 1] at `size` pixels (bicubic, antialiased)."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """(..., 3, S, S) in [-1, 1] as (..., S, S, 3) uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).cpu().numpy()


def from_uint8(images: np.ndarray) -> torch.Tensor:
    """(..., S, S, 3) uint8 as (..., 3, S, S) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, -3).float() / 127.5 - 1


def normalize(images: torch.Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> torch.Tensor:
    """(images - mean) / std by channel, of images in [0, 1], as backbones expect them (ImageNet's where not given)."""
    center = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return (images - center) / scale


def augment(images: torch.Tensor, config: DataConfig, generator: torch.Generator) -> torch.Tensor:
    """Augmented copies of images (B, 3, H, W) in [0, 1], in [0, 1]."""
    images = crop_and_flip(images, config.crop, config.flip, generator)
    if config.jitter > 0:
        images = jitter_colours(images, config.jitter, generator)
    if config.grayscale > 0:
        grey = _luma(images).expand_as(images)
        chosen = (_uniform(len(images), 0, 1, generator) < config.grayscale).to(images.device)
        images = torch.where(chosen.view(-1, 1, 1, 1), grey, images)
    return images


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _luma(images: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _crop_sides(count: int, smallest: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(width, height) of crops, each (count,), as shares of the image's side."""
    area = _uniform(count * CROP_DRAWS, smallest, 1, generator)
    aspect = torch.exp(_uniform(count * CROP_DRAWS, math.log(3 / 4), math.log(4 / 3), generator))
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()]).view(2, count, CROP_DRAWS)
    fits = (sides <= 1).all(0)
    first = fits.int().argmax(1)  # the first that fits; 0 where none does
    chosen = sides.gather(2, first.expand(2, count).unsqueeze(-1)).squeeze(-1)
    width, height = torch.where(fits.any(1), chosen, torch.ones(()))
    return width, height


def crop_and_flip(images: torch.Tensor, smallest: float, flip: bool, generator: torch.Generator) -> torch.Tensor:
    """A random crop of `smallest` to 1 of the area, aspect 3/4 to 4/3, resized back; half of them mirrored.

    Crops are distributed as torchvision's `RandomResizedCrop` has them on square images: the first of ten draws of area
    and aspect whose sides both fit, and the whole image where none does.
    """
    count = len(images)
    if smallest < 1:
        width, height = _crop_sides(count, smallest, generator)
        x = (_uniform(count, -1, 1, generator)) * (1 - width)
        y = (_uniform(count, -1, 1, generator)) * (1 - height)
    else:
        width = height = torch.ones(count)
        x = y = torch.zeros(count)
    sign = torch.where(_uniform(count, 0, 1, generator) < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * sign, x
    theta[:, 1, 1], theta[:, 1, 2] = height, y
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def jitter_colours(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Brightness, contrast, saturation and hue jitter of `strength` (hue as a rotation about the grey axis)."""
    count, shape = len(images), (-1, 1, 1, 1)
    device = images.device

    def factor() -> torch.Tensor:
        return _uniform(count, 1 - strength, 1 + strength, generator).view(shape).to(device)

    images = (images * factor()).clamp(0, 1)
    mean = _luma(images).mean((1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * factor()).clamp(0, 1)
    grey = _luma(images)
    images = (grey + (images - grey) * factor()).clamp(0, 1)
    angle = _uniform(count, -strength, strength, generator) * 2 * math.pi
    matrix = hue_rotation(angle).to(images.device)
    return torch.einsum("bij,bjhw->bihw", matrix, images).clamp(0, 1)


def hue_rotation(angle: torch.Tensor) -> torch.Tensor:
    """(B, 3, 3) rotations of RGB about the grey axis (1, 1, 1)/√3 by angles (B,) in radians (Rodrigues)."""
    cos, sin = angle.cos(), angle.sin()
    diagonal = cos + (1 - cos) / 3
    plus = (1 - cos) / 3 + sin / math.sqrt(3)
    minus = (1 - cos) / 3 - sin / math.sqrt(3)
    rows = [diagonal, minus, plus, plus, diagonal, minus, minus, plus, diagonal]
    return torch.stack(rows, dim=1).view(-1, 3, 3)
