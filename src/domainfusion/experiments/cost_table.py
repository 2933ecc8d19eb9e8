"""The paper's Table 1 at two scales: what fine-tuning and generation cost here, and at Stable Diffusion's size.

Here: a few images of a data set are timed with the LDM and options of a run, and multiplied by how many images each
method needs for one target. There: operations are counted (`domainfusion.experiments.costs`) for the numbers of images
and denoising steps that the paper gives, and divided by the peak rate of a GPU and an assumed share of it.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from domainfusion.config import TrainConfig
from domainfusion.data.batches import steps_per_epoch, with_steps
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.splits import Split, build_split
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.devices import choose_device, choose_dtype
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.experiments.costs import (
    SECONDS_A_DAY,
    UTILISATION,
    PassCosts,
    count_passes,
    gpu_days,
    stable_diffusion_parts,
)  # fmt: skip
from domainfusion.fusion.schedule import generations_due

IMAGES = 8  # timed at once
BACKWARD = 3  # a training step's operations over those of its forward pass


@dataclasses.dataclass(frozen=True)
class Method:
    """What the paper says of a method on DomainNet, target clipart (V100 days), and how its candidates are made."""

    key: str
    title: str
    fine_tuned: int  # images that LDMs are fine-tuned on
    generated: int
    steps: int | None  # denoising steps of a generated image; None: not told
    guided: bool
    size: int  # pixels at the LDM; 512 is Stable Diffusion's own, where the paper tells nothing
    paper: tuple[float, float]  # fine-tuning, generation


METHODS = (
    Method("dsi", "DSI", 538_446, 244_000, 50, False, 512, (22.44, 7.94)),
    Method("cdga", "CDGA", 0, 4_000_000, 50, True, 512, (0.0, 161.11)),
    Method("domainfusion", "DomainFusion", 0, 120_000, None, True, 320, (0.0, 2.19)),
)


def needed_images(dataset: MultiDomainDataset, split: Split, config: TrainConfig) -> dict[str, dict[str, int]]:
    """{method: {"fine_tuned", "generated"}}: images for one target with these options, DSI's start steps all tried."""
    sources = len(split.sources)
    train = sum(len(split.train[domain]) for domain in split.sources)
    generate, dsi, steps = config.generate.needed(), config.dsi, with_steps(config, split).steps
    count = generations_due(steps - 1, steps, steps_per_epoch(split, config.batch_size), generate)
    return {
        "dsi": {
            "fine_tuned": sources * dsi.tune_steps * dsi.tune_batch_size,
            "generated": len(split.test) * sources * len(dsi.starts),
        },
        "cdga": {"fine_tuned": 0, "generated": train * sources * config.cdga.candidates},
        "domainfusion": {"fine_tuned": 0, "generated": train * generate.candidates * count},
    }  # fmt: skip


def count_method(method: Method, passes: PassCosts, steps: int) -> tuple[float, float]:
    """FLOPs of a method's fine-tuning (each image passed once, forward and back) and generation, by the paper's counts.

    Args:
        passes: of the LDM at the method's image size.
        steps: denoising steps of a generated image.
    """
    tuning = method.fine_tuned * (BACKWARD * passes.unet + passes.encoder)
    candidate = passes.encoder + passes.decoder + steps * (2 if method.guided else 1) * passes.unet
    return tuning, method.generated * candidate


def measure_costs(data: str, config: TrainConfig, target: str | None = None, *, gpu: str = "V100") -> dict[str, Any]:
    """Table 1: {"data", "target", "gpu", "utilisation", "methods": {key: {"here", "counted", "paper"}}}.

    "here": images, seconds of one and days in all on this machine, for one target (the first domain without `target`);
    "counted": GPU days for the paper's images, DomainFusion with `generate.steps` denoising steps.
    """
    dataset = load_dataset(data, config.data)
    target = target or dataset.domains[0]
    config = dataclasses.replace(config, target=target)
    split = build_split(dataset, config.data, target, config.trial)
    device = choose_device(config.device)
    ldm = LatentDiffusion.load(config.ldm_source, device=device, precision=config.precision)
    images = needed_images(dataset, split, config)
    seconds = _time_images(ldm, dataset, config)
    parts = stable_diffusion_parts()
    passes = {size: count_passes(*parts, size) for size in {method.size for method in METHODS}}
    found = {}
    for method in METHODS:
        tuning, generation = count_method(method, passes[method.size], method.steps or config.generate.steps)
        mine = images[method.key]
        found[method.key] = {
            "title": method.title,
            "here": {
                **mine, "seconds_fine_tuned": seconds["fine_tuned"], "seconds_generated": seconds[method.key],
                "fine_tuning_days": mine["fine_tuned"] * seconds["fine_tuned"] / SECONDS_A_DAY,
                "generation_days": mine["generated"] * seconds[method.key] / SECONDS_A_DAY,
            },
            "counted": {
                "fine_tuned": method.fine_tuned, "generated": method.generated,
                "steps": method.steps or config.generate.steps,
                "fine_tuning_days": gpu_days(tuning, gpu), "generation_days": gpu_days(generation, gpu),
            },
            "paper": {"fine_tuning_days": method.paper[0], "generation_days": method.paper[1]},
        }  # fmt: skip
    return {
        "data": data, "dataset": dataset.name, "target": target, "ldm": config.ldm_source, "gpu": gpu,
        "utilisation": UTILISATION, "methods": found,
    }  # fmt: skip


def _time_images(ldm: LatentDiffusion, dataset: MultiDomainDataset, config: TrainConfig) -> dict[str, float]:
    """Seconds of one image of each method's making, and of one image of a fine-tuning step."""
    rows = np.linspace(0, len(dataset) - 1, IMAGES).round().astype(int)
    size = config.generate.image_size or ldm.image_size
    images = resize(from_uint8(np.ascontiguousarray(dataset.images[rows])), size)
    words = dataset.words()
    prompts = [words[dataset.labels[row]] for row in rows]
    generate, starts = config.generate.needed(), config.dsi.starts
    middle = sum(generate.strength) / 2

    def make(steps: int, guidance: float, candidates: int, strength: float) -> Callable[[], Any]:
        many = [prompt for prompt in prompts for _ in range(candidates)]
        strengths = torch.full((len(images), candidates), strength)
        return lambda: image_to_image(
            ldm, images, many, strengths, generator=torch.Generator().manual_seed(0), candidates=candidates,
            steps=steps, guidance_scale=guidance, batch_size=generate.batch_size,
        )  # fmt: skip

    # From start step s there are s of the steps; all start steps are tried.
    inversion = max(1, round(config.dsi.steps * sum(starts) / len(starts)))
    return {
        "domainfusion": _median(make(generate.steps, generate.guidance, generate.candidates, middle), ldm.device)
        / (len(images) * generate.candidates),
        "cdga": _median(make(config.cdga.steps, config.cdga.guidance, 1, middle), ldm.device) / len(images),
        "dsi": _median(make(inversion, 1.0, 1, sum(starts) / len(starts)), ldm.device) / len(images),
        "fine_tuned": _median(_tuning_step(ldm, images, prompts, config), ldm.device) / len(images),
    }  # fmt: skip


def _tuning_step(
    ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], config: TrainConfig
) -> Callable[[], None]:
    """A fine-tuning step without its optimizer: encoding, the U-Net forward and back."""
    unet = copy.deepcopy(ldm.unet).float().train().requires_grad_(True)
    embeds, dtype = ldm.prompt_embeds(prompts).float(), choose_dtype(config.precision, ldm.device)

    def step() -> None:
        latents = ldm.encode(images.to(ldm.device)).float()
        noise = torch.randn_like(latents)
        timesteps = torch.linspace(20, ldm.num_train_timesteps - 20, len(images)).long().to(ldm.device)
        with torch.autocast(ldm.device.type, dtype, enabled=dtype != torch.float32):
            found = unet(ldm.add_noise(latents, noise, timesteps).float(), timesteps, embeds).sample
            loss = F.mse_loss(found.float(), noise)
        unet.zero_grad(set_to_none=True)
        loss.backward()

    return step


def _median(work: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Median seconds of `work` after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.monotonic()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - started)
    return statistics.median(times[1:])


def cost_rows(found: dict[str, Any]) -> list[list[str]]:
    """The table for people."""
    rows = [[
        "", f"images here ({found['dataset']}, target {found['target']})", "fine-tuning here", "generation here",
        f"counted: fine-tuning, {found['gpu']} days", f"counted: generation, {found['gpu']} days",
        "paper: fine-tuning", "paper: generation",
    ]]  # fmt: skip
    for entry in found["methods"].values():
        here, counted, paper = entry["here"], entry["counted"], entry["paper"]
        rows.append([
            entry["title"], f"{here['generated']:,}", duration(here["fine_tuning_days"]),
            duration(here["generation_days"]), f"{counted['fine_tuning_days']:.2f}",
            f"{counted['generation_days']:.2f}", f"{paper['fine_tuning_days']:.2f}", f"{paper['generation_days']:.2f}",
        ])  # fmt: skip
    return rows


def duration(days: float) -> str:
    """Days as seconds, minutes, hours or days.

    >>> [duration(d) for d in (0, 0.0002, 0.01, 0.2, 5)]
    ['0', '17 s', '14 min', '4.8 h', '5.0 days']
    """
    if days == 0:
        return "0"
    for unit, factor, limit in (("s", 86_400, 120), ("min", 1440, 120), ("h", 24, 48)):
        if days * factor < limit:
            return f"{days * factor:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{days:.1f} days"


NOTE = (
    "Counted: the operations of the paper's numbers of images at Stable Diffusion v1-4's size (DomainFusion at 320 "
    "pixels, the others at 512), at 35 % of the GPU's peak rate; fine-tuning passes each image once; DomainFusion "
    "takes the denoising steps of these options, since the paper does not tell its own. Here: images for one target "
    "with these options, times of a few images multiplied."
)
