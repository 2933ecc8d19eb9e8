"""Pictures of "LD noise": where in an image the LDM's noise residual lies (Fig. 3 and 4 of the paper's supplement)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from domainfusion.config import DistillConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize, to_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.slopes import SlopeEstimator, draw
from domainfusion.files import write_text
from domainfusion.picture_grid import Row, fitting, picture_grid, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6  # images beside each other, so that their names can be read on a page


@torch.no_grad()
def noise_maps(
    estimator: SlopeEstimator, images: torch.Tensor, prompts: list[str], *, samples: int = 8, seed: int = 0
) -> torch.Tensor:
    """(B, H, W) in [0, 1]: how much the mean residual, taken back to pixels, would change each pixel.

    The residual r̄ (mean of √ᾱ_t·r over stratified draws) is a direction in latent space; its image in pixels is the
    decoder's response to a small step along it, |D(z + s·r̄) - D(z)|, summed over the channels, each map scaled to 1.

    Args:
        images: (B, 3, H, W) in [-1, 1].
    """
    ldm = estimator.ldm
    config = DistillConfig(samples=samples, min_timestep=0.1, max_timestep=0.7)
    draws = draw(ldm, len(images), images.shape[-1], config, torch.Generator().manual_seed(seed))
    embeds = ldm.prompt_embeds(prompts)
    latents = ldm.encode(images.to(ldm.device))
    mean = torch.zeros_like(latents)
    for timesteps, noise in zip(draws.timesteps, draws.noise, strict=True):
        signal, _ = ldm.signal_and_noise(timesteps)
        mean += signal * estimator.noise_residual(latents, embeds, timesteps, noise) / samples
    size = mean.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-8)
    step = 0.2 * latents.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * mean / size
    change = (ldm.decode(latents + step) - ldm.decode(latents)).abs().sum(1)  # (B, H, W)
    top = torch.quantile(change.flatten(1), 0.99, dim=1).view(-1, 1, 1).clamp_min(1e-8)
    return (change / top).clamp(0, 1).cpu()


def noise_figure(images: torch.Tensor, maps: torch.Tensor, names: Sequence[str], notes: str = "") -> Figure:
    """Images (B, 3, H, W) in [-1, 1] above their maps (B, H, W), and below these B names; a few beside each other."""
    from matplotlib import colormaps

    pixels = list(to_uint8(images))
    heat = list((colormaps["magma"](maps.numpy())[..., :3] * 255).round().astype(np.uint8))
    rows = []
    for first in range(0, len(names), COLUMNS):
        part = slice(first, first + COLUMNS)
        rows += [Row("image", pixels[part], apart=True), Row("LD noise", heat[part], names[part])]
    return picture_grid(rows, title="Latent distillation noise", notes=notes)


def write_noise_sheet(
    folder: Path, estimator: SlopeEstimator, dataset: MultiDomainDataset, rows: Sequence[int], prompts: list[str],
    size: int,
) -> None:  # fmt: skip
    """Write `ld_noise.png`, images of rows (n,) above where the LDM's residual lies, and `ld_noise.txt`, their names.

    Args:
        prompts: one for each row.
        size: of images at the LDM, in pixels.
    """
    images = resize(from_uint8(dataset.images[list(rows)]), size)
    maps = noise_maps(estimator, images, prompts)
    names = [(dataset.classes[dataset.labels[r]], dataset.domains[dataset.domain_of[r]]) for r in rows]
    residual = estimator.config.residual
    figure = noise_figure(
        images, maps, [fitting(name, f"from {domain}") for name, domain in names],
        "What the LDM would change, given the class; bright is much.\n"
        f"Each map has its own scale. Residual: {residual}.",
    )  # fmt: skip
    save_figure(figure, folder / "ld_noise.png", dpi=110)
    listed = ", ".join(f"{name} ({domain})" for name, domain in names)
    write_text(folder / "ld_noise.txt", f"residual: {residual}; from left to right, row by row: {listed}\n")


@torch.no_grad()
def prior_pictures(
    ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], *, time: float = 0.5, samples: int = 4,
    seed: int = 0,
) -> torch.Tensor:  # fmt: skip
    """(B, 3, H, W) in [-1, 1]: what the LDM takes images for in one step, given prompts (Fig. 2: "LDM prior").

    The decoded mean over draws of ẑ_0 = (z_t - √(1-ᾱ_t) ε_φ(z_t, t, c))/√ᾱ_t, the clean latents that the predicted
    noise leaves.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        time: the timestep t as a share of the noise schedule: the later, the less of the image is left to go by.
        samples: draws of ε, the same for all images.
    """
    latents = ldm.encode(images.to(ldm.device))
    embeds = ldm.prompt_embeds(prompts)
    timesteps = torch.full((len(images),), round(time * (ldm.num_train_timesteps - 1)), device=ldm.device)
    signal, sigma = ldm.signal_and_noise(timesteps)
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros_like(latents)
    for _ in range(samples):
        noise = torch.randn(latents.shape[1:], generator=generator).to(latents).expand_as(latents)
        noisy = ldm.add_noise(latents, noise, timesteps)
        mean += (noisy - sigma * ldm.predict_noise(noisy, timesteps, embeds)) / signal / samples
    return ldm.decode(mean).clamp(-1, 1).cpu()
