"""Heat maps of words on images, from an LDM's own cross-attention (DAAM: Tang et al. 2022, arXiv 2210.04885).

In every cross-attention layer each place of the latents (x, y) spreads one unit of attention over the L tokens of the
prompt: softmax_k(Q K^T/√d). DAAM's map of token k is the sum of these probabilities over heads, layers and timesteps,
each upsampled (bicubic) to the image's size. Here the sum is divided by its number of terms, so that a value is the
mean share of attention that a place gives to the token, and the maps of a prompt's L tokens add up to one (but for
the clamping of what bicubic interpolation makes negative). As in the paper, the layers are those of the blocks on the
way down and up; the block in the middle, which hardly knows of places, is left out.

DAAM records while an image is generated (`generation_heat_maps`). For an image that exists, its latents are noised to
a few timesteps instead and passed through the U-Net once each (`heat_maps`), which needs no generation.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import LDMError, UsageError

# Shares of the noise schedule that a stored image is noised to. Above, nothing of the image is left to attend to.
TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a prompt: its letters `prompt[start:stop]`, and the places of its tokens, the start token being 0."""

    text: str
    start: int
    stop: int
    tokens: tuple[int, ...]


def prompt_words(tokenizer: Any, prompt: str) -> list[Word]:
    """The words of a prompt as the tokenizer cuts them (CLIP: at blanks and punctuation), with their tokens.

    Raises `UsageError` where the prompt is longer than the text encoder reads.
    """
    encoded = tokenizer(prompt, return_offsets_mapping=True)
    count, most = len(encoded["input_ids"]), tokenizer.model_max_length
    if count > most:
        raise UsageError(
            f"the prompt {prompt!r} has {count} tokens, start and end among them, and the LDM reads {most}; "
            "use a shorter label or template"
        )
    places: dict[int, list[int]] = {}
    for token, number in enumerate(encoded.word_ids(0)):
        if number is not None:
            places.setdefault(number, []).append(token)
    offsets = encoded["offset_mapping"]
    words = []
    for tokens in places.values():
        start, stop = min(offsets[k][0] for k in tokens), max(offsets[k][1] for k in tokens)
        words.append(Word(prompt[start:stop], start, stop, tuple(tokens)))
    return words


def label_tokens(tokenizer: Any, template: str, label: str) -> tuple[str, tuple[int, ...]]:
    """The prompt that a template with {label} makes of a label, and the places of the label's tokens in it.

    Raises `UsageError` where the label has no token of its own, or the prompt is too long.
    """
    start = len(template.partition("{label}")[0].format())
    prompt = template.format(label=label)
    stop = start + len(label)
    words = [word for word in prompt_words(tokenizer, prompt) if word.start < stop and word.stop > start]
    if "{label}" not in template or not words:
        raise UsageError(f"the prompt {prompt!r} has no word for the label {label!r}; name it in letters or digits")
    return prompt, tuple(token for word in words for token in word.tokens)


class AttentionRecorder:
    """Sums of attention probabilities over heads, layers and passes, by the resolution of the layer.

    Args:
        count: B, images or prompts that are told apart.
        shape: height and width of the latents.
    """

    def __init__(self, count: int, shape: tuple[int, int]) -> None:
        self.count, self.shape = count, shape
        self.sums: dict[tuple[int, int], torch.Tensor] = {}  # (h, w) -> (B, L, h, w)
        self.terms = torch.zeros(count)  # maps added up so far, over heads and layers, of each of the B
        # Which of the B each row of the next pass belongs to; rows beyond are not recorded.
        self.owners = torch.arange(count)

    def add(self, probabilities: torch.Tensor) -> None:
        """Add a layer's probabilities (rows, heads, places, L)."""
        owners = self.owners.to(probabilities.device)
        rows, (_, heads, places, length) = len(owners), probabilities.shape
        height, width = _resolution(places, *self.shape)
        summed = probabilities[:rows].sum(1).transpose(1, 2).reshape(rows, length, height, width)
        if (height, width) not in self.sums:
            self.sums[height, width] = summed.new_zeros(self.count, length, height, width)
        self.sums[height, width].index_add_(0, owners, summed)
        self.terms.index_add_(0, self.owners, torch.full((rows,), float(heads)))

    def maps(self, size: tuple[int, int]) -> torch.Tensor:
        """(B, L, H, W) mean shares of attention at `size` (H, W).

        Upsampling is linear, so the sums are upsampled once for each resolution instead of term by term.
        """
        parts = [F.interpolate(part, size=size, mode="bicubic", align_corners=False) for part in self.sums.values()]
        terms = self.terms.view(-1, 1, 1, 1).to(parts[0].device, parts[0].dtype)
        return (torch.stack(parts).sum(0) / terms).clamp_min(0).cpu()


def _resolution(places: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a layer with so many places: the latents' own, halved (rounding up) until they fit."""
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != places:
        raise LDMError(f"a cross-attention layer of {places} places has not the shape of the latents, halved")
    return height, width


class RecordingProcessor:
    """An attention processor (diffusers' interface) that records a layer's probabilities and changes nothing.

    The output is that of the processor it stands in for, bit by bit; the probabilities, which fused attention never
    forms, are computed beside it in float32 or better.
    """

    def __init__(self, processor: Any, recorder: AttentionRecorder) -> None:
        self.processor, self.recorder = processor, recorder

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None, temb: torch.Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """As the processor it stands in for."""
        if encoder_hidden_states is not None:
            self.recorder.add(attention_probabilities(attn, hidden_states, encoder_hidden_states, attention_mask))
        return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)


@torch.no_grad()
def attention_probabilities(
    attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, heads, places, L) probabilities of a cross-attention layer for its inputs (B, places, D) and (B, L, D')."""
    if hidden_states.ndim == 4:
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
    if attn.norm_cross:
        encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
    query = attn.head_to_batch_dim(attn.to_q(hidden_states))  # (B·heads, places, d)
    key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    dtype = torch.promote_types(query.dtype, torch.float32)
    if mask is not None:
        mask = attn.prepare_attention_mask(mask, key.shape[1], len(hidden_states)).to(dtype)
    found = attn.get_attention_scores(query.to(dtype), key.to(dtype), mask)
    return found.view(len(hidden_states), attn.heads, *found.shape[1:])


@contextlib.contextmanager
def recording(unet: Any, recorder: AttentionRecorder) -> Iterator[AttentionRecorder]:
    """Record the cross-attention of a diffusers U-Net for the length of the block, then restore its processors.

    Raises `LDMError` where the U-Net has no cross-attention on the way down or up.
    """
    from diffusers.models.attention_processor import Attention

    kept = [
        (layer, layer.processor)
        for name, layer in unet.named_modules()
        if isinstance(layer, Attention) and layer.is_cross_attention and not name.startswith("mid_block")
    ]
    if not kept:
        raise LDMError("this U-Net has no cross-attention to look at")
    try:
        for layer, processor in kept:
            layer.set_processor(RecordingProcessor(processor, recorder))
        yield recorder
    finally:
        for layer, processor in kept:
            layer.set_processor(processor)


@torch.no_grad()
def heat_maps(
    ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], *, times: Sequence[float] = TIMES, draws: int = 2,
    seed: int = 0, batch_size: int = 32,
) -> torch.Tensor:  # fmt: skip
    """(B, L, H, W) maps of each prompt's tokens on its image, in [0, 1], on the CPU.

    Args:
        images: (B, 3, H, W) in [-1, 1], at a size that the LDM takes.
        prompts: B prompts.
        times: shares of the noise schedule, in [0, 1], that the image is noised to.
        draws: noises at each of them, the same for all images and prompts: their maps can be compared.
        batch_size: passes of the U-Net at once.
    """
    latents = torch.cat([ldm.encode(part) for part in images.split(batch_size)])
    passes = len(times) * draws
    share = torch.tensor(times, dtype=torch.float64).repeat_interleave(draws)
    timesteps = (share * (ldm.num_train_timesteps - 1)).round().long().to(ldm.device)  # (passes,)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(passes, *latents.shape[1:], generator=generator).to(ldm.device, latents.dtype)
    embeds = ldm.prompt_embeds(prompts)
    recorder = AttentionRecorder(len(images), (latents.shape[-2], latents.shape[-1]))
    owners, numbers = torch.arange(len(images)).repeat_interleave(passes), torch.arange(passes).repeat(len(images))
    with recording(ldm.unet, recorder):
        for owner, number in zip(owners.split(batch_size), numbers.split(batch_size), strict=True):
            recorder.owners = owner
            at = timesteps[number]
            ldm.predict_noise(ldm.add_noise(latents[owner], noise[number], at), at, embeds[owner])
    return recorder.maps((images.shape[-2], images.shape[-1]))


@torch.no_grad()
def generation_heat_maps(
    ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], *, strength: float, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, H, W) made by image-to-image and the maps (B, L, H, W) recorded on the way, as DAAM has it.

    Only passes under the prompt are recorded; those without (classifier-free guidance) are not.

    Args:
        images: (B, 3, H, W) in [-1, 1] to start from; with strength 1 little of them is left.
        prompts: B prompts.
        options: of `image_to_image` (steps, guidance_scale, solver, generator, ...).
    """
    side = ldm.latent_factor
    recorder = AttentionRecorder(len(images), (images.shape[-2] // side, images.shape[-1] // side))
    strengths = torch.full((len(images), 1), strength)
    with recording(ldm.unet, recorder):
        made = image_to_image(ldm, images, prompts, strengths, batch_size=len(images), **options)
    return made[:, 0], recorder.maps((images.shape[-2], images.shape[-1]))


def merge_tokens(maps: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """(H, W): the share of attention that goes to a word or phrase, the sum over its tokens' maps (L, H, W)."""
    return maps[list(tokens)].sum(0)
