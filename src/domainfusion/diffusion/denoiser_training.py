"""Second stage of pretraining: the U-Net and the text encoder of an LDM, on latents encoded ahead.

Loss: E min(SNR_t, γ)/SNR_t · ‖ε - ε_φ(z_t, t, c)‖² (Ho et al. 2020, weighted by min-SNR, Hang et al. 2023, arXiv
2303.09556), captions dropped for classifier-free guidance. The autoencoder is frozen, so its work is done once per
*pool* of augmented images rather than once per step: a pool is drawn by the corpus's weights, encoded, and used for
`pool_epochs` epochs before the next one is drawn.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from domainfusion.config import PretrainConfig
from domainfusion.devices import choose_device
from domainfusion.diffusion.corpus import Corpus, augment, compose_caption
from domainfusion.diffusion.ldm import posterior_mean
from domainfusion.diffusion.optimization import (
    Averaged,
    WorkingCopy,
    build_optimizer,
    learning_rate_factor,
    resume_training,
    save_training,
)
from domainfusion.errors import TrainingError
from domainfusion.files import write_json
from domainfusion.interruption import check, requested
from domainfusion.json_lines import append_json_line, keep_json_lines
from domainfusion.seeding import derive_numpy_rng
from domainfusion.tensors import load_newest, save_state

# The U-Net takes so many latent pixels at once where only a loss is measured: 16 images of 512 x 512.
LATENT_PIXELS_AT_ONCE = 2**16


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion v1's noise schedule: 1,000 scaled-linear betas from 0.00085 to 0.012, ε-prediction."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip


def build_unet(config: PretrainConfig) -> UNet2DConditionModel:
    """An untrained denoiser: cross-attention at every level, one level per entry of `unet_channels`."""
    levels = len(config.unet_channels)
    return UNet2DConditionModel(
        sample_size=config.size // 2 ** (len(config.vae_channels) - 1),
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=tuple(config.unet_channels),
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
        cross_attention_dim=config.text_width,
        attention_head_dim=[channels // 32 for channels in config.unet_channels],
        norm_num_groups=16,
    )


class Denoiser(torch.nn.Module):
    """U-Net and text encoder as one module, so that optimizer and average see both."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """The predicted noise (B, C, h, w) for noisy latents (B, C, h, w), timesteps (B,), token_ids (B, L)."""
        prompt_embeds = self.text_encoder(token_ids)[0]  # (B, L, D)
        return self.unet(noisy, timesteps, prompt_embeds, return_dict=False)[0]


def min_snr_weight(alphas_cumprod: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR_t, γ)/SNR_t for every timestep, SNR_t = ᾱ_t/(1-ᾱ_t); 1 where nothing of the signal is left."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return (gamma / snr).clamp(max=1)


def scaled_latents(vae: AutoencoderKL, means: torch.Tensor) -> torch.Tensor:
    """The denoiser's latents (B, C, h, w) of the posterior's means, by the autoencoder's shift and scaling factor."""
    return (means.float() - (vae.config.get("shift_factor") or 0.0)) * vae.config["scaling_factor"]


def pool_images(config: PretrainConfig, images: int) -> int:
    """Augmented images of a pool: `pool_size`, but no more than 16 of each image where that is 1,024 or more."""
    return min(config.pool_size, max(1024, 16 * images))


@torch.no_grad()
def encode_pool(
    vae: AutoencoderKL, corpus: Corpus, config: PretrainConfig, number: int, folder: Path
) -> dict[str, Any]:
    """Pool `number`: latents (P, C, h, w) in half precision, source `index` (P,), colour words; kept in `folder`."""
    path = folder / f"pool-{number:03d}.safetensors"
    if (kept := load_newest([path], required=False)) is not None:
        return kept
    probability = corpus.weight / corpus.weight.sum()
    rng = derive_numpy_rng("pool", config.seed, number)
    count = pool_images(config, len(corpus))
    index = rng.choice(len(corpus), count, p=probability)
    latents, colours = [], []
    for start in tqdm(range(0, count, 128), desc=f"encoding {count:,} augmented images", leave=False):
        check()
        images, words = augment(
            corpus.images[index[start : start + 128]], rng, recolour=config.recolour, hue=config.hue
        )
        images = images.to(vae.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(vae.device.type, torch.bfloat16):
            latents.append(posterior_mean(vae, images).half().cpu())
        colours += words
    pool = {"latents": torch.cat(latents), "index": torch.from_numpy(index), "colours": colours}
    for old in folder.glob("pool-*.safetensors"):
        old.unlink()
    save_state(path, pool)
    return pool


@torch.no_grad()
def validation_loss(
    denoiser: Denoiser, latents: torch.Tensor, token_ids: torch.Tensor, scheduler: DDIMScheduler
) -> float:
    """Mean squared error of the predicted noise (unweighted) at fixed draws: stratified timesteps, one noise each.

    Latents (N, C, h, w) and token_ids (N, L) lie on the CPU; the denoiser's device computes.
    """
    device = denoiser.unet.device
    generator = torch.Generator().manual_seed(0)
    count, total = len(latents), scheduler.config["num_train_timesteps"]
    timesteps = (((torch.arange(count) + 0.5) / count) * total).long()[torch.randperm(count, generator=generator)]
    noise = torch.randn(latents.shape, generator=generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    losses = []
    few = min(64, max(1, LATENT_PIXELS_AT_ONCE // latents[0, 0].numel()))
    for part in torch.arange(count).split(few):
        with torch.autocast(device.type, torch.bfloat16):
            predicted = denoiser(noisy[part].to(device), timesteps[part].to(device), token_ids[part].to(device))
        losses.append((predicted.float().cpu() - noise[part]).square().mean((1, 2, 3)))
    return float(torch.cat(losses).mean())


def _tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def build_pipeline(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, denoiser: Denoiser, scheduler: DDIMScheduler
) -> StableDiffusionPipeline:
    """The parts as one diffusers pipeline."""
    return StableDiffusionPipeline(
        vae=vae, text_encoder=denoiser.text_encoder, tokenizer=tokenizer, unet=denoiser.unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def save_samples(pipeline: StableDiffusionPipeline, prompts: list[str], size: int, path: Path) -> None:
    """Rows of eight text-to-image samples, one for each prompt, from fixed noise."""
    from PIL import Image

    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompts, height=size, width=size, num_inference_steps=20, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).images  # fmt: skip
    wide = min(8, len(images))
    rows = [np.concatenate(list(images[i : i + wide]), 1) for i in range(0, len(images) - wide + 1, wide)]
    Image.fromarray((np.concatenate(rows, 0) * 255).round().astype(np.uint8)).save(path)


def predict_noise(
    working: WorkingCopy, noisy: torch.Tensor, timesteps: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """The working copy's prediction (B, C, h, w) in float32, as `Denoiser` makes it, ready for its derivative."""
    noisy = noisy.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    # On a CPU the backward pass of fused attention takes ten times that of plain products at these lengths (64).
    with sdpa_kernel(SDPBackend.MATH) if noisy.device.type == "cpu" else contextlib.nullcontext():
        found: torch.Tensor = working.module(noisy, timesteps, token_ids)
    return found.float()


def follow_gradient(
    loss: torch.Tensor, denoiser: Denoiser, working: WorkingCopy, optimizer: torch.optim.Optimizer, averaged: Averaged
) -> None:
    """One step of the optimizer down a loss of the working copy (gradients clipped to norm 1), and of the average."""
    loss.backward()
    working.give_gradients()
    torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
    optimizer.step()
    working.take_values()
    averaged.update(denoiser)


def train_denoiser(
    corpus: Corpus, vae: AutoencoderKL, tokenizer: CLIPTokenizer, denoiser: Denoiser, config: PretrainConfig,
    folder: Path, prompts: list[str], scheduler: DDIMScheduler,
) -> Denoiser:  # fmt: skip
    """`denoiser`, trained (its exponential moving average); resumes from `folder` where that holds a state.

    Args:
        scheduler: whose noise schedule the denoiser learns, or knows from the LDM that it goes on from.

    Raises:
        TrainingError: the loss is not finite; the last saved state is kept.
    """
    device = choose_device(config.device)
    vae.to(device)
    denoiser.to(device).unet.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(denoiser.parameters(), config.unet_lr, config.weight_decay)
    averaged = Averaged(denoiser, config.ema)
    state_path = folder / "denoiser-state.safetensors"
    start = resume_training(state_path, denoiser, optimizer, averaged)
    working = WorkingCopy(denoiser)
    keep_json_lines(folder / "metrics.jsonl", lambda r: r["stage"] != "denoiser" or r["step"] <= start)
    held_out = corpus.held_out
    training, validation = corpus.select(~held_out), corpus.select(held_out)
    weights = min_snr_weight(scheduler.alphas_cumprod, config.min_snr).to(device)
    size = pool_images(config, len(training))
    steps_per_pool = max(1, size * config.pool_epochs // config.unet_batch_size)
    held_images = torch.from_numpy(validation.images[:512].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        held_latents = torch.cat([posterior_mean(vae, part.to(device)).cpu() for part in held_images.split(128)])
    parts = zip(validation.text, validation.category, validation.style, strict=True)
    captions = [", ".join(word for word in part if word) for part in parts][:512]
    held_tokens = _tokens(tokenizer, captions)
    pool: dict = {}
    clock, loaded = time.monotonic(), -1
    for step in range(start, config.unet_steps):
        if step // steps_per_pool != loaded:
            if loaded >= 0:  # a signal may end the encoding
                save_training(state_path, denoiser, optimizer, averaged, step)
            loaded = step // steps_per_pool
            pool = encode_pool(vae, training, config, loaded, folder)
            if vae.config["scaling_factor"] == 1.0 and not config.init:
                # Latents of unit variance, as SD's 0.18215 gives them; measured once, on the first pool. A denoiser
                # that goes on knows the latents of its LDM as they are, whatever their scale.
                factor = 1 / float(pool["latents"].float().std())
                vae.register_to_config(scaling_factor=factor)
                write_json(folder / "scaling.json", factor)
        rng = derive_numpy_rng("denoiser", config.seed, step)
        chosen = rng.integers(0, size, config.unet_batch_size)
        texts = [
            compose_caption(training, int(pool["index"][i]), pool["colours"][i], rng, config.caption_dropout)
            for i in chosen
        ]
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        latents = scaled_latents(vae, pool["latents"][torch.from_numpy(chosen)])  # (B, C, h, w)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, len(weights), (len(latents),), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps).to(device)
        noise, timesteps, token_ids = noise.to(device), timesteps.to(device), _tokens(tokenizer, texts).to(device)
        for group in optimizer.param_groups:
            group["lr"] = config.unet_lr * learning_rate_factor(step, config.unet_steps, config.decay)
        predicted = predict_noise(working, noisy, timesteps, token_ids)
        per_sample = (predicted - noise).square().mean((1, 2, 3))  # (B,)
        loss = (weights[timesteps] * per_sample).mean()
        if not torch.isfinite(loss):
            raise TrainingError(f"the denoiser's loss is {loss.item()} at step {step}; lower --unet-lr and resume")
        follow_gradient(loss, denoiser, working, optimizer, averaged)
        done = step + 1
        if done % config.log_every == 0 or done == config.unet_steps:
            record = {"stage": "denoiser", "step": done, "loss": loss.item(), "mse": per_sample.mean().item(),
                      "seconds": time.monotonic() - clock}  # fmt: skip
            append_json_line(folder / "metrics.jsonl", record)
        due = done % config.save_every == 0 or done == config.unet_steps
        if due:  # recorded before it is saved: a resumed training drops what was recorded after its state, and no more
            with averaged.applied_to(denoiser), torch.no_grad():
                held = validation_loss(denoiser, scaled_latents(vae, held_latents), held_tokens, scheduler)
                if prompts:
                    save_samples(build_pipeline(vae, tokenizer, denoiser, scheduler), prompts, config.size,
                                 folder / f"samples-{done:06d}.png")  # fmt: skip
            append_json_line(folder / "metrics.jsonl", {"stage": "denoiser", "step": done, "held_out_mse": held})
        if due or requested():
            save_training(state_path, denoiser, optimizer, averaged, done)
            check()
    averaged.copy_to(denoiser)
    vae.cpu()
    return denoiser.cpu().eval().requires_grad_(False)
