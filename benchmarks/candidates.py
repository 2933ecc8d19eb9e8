"""Rows about candidates: their speed beside diffusers' own pipeline, and how near the machine's limit it comes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, UniPCMultistepScheduler

from benchmarks.timing import compare, device, row, seconds_of
from domainfusion.config import DataConfig, GenerateConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.transforms import from_uint8
from domainfusion.devices import choose_dtype
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_folder import embedded_folder

SPACINGS = ("uniform", "karras")
STRENGTH, STEPS = 0.55, GenerateConfig().steps


def pictures(count: int) -> tuple[torch.Tensor, list[str]]:
    """(count, 3, 64, 64) images of Pictograms in [-1, 1], and a prompt for each."""
    dataset = load_dataset("pictograms", DataConfig())
    rows = np.random.default_rng(0).choice(len(dataset), count, replace=False)
    words = dataset.words()
    return from_uint8(dataset.images[rows]), [words[dataset.labels[row]] for row in rows]


def ours_of(ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], candidates: int = 3) -> Any:
    """A function that makes all candidates in our way, by the default options."""
    many = [prompt for prompt in prompts for _ in range(candidates)]
    strengths = torch.full((len(images), candidates), STRENGTH)
    generator = torch.Generator().manual_seed(0)
    return lambda: image_to_image(
        ldm, images, many, strengths, generator=generator, candidates=candidates, steps=STEPS, guidance_scale=3.0
    )


def pipeline_of(pipeline: StableDiffusionImg2ImgPipeline, images: torch.Tensor, prompts: list[str], steps: int) -> Any:
    """A function that calls diffusers' pipeline image by image, three candidates each."""
    pipeline.set_progress_bar_config(disable=True)

    def work() -> None:
        for image, prompt in zip(images, prompts, strict=True):
            pipeline(
                prompt=prompt, image=((image + 1) / 2)[None].to(pipeline.dtype), strength=STRENGTH,
                num_inference_steps=steps, guidance_scale=3.0, num_images_per_prompt=3, output_type="pt",
            )  # fmt: skip

    return work


def candidates() -> list[dict[str, Any]]:
    """The embedded LDM, N = 3: against diffusers' pipeline at the same settings, and as it comes."""
    ldm = LatentDiffusion.load("embedded", device=device())
    images, prompts = pictures(64)
    folder = str(embedded_folder())
    same = StableDiffusionImg2ImgPipeline.from_pretrained(folder, torch_dtype=ldm.dtype).to(ldm.device)
    same.scheduler = UniPCMultistepScheduler.from_config(same.scheduler.config)
    # Of n steps the pipeline makes the last int(n·strength): as many as we make.
    steps = next(n for n in range(1, 100) if int(n * STRENGTH) == STEPS)
    plain = StableDiffusionImg2ImgPipeline.from_pretrained(folder).to(ldm.device)
    ours = ours_of(ldm, images, prompts)
    few = 8  # images that the slower side is timed on
    rows = []
    for name, pipeline, count, target in (
        ("StableDiffusionImg2ImgPipeline image by image, same steps, solver and type", same, steps, 4),
        ("the same pipeline as it comes (float32, 50 steps)", plain, 50, 20),
    ):
        found = compare(ours, pipeline_of(pipeline, images[:few], prompts[:few], count), repeats=3)
        a, b = 3 * len(images) / found["ours"], 3 * few / found["theirs"]
        rows.append(
            row("candidates", "candidates per second, embedded LDM, N = 3", name, ratio=a / b, target=f">= {target}",
                reached=a / b >= target, ours=a, theirs=b, unit="images/s")
        )  # fmt: skip
    return rows


def random_stable_diffusion(dtype: torch.dtype) -> StableDiffusionImg2ImgPipeline:
    """A pipeline of Stable Diffusion v1-4's size with random weights (speed does not depend on their values)."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(embedded_folder() / "tokenizer")
    with device():
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        )  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                           num_attention_heads=12, max_position_embeddings=tokenizer.model_max_length)
        )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipeline.to(dtype)


def full_size_ldm(pipeline: StableDiffusionImg2ImgPipeline) -> LatentDiffusion:
    """Ours of copies of the pipeline's parts: it lays its weights out as it wants them."""
    vae, text_encoder = (copy.deepcopy(part).float() for part in (pipeline.vae, pipeline.text_encoder))
    return LatentDiffusion(
        vae, copy.deepcopy(pipeline.unet), text_encoder, pipeline.tokenizer, pipeline.scheduler, device=device(),
        dtype=pipeline.dtype,
    )  # fmt: skip


def full_size_pictures() -> tuple[torch.Tensor, list[str]]:
    """Images (n, 3, 320, 320) of noise and their prompts: one on a CPU, where that takes half a minute, 32 on a GPU."""
    count = 1 if device().type == "cpu" else 32
    return torch.rand(count, 3, 320, 320, generator=torch.Generator().manual_seed(0)) * 2 - 1, ["dog"] * count


def candidates_full_size() -> dict[str, Any]:
    """Stable Diffusion v1-4's size at 320 x 320, N = 3."""
    pipeline = random_stable_diffusion(choose_dtype("auto", device()))
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    ldm = full_size_ldm(pipeline)
    pipeline = pipeline.to(device())
    images, prompts = full_size_pictures()
    steps = next(n for n in range(1, 100) if int(n * STRENGTH) == STEPS)
    few = min(4, len(images))  # images that the slower side is timed on
    found = compare(
        ours_of(ldm, images, prompts), pipeline_of(pipeline, images[:few], prompts[:few], steps), repeats=2
    )  # fmt: skip
    ours, theirs = found["ours"] / len(images), found["theirs"] / few
    return row(
        "candidates_full_size", "seconds for an image's 3 candidates, Stable Diffusion v1-4's size, 320 px",
        "diffusers' pipeline image by image, same steps, solver and type", ratio=theirs / ours, target=">= 1.5",
        reached=theirs / ours >= 1.5, ours=ours, theirs=theirs, unit="s",
    )  # fmt: skip


def solver_error() -> list[dict[str, Any]]:
    """How far few steps end from the limit of many, as a share of how far the candidates moved.

    The other side is DDIM with evenly spaced timesteps, at as many passes as a pipeline of ten steps makes of the
    strength. `all` holds every solver, spacing and number of steps.
    """
    ldm = LatentDiffusion.load("embedded", device=device())
    images, prompts = pictures(48)
    start = ldm.encode(images)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        unmoved = ldm.decode(start).clamp(-1, 1).cpu()

    def made_by(strength: float, steps: int, solver: str, spacing: str) -> torch.Tensor:
        made = image_to_image(
            ldm, images, prompts, torch.full((len(images), 1), strength), noise=noise, steps=steps, solver=solver,
            spacing=spacing,
        )  # fmt: skip
        return made[:, 0]

    rows = []
    for strength in (0.5, 0.7, 0.9):  # the range that runs draw from
        limit = made_by(strength, 60, "ddim", "uniform")
        moved = (limit - unmoved).square().mean().sqrt()
        found = {}
        for solver, spacing, steps in itertools.product(("ddim", "dpm", "unipc"), SPACINGS, (2, 3, 4, 5, 7, 9)):
            error = (made_by(strength, steps, solver, spacing) - limit).square().mean().sqrt()
            found[f"{solver} {spacing} {steps}"] = float(error / moved)
        passes = round(10 * strength)
        ours, theirs = found[f"unipc karras {STEPS}"], found[f"ddim uniform {passes}"]
        rows.append(
            row("solver_error", f"error of {STEPS} steps of UniPC from the limit, strength {strength}",
                f"{passes} evenly spaced steps of DDIM", ratio=ours / theirs, target="<= 1", reached=ours <= theirs,
                ours=ours, theirs=theirs, unit="of the way", all=found)
        )  # fmt: skip
    return rows


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product in `dtype`: the machine's practical limit."""
    side = 2048 if device().type == "cpu" else 8192  # what fills the machine
    a, b = (torch.randn(side, side, device=device()).to(dtype) for _ in range(2))
    a @ b
    best = min(seconds_of(lambda: a @ b) for _ in range(10))
    return 2 * side**3 / best


def generation_share() -> list[dict[str, Any]]:
    """How much of the time of candidates is the U-Net's, and the rate at which it works; on a GPU at the size of
    Stable Diffusion too."""
    rows = _shares(LatentDiffusion.load("embedded", device=device()), *pictures(64), "embedded LDM")
    if device().type != "cpu":
        ldm = full_size_ldm(random_stable_diffusion(choose_dtype("auto", device())))
        rows += _shares(ldm, *full_size_pictures(), "Stable Diffusion v1-4's size, 320 px")
    return rows


def _shares(ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], which: str) -> list[dict[str, Any]]:
    from torch.utils.flop_counter import FlopCounterMode

    work = ours_of(ldm, images, prompts)
    work()
    forward, spent = ldm.unet.forward, [0.0]

    def timed(*arguments: Any, **options: Any) -> Any:
        result: list[Any] = []
        spent[0] += seconds_of(lambda: result.append(forward(*arguments, **options)))
        return result[0]

    ldm.unet.forward = timed
    total = min(_timed(work, spent) for _ in range(3))
    ldm.unet.forward = forward
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    flops = float(sum(counter.get_flop_counts()["UNet2DConditionModel"].values()))
    rate, limit = flops / (total[1]), matmul_rate(ldm.dtype)
    share = total[1] / total[0]
    return [
        row("generation_share", f"U-Net's share of the time of candidates, {which}", "whole time", ratio=share,
            target=">= 0.85", reached=share >= 0.85, ours=total[1], theirs=total[0], unit="s"),
        row("generation_rate", f"FLOP/s of the U-Net, {which}", "measured matrix product in the same type",
            ratio=rate / limit, target=">= 0.35", reached=rate / limit >= 0.35, ours=rate / 1e9, theirs=limit / 1e9,
            unit="GFLOP/s"),
    ]  # fmt: skip


def _timed(work: Any, spent: list[float]) -> tuple[float, float]:
    spent[0] = 0.0
    seconds = seconds_of(work)
    return seconds, spent[0]
