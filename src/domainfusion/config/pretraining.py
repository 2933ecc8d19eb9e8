"""The training of an LDM."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import STRICT, Count, Seed, Share, Weight


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PretrainConfig:
    """Options of `domainfusion pretrain`: the autoencoder first, then the denoiser on its latents."""

    size: Annotated[int, Field(ge=8)] = 64
    """Image size in pixels."""
    init: str = ""
    """LDM to go on from (embedded, a folder, a hub id): its tokenizer stays, its denoiser trains."""
    device: str = "auto"
    """Where to compute: auto (the first GPU, or the CPU), cpu, cuda, cuda:1, ..."""
    tune_vae_steps: Annotated[int, Field(ge=0)] = 0
    """With init: optimizer steps of its autoencoder, held to the latents that it gave (0: it stays as it is)."""
    seed: Seed = 0
    """Seed of weights, batches and noise."""
    latent_channels: Count = 16
    """Channels of the latent; its side is size / 2^(levels - 1)."""
    vae_channels: tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...] = (16, 48, 96, 160)
    """Widths of the autoencoder's levels."""
    vae_steps: Count = 6000
    """Optimizer steps of the autoencoder."""
    vae_batch_size: Count = 16
    """Images in a step of the autoencoder."""
    vae_lr: Annotated[float, Field(gt=0)] = 1.5e-3
    """Learning rate of the autoencoder."""
    fade: Share = 0.5
    """Share of a step's images that the autoencoder also sees with less contrast, as latent distillation shows them."""
    kl_weight: Weight = 1e-4
    """Weight of the KL term."""
    unet_channels: tuple[Annotated[int, Field(ge=32, multiple_of=32)], ...] = (128, 256)
    """Widths of the U-Net's levels."""
    unet_steps: Annotated[int, Field(ge=0)] = 20_000
    """Optimizer steps of the denoiser (0: it stays as it is)."""
    unet_batch_size: Count = 64
    """Latents in a step of the denoiser."""
    unet_lr: Annotated[float, Field(gt=0)] = 6e-4
    """Learning rate of the denoiser."""
    weight_decay: Weight = 0.01
    """Weight decay of the denoiser."""
    min_snr: Annotated[float, Field(gt=0)] = 5.0
    """Gamma of the min-SNR loss weight (arXiv 2303.09556)."""
    caption_dropout: Share = 0.1
    """Share of captions emptied for classifier-free guidance."""
    recolour: Share = 0.5
    """Share of monochrome drawings recoloured for the denoiser, their captions naming the colours."""
    hue: Share = 0.1
    """Share of coloured drawings whose channels are permuted for the denoiser."""
    freeze_text: bool = False
    """Keep the text encoder as it is (with init)."""
    vocabulary: Annotated[int, Field(ge=256)] = 4096
    """Size of the tokenizer's vocabulary."""
    text_length: Annotated[int, Field(ge=4)] = 20
    """Tokens in a prompt."""
    text_width: Annotated[int, Field(ge=32, multiple_of=32)] = 160
    """Width of the text encoder."""
    text_layers: Count = 3
    """Layers of the text encoder."""
    pool_size: Count = 65_536
    """Augmented images encoded ahead at a time."""
    pool_epochs: Count = 4
    """Epochs over a pool before the next is encoded."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the exponential moving average."""
    decay: Share = 0.25
    """Share of the steps, at the end, over which the learning rate falls to 0."""
    log_every: Count = 20
    """Steps from one line in metrics.jsonl to the next."""
    save_every: Count = 500
    """Steps from one saved state, validation and sample sheet to the next."""

    @model_validator(mode="after")
    def _levels_halve_the_size(self) -> PretrainConfig:
        factor = 2 ** (len(self.vae_channels) - 1)
        if not self.init and self.size % factor:
            raise ValueError(f"size {self.size} is no multiple of {factor}, which {len(self.vae_channels)} levels need")
        return self
