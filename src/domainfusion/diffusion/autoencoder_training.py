"""First stage of pretraining: the autoencoder (diffusers' `AutoencoderKL`) of an LDM.

Loss: mean |x - x̂| + mean (x - x̂)² + mean |∇x - ∇x̂| + `kl_weight`·KL (Rombach et al., arXiv 2112.10752, without their
perceptual and adversarial terms: drawings have few textures, and edges are what a candidate is recognised by).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from domainfusion.config import PretrainConfig
from domainfusion.diffusion.corpus import Corpus, augment
from domainfusion.diffusion.optimization import (
    Averaged,
    build_optimizer,
    learning_rate_factor,
    resume_training,
    save_training,
)
from domainfusion.errors import TrainingError
from domainfusion.files import append_json_line, keep_json_lines
from domainfusion.interruption import check, requested
from domainfusion.seeding import derive_numpy_rng


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
    model: Any, images: torch.Tensor, generator: torch.Generator, kl_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the module's docstring and the mean squared error, both scalars.

    Args:
        images: (B, 3, S, S) in [-1, 1].
    """
    posterior = model.encode(images).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    latents = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
    decoded = model.decode(latents, return_dict=False)[0].float()
    error = decoded - images
    across, down = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    squared = error.square().mean()
    return error.abs().mean() + squared + across + down + kl_weight * kl, squared


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderKL, images: np.ndarray, batch: int = 64) -> float:
    """Mean PSNR in dB of the reconstruction of images (N, S, S, 3) uint8 from their posterior means."""
    values: list[float] = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(model.encode(x).latent_dist.mean, return_dict=False)[0].float().clamp(-1, 1)
        squared = ((decoded - x) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
        values += (-10 * squared.log10()).tolist()
    return float(np.mean(values))


@torch.no_grad()
def save_reconstructions(model: AutoencoderKL, images: np.ndarray, path: Path) -> None:
    """A sheet of images (uint8) above their reconstructions."""
    x = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    decoded = model.decode(model.encode(x).latent_dist.mean, return_dict=False)[0].float().clamp(-1, 1)
    back = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    Image.fromarray(np.concatenate([np.concatenate(list(images), 1), np.concatenate(list(back), 1)], 0)).save(path)


def train_autoencoder(corpus: Corpus, config: PretrainConfig, folder: Path) -> AutoencoderKL:
    """The trained autoencoder (its exponential moving average); resumes from `folder` where that holds a state.

    Raises:
        TrainingError: the loss is not finite; the last saved state is kept.
    """
    torch.manual_seed(config.seed)
    model = build_autoencoder(config).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model.parameters(), config.vae_lr, weight_decay=0.0)
    averaged = Averaged(model, config.ema)
    state_path = folder / "autoencoder-state.safetensors"
    start = resume_training(state_path, model, optimizer, averaged)
    keep_json_lines(folder / "metrics.jsonl", lambda r: r["stage"] != "autoencoder" or r["step"] <= start)
    held_out = corpus.held_out
    training, validation = corpus.select(~held_out), corpus.select(held_out)
    probability = training.weight / training.weight.sum()
    clock = time.monotonic()
    for step in range(start, config.vae_steps):
        rng = derive_numpy_rng("autoencoder", config.seed, step)
        chosen = rng.choice(len(training), config.vae_batch_size, p=probability)
        images, _ = augment(training.images[chosen], rng, hue=0.4)
        images = images.contiguous(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        for group in optimizer.param_groups:
            group["lr"] = config.vae_lr * learning_rate_factor(step, config.vae_steps, config.decay)
        with torch.autocast("cpu", torch.bfloat16):
            loss, squared = autoencoder_loss(model, images, generator, config.kl_weight)
        if not torch.isfinite(loss):
            raise TrainingError(f"the autoencoder's loss is {loss.item()} at step {step}; lower --vae-lr and resume")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update(model)
        done = step + 1
        if done % config.log_every == 0 or done == config.vae_steps:
            record = {"stage": "autoencoder", "step": done, "loss": loss.item(), "mse": squared.item(),
                      "seconds": time.monotonic() - clock}  # fmt: skip
            append_json_line(folder / "metrics.jsonl", record)
        due = done % config.save_every == 0 or done == config.vae_steps
        if due:  # recorded before it is saved: a resumed training drops what was recorded after its state, and no more
            with averaged.applied_to(model):
                psnr = reconstruction_psnr(model, validation.images[:512])
                save_reconstructions(model, validation.images[:16], folder / f"autoencoder-{done:06d}.png")
            append_json_line(folder / "metrics.jsonl", {"stage": "autoencoder", "step": done, "held_out_psnr": psnr})
        if due or requested():
            save_training(state_path, model, optimizer, averaged, done)
            check()
    averaged.copy_to(model)
    return model.eval().requires_grad_(False)
