"""First stage of pretraining: the autoencoder (diffusers' `AutoencoderKL`) of an LDM.

Loss: mean |x - x̂| + mean (x - x̂)² + mean |∇x - ∇x̂| + `kl_weight`·KL (Rombach et al., arXiv 2112.10752, without their
perceptual and adversarial terms: drawings have few textures, and edges are what a candidate is recognised by).

A part of the images is also shown faded towards grey. Latent distillation encodes such images, and an encoder that has
seen drawings at full contrast alone maps them anywhere.

An autoencoder that a denoiser knows already is trained on with its latents held: + ½·mean (μ(x) - μ₀(x))²/var(μ₀) over
the unfaded images, μ₀ the posterior means it had. The denoiser then still fits.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from domainfusion.config import PretrainConfig
from domainfusion.devices import choose_device
from domainfusion.diffusion.corpus import Corpus, augment
from domainfusion.diffusion.optimization import (
    Averaged,
    build_optimizer,
    learning_rate_factor,
    resume_training,
    save_training,
)
from domainfusion.errors import TrainingError
from domainfusion.interruption import check, requested
from domainfusion.json_lines import append_json_line, keep_json_lines
from domainfusion.seeding import derive_numpy_rng

HOLD = 0.5  # weight of the latents' drift when a known autoencoder is trained on
FADED = 0.2  # contrast at which reconstruction is also measured


def build_autoencoder(config: PretrainConfig) -> AutoencoderKL:
    """An untrained autoencoder: one level per entry of `vae_channels`, each but the last halving the resolution."""
    levels = len(config.vae_channels)
    return AutoencoderKL(
        block_out_channels=tuple(config.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=config.latent_channels,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=config.size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def autoencoder_loss(
    model: Any, images: torch.Tensor, generator: torch.Generator, kl_weight: float, held: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the module's docstring and the mean squared error, both scalars.

    Args:
        images: (B, 3, S, S) in [-1, 1].
        held: (b, C, h, w) posterior means that the first b images are to keep.
    """
    posterior = model.encode(images).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    latents = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator).to(mean.device)
    decoded = model.decode(latents, return_dict=False)[0].float()
    error = decoded - images
    across, down = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    squared = error.square().mean()
    loss = error.abs().mean() + squared + across + down + kl_weight * kl
    if held is not None:
        loss = loss + HOLD * (mean[: len(held)] - held).square().mean() / held.var()
    return loss, squared


def fade_images(images: torch.Tensor, rng: np.random.Generator, share: float) -> torch.Tensor:
    """(round(share·B), 3, S, S): the first of images (B, 3, S, S) in [-1, 1], times a contrast of 0 to 1 each."""
    count = round(share * len(images))
    contrast = torch.from_numpy(rng.uniform(0, 1, count)).float().view(-1, 1, 1, 1)
    return images[:count] * contrast


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderKL, images: np.ndarray, batch: int = 64, *, contrast: float = 1.0) -> float:
    """Mean PSNR in dB of the reconstruction of images (N, S, S, 3) uint8, faded to `contrast`, by posterior means."""
    values: list[float] = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
        x = (x * contrast).to(model.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(model.device.type, torch.bfloat16):
            decoded = model.decode(model.encode(x).latent_dist.mean, return_dict=False)[0].float().clamp(-1, 1)
        squared = ((decoded - x) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
        values += (-10 * squared.log10()).tolist()
    return float(np.mean(values))


@torch.no_grad()
def save_reconstructions(model: AutoencoderKL, images: np.ndarray, path: Path) -> None:
    """A sheet of images (uint8) above their reconstructions."""
    x = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    decoded = model.decode(model.encode(x.to(model.device)).latent_dist.mean, return_dict=False)[0].float().clamp(-1, 1)
    back = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    Image.fromarray(np.concatenate([np.concatenate(list(images), 1), np.concatenate(list(back), 1)], 0)).save(path)


def train_autoencoder(
    corpus: Corpus, config: PretrainConfig, folder: Path, known: AutoencoderKL | None = None
) -> AutoencoderKL:
    """The trained autoencoder (its exponential moving average); resumes from `folder` where that holds a state.

    Args:
        known: one to go on from, for `tune_vae_steps` with its latents held; without it a new one is trained.

    Raises:
        TrainingError: the loss is not finite; the last saved state is kept.
    """
    torch.manual_seed(config.seed)
    total = config.vae_steps if known is None else config.tune_vae_steps
    model = build_autoencoder(config) if known is None else copy.deepcopy(known).requires_grad_(True).train()
    device = choose_device(config.device)
    model = model.to(device=device, memory_format=torch.channels_last)
    if known is not None:
        known.to(device)
    optimizer = build_optimizer(model.parameters(), config.vae_lr, weight_decay=0.0)
    averaged = Averaged(model, config.ema)
    state_path = folder / "autoencoder-state.safetensors"
    start = resume_training(state_path, model, optimizer, averaged)
    keep_json_lines(folder / "metrics.jsonl", lambda r: r["stage"] != "autoencoder" or r["step"] <= start)
    held_out = corpus.held_out
    training, validation = corpus.select(~held_out), corpus.select(held_out)
    probability = training.weight / training.weight.sum()
    clock = time.monotonic()
    for step in range(start, total):
        rng = derive_numpy_rng("autoencoder", config.seed, step)
        chosen = rng.choice(len(training), config.vae_batch_size, p=probability)
        images, _ = augment(training.images[chosen], rng, hue=0.4)
        shown = torch.cat([images, fade_images(images, rng, config.fade)])
        shown = shown.to(device).contiguous(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        for group in optimizer.param_groups:
            group["lr"] = config.vae_lr * learning_rate_factor(step, total, config.decay)
        with torch.autocast(device.type, torch.bfloat16):
            held = None
            if known is not None:
                with torch.no_grad():
                    held = known.encode(shown[: len(images)]).latent_dist.mean.float()
            loss, squared = autoencoder_loss(model, shown, generator, config.kl_weight, held)
        if not torch.isfinite(loss):
            raise TrainingError(f"the autoencoder's loss is {loss.item()} at step {step}; lower --vae-lr and resume")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update(model)
        done = step + 1
        if done % config.log_every == 0 or done == total:
            record = {"stage": "autoencoder", "step": done, "loss": loss.item(), "mse": squared.item(),
                      "seconds": time.monotonic() - clock}  # fmt: skip
            append_json_line(folder / "metrics.jsonl", record)
        due = done % config.save_every == 0 or done == total
        if due:  # recorded before it is saved: a resumed training drops what was recorded after its state, and no more
            with averaged.applied_to(model):
                psnr = reconstruction_psnr(model, validation.images[:512])
                faded = reconstruction_psnr(model, validation.images[:512], contrast=FADED)
                save_reconstructions(model, validation.images[:16], folder / f"autoencoder-{done:06d}.png")
            record = {"stage": "autoencoder", "step": done, "held_out_psnr": psnr, "held_out_faded_psnr": faded}
            append_json_line(folder / "metrics.jsonl", record)
        if due or requested():
            save_training(state_path, model, optimizer, averaged, done)
            check()
    averaged.copy_to(model)
    return model.cpu().eval().requires_grad_(False)
