"""`LatentDiffusion`: a frozen latent diffusion model from any Stable-Diffusion-type diffusers folder or hub id.

The same code path serves the embedded LDM and Stable Diffusion v1-4: what is read is `vae`, `unet`, `text_encoder`,
`tokenizer` and `scheduler`. Pixels are float in [-1, 1]; latents are scaled by the autoencoder's `scaling_factor`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from domainfusion.config import Precision
from domainfusion.devices import choose_dtype
from domainfusion.diffusion.ldm_folder import check_folder, embedded_folder, is_hub_id, read_styles
from domainfusion.diffusion.ldm_parts import quiet_libraries, refuse_missing, refuse_other_kinds
from domainfusion.errors import LDMError, NoLDM, show_note

# A GPU takes so many pixels at once: passes of less leave it idle between the starts of its kernels. A CPU is busy with
# 64 small images, and its memory is slower than its caches.
PIXELS_THAT_FILL_A_GPU = 2**22
LATENTS_AT_ONCE = 64
# The autoencoder takes so many pixels at once: at Stable Diffusion's size it needs a gigabyte and more for an image of
# 512 x 512, many times what the U-Net does, and gains nothing from more of them.
PIXELS_AT_ONCE = 2**20

LEAST_ALPHA = 2.0**-24  # of a noise schedule


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def posterior_mean(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """The means (B, C, h, w), not scaled, of the posteriors of images (B, 3, H, W); few images at once, if large."""
    few = max(1, PIXELS_AT_ONCE // (images.shape[-2] * images.shape[-1]))
    return _joined([vae.encode(part).latent_dist.mean for part in images.split(few)])


class LatentDiffusion:
    """A frozen LDM: encoder, decoder, prompted noise prediction, and its noise schedule.

    Args:
        vae, unet, text_encoder, tokenizer, scheduler: the parts, as diffusers and transformers load them.
        name: how runs and caches call it.
    """

    def __init__(
        self, vae: Any, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, *, name: str = "ldm",
        styles: tuple[str, ...] = (), device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        refuse_other_kinds(name, vae, unet, text_encoder)
        self.name, self.styles = name, styles
        self.device, self.dtype = torch.device(device), dtype
        layout = torch.channels_last
        # The encoder's derivative (slopes) needs float32; the U-Net is where the time goes.
        self.vae = vae.to(self.device, memory_format=layout).eval().requires_grad_(False)
        self.unet = unet.to(self.device, dtype, memory_format=layout).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(self.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        # (T,). A schedule that ends without any signal (`rescale_betas_zero_snr`) keeps a trace of it, as in diffusers'
        # solvers: dividing by none would give no numbers.
        self.alphas_cumprod = scheduler.alphas_cumprod.to(self.device, torch.float32).clamp_min(LEAST_ALPHA)
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.prediction_type = scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise LDMError(f"{name}: prediction_type {self.prediction_type!r} is not epsilon, v_prediction or sample")
        self.latent_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._embeddings: dict[str, torch.Tensor] = {}
        self._cut = False  # whether it was said that a prompt is too long
        self._fingerprint: tuple[Any, str] | None = None  # state of the weights, and what `fingerprint` said of it

    @classmethod
    def load(
        cls, source: str = "embedded", *, device: torch.device | str = "cpu", precision: Precision = "auto"
    ) -> LatentDiffusion:
        """The LDM at `source`: `embedded`, a diffusers folder, or a hub id.

        Raises:
            LDMError: a folder that is not Stable-Diffusion-like (naming the missing part), or a hub id out of reach.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from diffusers.schedulers import DDIMScheduler
        from transformers import CLIPTextModel, CLIPTokenizer

        where = str(embedded_folder()) if source == "embedded" else source
        if Path(where).exists():
            check_folder(Path(where))
        elif not is_hub_id(where):
            raise NoLDM(f"there is no folder {where}; give a diffusers folder, a hub id OWNER/NAME, or 'embedded'")
        device = torch.device(device)
        dtype = choose_dtype(precision, device)
        quiet_libraries()
        default = torch.get_default_dtype()
        try:
            kept = {"use_safetensors": True, "output_loading_info": True}
            vae, of_vae = AutoencoderKL.from_pretrained(where, subfolder="vae", torch_dtype=torch.float32, **kept)
            unet, of_unet = UNet2DConditionModel.from_pretrained(where, subfolder="unet", torch_dtype=dtype, **kept)
            text_encoder, of_text = CLIPTextModel.from_pretrained(
                where, subfolder="text_encoder", dtype=torch.float32, **kept
            )
            for part, info in (("vae", of_vae), ("unet", of_unet), ("text_encoder", of_text)):
                refuse_missing(part, info)  # the libraries make up what is not there, at random
            tokenizer = CLIPTokenizer.from_pretrained(where, subfolder="tokenizer")
            scheduler = DDIMScheduler.from_pretrained(where, subfolder="scheduler")
        except Exception as error:  # whatever configs, weights and vocabularies that are none make the libraries raise
            first = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
            if not Path(where).exists():  # the libraries' words are those of a file that the hub does not have
                first += "; is the name right, and the hub within reach? A folder that was fetched does as well"
            raise LDMError(f"the LDM {source} cannot be loaded: {first}") from error
        finally:  # where the libraries fail while they load, they leave the type of new tensors as they had set it
            torch.set_default_dtype(default)
        return cls(
            vae, unet, text_encoder, tokenizer, scheduler, name=source, styles=read_styles(Path(where)),
            device=device, dtype=dtype,
        )  # fmt: skip

    @property
    def image_size(self) -> int:
        """The image side in pixels that the U-Net was trained at."""
        size = self.unet.config.sample_size
        return int(size if isinstance(size, int) else size[0]) * self.latent_factor

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps of the noise schedule."""
        return len(self.alphas_cumprod)

    def at_once(self, wanted: int, pixels: int) -> int:
        """Latents of images of `pixels` pixels that the U-Net takes at once: as `wanted`, or for 0 as many as keep the
        device busy (64 on a CPU; on a GPU 1,024 of 64 pixels, 40 of 320, never fewer than 16)."""
        if wanted:
            return wanted
        if self.device.type == "cpu":
            return LATENTS_AT_ONCE
        return max(16, PIXELS_THAT_FILL_A_GPU // pixels**2)

    def fingerprint(self) -> str:
        """A hash of all weights and of the settings that decide what the LDM draws, for caches.

        The weights are read again only where one of them was changed since.
        """
        settings = [dict(self.scheduler.config), self.scaling_factor, self.shift, self.tokenizer.get_vocab()]
        text = json.dumps([str(self.dtype), settings], sort_keys=True, default=str)
        modules = (self.unet, self.vae, self.text_encoder)
        weights = [entry for module in modules for entry in sorted(module.state_dict().items())]
        state = (text, [(value.data_ptr(), value._version) for _, value in weights])
        if self._fingerprint is None or self._fingerprint[0] != state:
            digest = hashlib.sha256(text.encode())
            for name, value in weights:
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._fingerprint = state, digest.hexdigest()[:16]
        return self._fingerprint[1]

    @torch.no_grad()
    def prompt_embeds(self, prompts: list[str]) -> torch.Tensor:
        """(B, L, D) embeddings of prompts; each distinct prompt is encoded once in the life of the object."""
        new = sorted({prompt for prompt in prompts if prompt not in self._embeddings})
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            self._tell_cut(part)
            tokens = self.tokenizer(
                part, padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            )  # fmt: skip
            embeddings = self.text_encoder(tokens.input_ids.to(self.device))[0].to(self.dtype)
            self._embeddings.update(zip(part, embeddings, strict=True))
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    def _tell_cut(self, prompts: list[str]) -> None:
        """Say, once, that a prompt is longer than the text encoder reads, and which ones are one prompt to it then."""
        most = self.tokenizer.model_max_length
        read: dict[tuple[int, ...], str] = {}
        for prompt, tokens in zip(prompts, self.tokenizer(prompts, truncation=False).input_ids, strict=True):
            begin = tuple(tokens[: most - 1])
            other = read.setdefault(begin, prompt)
            if len(tokens) > most and not self._cut:
                self._cut = True
                show_note(f"{self.name} reads {most} tokens of a prompt; {prompt!r} has {len(tokens)}, and is cut")
            if len(tokens) > most and other != prompt:
                show_note(f"{self.name}: the prompts {other!r} and {prompt!r} are the same to it, being cut")

    def encode(self, images: torch.Tensor, *, exact: bool = True) -> torch.Tensor:
        """Scaled latents (B, C, h, w), the posterior's mean, of images (B, 3, H, W) in [-1, 1]; differentiable.

        Args:
            exact: in single precision, as slopes need it; otherwise in the LDM's own, which is faster.
        """
        images = images.to(self.device, self.vae.dtype).contiguous(memory_format=torch.channels_last)
        with single_precision(self.device) if exact else self._own_precision():
            mean = posterior_mean(self.vae, images).to(images.dtype)
        return (mean - self.shift) * self.scaling_factor

    def _own_precision(self) -> torch.autocast:
        """Autocast to the type that the U-Net has, for the autoencoder, whose weights are in float32."""
        half = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype if half else None, enabled=half)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W), about in [-1, 1], of scaled latents (B, C, h, w)."""
        latents = latents.to(self.vae.dtype) / self.scaling_factor + self.shift
        few = max(1, PIXELS_AT_ONCE // (latents.shape[-2] * latents.shape[-1] * self.latent_factor**2))
        with self._own_precision():
            parts = [self.vae.decode(part, return_dict=False)[0].to(latents.dtype) for part in latents.split(few)]
        return _joined(parts)

    def signal_and_noise(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """√ᾱ_t and √(1-ᾱ_t) of timesteps (B,), each (B, 1, 1, 1)."""
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """z_t = √ᾱ_t z + √(1-ᾱ_t) ε, (B, C, h, w)."""
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * latents + sigma * noise

    def predict_noise(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """ε_φ(z_t, t, c) in float32 (B, C, h, w), whatever the U-Net's own prediction type."""
        layout = noisy_latents.to(self.dtype).contiguous(memory_format=torch.channels_last)
        output = self.unet(layout, timesteps, prompt_embeds.to(self.dtype), return_dict=False)[0]
        output = output.to(noisy_latents.dtype if noisy_latents.dtype == torch.float64 else torch.float32)
        if self.prediction_type == "epsilon":
            return output
        signal, sigma = self.signal_and_noise(timesteps)
        if self.prediction_type == "v_prediction":
            return signal * output + sigma * noisy_latents
        return (noisy_latents - signal * output) / sigma


@contextlib.contextmanager
def single_precision(device: torch.device) -> Iterator[None]:
    """Convolutions in float32 proper: by default GPUs since Ampere round its factors to 10 bits (TF32), which leaves
    hardly anything of a difference along p."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and device.type != "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
