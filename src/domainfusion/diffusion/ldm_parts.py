"""The parts of an LDM as the libraries load them: quietly, whole, and those of a Stable-Diffusion-type LDM at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainfusion.errors import LDMError


def refuse_missing(part: str, info: Mapping[str, Any]) -> None:
    """Raise `LDMError` where a library's account of what it loaded says that weights of a part are missing."""
    lacking = [*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise LDMError(f"{part} lacks the weights {sorted(map(str, lacking))[0]}{more}, or has them in another form")


def refuse_other_kinds(name: str, vae: Any, unet: Any, text_encoder: Any) -> None:
    """Raise `LDMError` where autoencoder, U-Net and text encoder do not fit together, or ask for more than a prompt."""
    if getattr(unet.config, "addition_embed_type", None):
        raise LDMError(f"{name}: its U-Net asks for more than a prompt ({unet.config.addition_embed_type}, as SDXL's)")
    for option in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if getattr(unet.config, option, None) is not None:
            raise LDMError(f"{name}: its U-Net asks for more than a prompt ({option}, as unCLIP's or LCM's)")
    if unet.config.out_channels != unet.config.in_channels:
        raise LDMError(
            f"{name}: its U-Net gives {unet.config.out_channels} channels for {unet.config.in_channels} (a learned "
            "variance?)"
        )
    if unet.config.sample_size is None:
        raise LDMError(f"{name}: unet/config.json does not say at which size it was trained (sample_size)")
    read, given = unet.config.cross_attention_dim, text_encoder.config.hidden_size
    if set(read if isinstance(read, (list, tuple)) else [read]) != {given}:  # one width, or one for each block
        raise LDMError(f"{name}: its U-Net reads prompts of {read} numbers, and its text encoder gives {given}")
    if unet.config.in_channels != vae.config.latent_channels:
        raise LDMError(
            f"{name}: its U-Net takes {unet.config.in_channels} channels and its latents have "
            f"{vae.config.latent_channels} (an inpainting model?)"
        )


def quiet_libraries() -> None:
    """Keep the libraries' loading bars and casting remarks off a user's screen; their errors still show."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
