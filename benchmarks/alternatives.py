"""Rows about ways to make candidates faster that the engine does not take, so that anybody can see why.

`feature_reuse`: the U-Net's deep features kept from one step to the next (DeepCache, Ma et al. 2024, arXiv 2312.00858).
`token_merging`: an upper bound of what merging tokens can save. `compile`: `torch.compile` of the U-Net.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.candidates import pictures
from benchmarks.timing import compare, device, row, seconds_of
from domainfusion.config import GenerateConfig
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.solvers import Solver, denoising_timesteps

STRENGTH, GUIDANCE = 0.7, GenerateConfig().guidance


class ReusingUNet:
    """A U-Net of Stable Diffusion's type whose passes can take what lies below its first level from an earlier one.

    A full pass is the U-Net's own, computation by computation. A reusing pass runs the first level of the way down and
    the last of the way up on the present latents, and takes what the levels between gave at the last full pass.
    """

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.deep: torch.Tensor | None = None

    def __call__(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, embeds: torch.Tensor, *, reuse: bool
    ) -> torch.Tensor:
        """The U-Net's output (B, C, h, w) at noisy latents (B, C, h, w)."""
        unet = self.unet
        moment = unet.time_embedding(unet.time_proj(timesteps).to(noisy.dtype))
        hidden = unet.conv_in(noisy)
        skips = [hidden]
        last = unet.up_blocks[-1]
        if reuse and self.deep is not None:
            first = unet.down_blocks[0]
            for number, resnet in enumerate(first.resnets):
                hidden = resnet(hidden, moment)
                if getattr(first, "has_cross_attention", False):
                    hidden = first.attentions[number](hidden, encoder_hidden_states=embeds, return_dict=False)[0]
                skips.append(hidden)
            hidden = self.deep
        else:
            for block in unet.down_blocks:
                hidden, made = block(hidden, moment, **_prompt(block, embeds))
                skips += made
            hidden = unet.mid_block(hidden, moment, encoder_hidden_states=embeds)
            for block in unet.up_blocks[:-1]:
                hidden = block(hidden, _taken(skips, block), moment, **_prompt(block, embeds))
            self.deep = hidden
        hidden = last(hidden, _taken(skips, last), moment, **_prompt(last, embeds))
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def _prompt(block: Any, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": embeds} if getattr(block, "has_cross_attention", False) else {}


def _taken(skips: list[torch.Tensor], block: Any) -> tuple[torch.Tensor, ...]:
    """The skip connections of a block on the way up, taken off the list."""
    count = len(block.resnets)
    taken = tuple(skips[-count:])
    del skips[-count:]
    return taken


@torch.no_grad()
def denoise_with_reuse(
    ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], noise: torch.Tensor, steps: int, every: int
) -> torch.Tensor:
    """Candidates (B, 3, H, W) by the default solver, every `every`-th step a full pass and the others reusing ones."""
    model, solver = ReusingUNet(ldm.unet), Solver("unipc", ldm.alphas_cumprod)
    timesteps = denoising_timesteps(ldm.alphas_cumprod, torch.full((len(images),), STRENGTH), steps)
    embeds = torch.cat([ldm.prompt_embeds(prompts), ldm.prompt_embeds([""]).expand(len(images), -1, -1)])
    z = ldm.add_noise(ldm.encode(images), noise, timesteps[0])
    for number, t in enumerate(timesteps):
        both = torch.cat([z, z]).to(ldm.dtype).contiguous(memory_format=torch.channels_last)
        output = model(both, torch.cat([t, t]), embeds, reuse=number % every > 0)
        prompted, without = output.float().chunk(2)
        predicted = without + GUIDANCE * (prompted - without)
        signal, sigma = ldm.signal_and_noise(t)
        z = solver.step(z, (z - sigma * predicted) / signal, t, timesteps[number + 1] if number + 1 < steps else None)
    return ldm.decode(z).clamp(-1, 1)


def feature_reuse() -> list[dict[str, Any]]:
    """Error from the limit of many steps, by full passes alone and with reuse, against the processor time of each."""
    ldm = LatentDiffusion.load("embedded")  # on the CPU: it is processor time that is measured
    images, prompts = pictures(16)
    noise = torch.randn(ldm.encode(images).shape, generator=torch.Generator().manual_seed(0))
    limit = image_to_image(
        ldm, images, prompts, torch.full((16, 1), STRENGTH), noise=noise, steps=60, guidance_scale=GUIDANCE,
        solver="ddim", spacing="uniform",
    )[:, 0]  # fmt: skip
    with torch.no_grad():
        moved = (limit - ldm.decode(ldm.encode(images)).clamp(-1, 1)).square().mean().sqrt()
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for steps, every in ((3, 1), (4, 1), (5, 1), (6, 1), (4, 2), (5, 2), (6, 2), (8, 2)):
        times = []
        for _ in range(2):
            started = time.process_time()
            made = denoise_with_reuse(ldm, images, prompts, noise, steps, every)
            times.append(time.process_time() - started)
        found[steps, every] = min(times), float((made - limit).square().mean().sqrt() / moved)
    full = [found[key] for key in ((3, 1), (4, 1), (5, 1), (6, 1))]
    rows = []
    for steps in (4, 5, 6, 8):
        seconds, error = found[steps, 2]
        instead = at_time(full, seconds)
        rows.append(
            row("feature_reuse", f"error of {steps} steps of which every second reuses deep features",
                "full passes for the same processor time", ratio=error / instead, target="<= 0.9 to be worth an option",
                reached=error / instead <= 0.9, ours=error, theirs=instead, unit="of the way", seconds=seconds,
                full={"seconds": [s for s, _ in full], "errors": [e for _, e in full]})
        )  # fmt: skip
    return rows


def at_time(points: list[tuple[float, float]], seconds: float) -> float:
    """The error at a time between points (time, error), log-linear; a time outside takes the nearest two points.

    >>> round(at_time([(1.0, 1.0), (3.0, 0.01)], 2.0), 6)
    0.1
    """
    pairs = sorted(points)
    place = next((i for i, (moment, _) in enumerate(pairs[1:-1], start=1) if seconds <= moment), len(pairs) - 1)
    (t0, e0), (t1, e1) = pairs[place - 1], pairs[place]
    return float(e0 * (e1 / e0) ** ((seconds - t0) / (t1 - t0)))


def token_merging() -> list[dict[str, Any]]:
    """Share of the U-Net's operations that merging half of the tokens saves (Bolya & Hoffman, arXiv 2303.17604).

    By default tokens are merged before self-attention alone: its projections are of half as many, its products of a
    quarter as many. Where cross-attention and feed-forward layers are of merged tokens too, half of those is saved;
    that is told beside. Merging at all levels is counted; the method's default is at the first.
    """
    from diffusers import UNet2DConditionModel

    embedded = LatentDiffusion.load("embedded").unet.config
    with torch.device("meta"):
        models = {
            "embedded, 64 px": (UNet2DConditionModel.from_config(embedded), 8),
            "Stable Diffusion v1-4's size, 320 px": (UNet2DConditionModel(cross_attention_dim=768, sample_size=64), 40),
        }
    rows = []
    for name, (unet, side) in models.items():
        counter = FlopCounterMode(display=False)
        width = unet.config.cross_attention_dim
        inputs = torch.empty(1, unet.config.in_channels, side, side, device="meta"), torch.empty(1, device="meta")
        with counter, torch.no_grad():
            unet(*inputs, torch.empty(1, 77, width, device="meta"))
        counts = counter.get_flop_counts()
        total = sum(counts["Global"].values())

        def part(layer: str, products: bool, counts: Any = counts, total: int = total) -> float:
            mine = [values for module, values in counts.items() if module.endswith(f".{layer}")]
            found = [(str(operation), value) for values in mine for operation, value in values.items()]
            return sum(value for name, value in found if ("bmm" in name) == products) / total

        saved = 0.5 * part("attn1", products=False) + 0.75 * part("attn1", products=True)
        others = [0.5 * (part(layer, products=False) + part(layer, products=True)) for layer in ("attn2", "ff")]
        rows.append(
            row("token_merging", f"operations saved by merging half of the tokens in self-attention, {name}",
                "all of the U-Net's", ratio=saved, target=">= 0.2 to be worth an option", reached=saved >= 0.2,
                ours=saved * total / 1e9, theirs=total / 1e9, unit="GFLOP", self_attention=part("attn1", False)
                + part("attn1", True), saved_in_cross_attention=others[0], saved_in_feed_forward=others[1])
        )  # fmt: skip
    return rows


def compiled() -> dict[str, Any]:
    """A pass of the U-Net compiled by `torch.compile`, beside the plain one; the time of compiling is told beside."""
    ldm = LatentDiffusion.load("embedded", device=device())
    images, prompts = pictures(64)
    with torch.no_grad():
        latents, embeds = ldm.encode(images), ldm.prompt_embeds(prompts)
    timesteps = torch.full((64,), 500, device=ldm.device)
    plain = ldm.unet
    made = torch.compile(plain)

    def passes(unet: Any) -> Callable[[], object]:
        def work() -> None:
            ldm.unet = unet
            with torch.no_grad():
                ldm.predict_noise(latents, timesteps, embeds)

        return work

    compiling = seconds_of(passes(made))
    found = compare(passes(made), passes(plain), repeats=7)
    return row(
        "compile", "compiled pass of the U-Net, 64 latents", "the plain pass", ratio=found["speedup"],
        target=">= 1.15 to be worth an option", reached=found["speedup"] >= 1.15, ours=found["ours"],
        theirs=found["theirs"], unit="s", compiling_seconds=compiling,
    )  # fmt: skip
