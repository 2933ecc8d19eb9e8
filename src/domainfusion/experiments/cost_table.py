"""The paper's Table 1 at two scales: what fine-tuning, generation and training cost here, and at the paper's size.

Here: a few images of a data set and a few training steps are timed with the LDM, backbone and options of a run, and
multiplied by how many each method needs for one target. There: operations are counted
(`domainfusion.experiments.paper_costs`), and divided by the peak rate of a GPU and an assumed share of it.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from domainfusion.algorithms.base import Context
from domainfusion.config import TrainConfig
from domainfusion.data.batches import steps_per_epoch, with_steps
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.splits import Split
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.denoiser_training import Denoiser, follow_gradient, predict_noise, scaled_latents
from domainfusion.diffusion.finetuning import tuning_options
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion, posterior_mean
from domainfusion.diffusion.optimization import Averaged, WorkingCopy, build_optimizer
from domainfusion.distillation.curve_rounds import curves_of
from domainfusion.distillation.slopes import SlopeEstimator, draw
from domainfusion.experiments.costs import SECONDS_A_DAY, UTILISATION
from domainfusion.experiments.paper_costs import METHODS, PAPER_SCALE, Method, count_costs, paper_days, paper_images
from domainfusion.experiments.planning import time_step, timed
from domainfusion.experiments.runs import build_algorithm, context_of
from domainfusion.fusion.schedule import generations_due

IMAGES = 8  # timed at once
IMAGES_HEAD = "images (fine-tuned on / generated)"


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


def measure_costs(
    data: str, config: TrainConfig, target: str | None = None, *, gpu: str = "V100", scale: str = PAPER_SCALE
) -> dict[str, Any]:
    """Table 1: {"data", "target", "gpu", "scale", "utilisation", "methods": {key: {"here", "counted", "paper"}},
    "distillation"}.

    "here": images, seconds of one and days in all on this machine, for one target (the first domain without `target`);
    "counted": days on `gpu` for `scale` (DATASET/TARGET), DomainFusion with `generate.steps` denoising steps.
    Latent distillation is no part of the methods' training: it is either a slope of `distill.images_per_step` images in
    each step, or a table of curves of all training images, made once for all runs.
    """
    counted = count_costs(config, gpu, scale)
    dataset = load_dataset(data, config.data)
    target = target or dataset.domains[0]
    config = dataclasses.replace(config, target=target)
    with tempfile.TemporaryDirectory(prefix="domainfusion-costs-") as work:
        context = context_of(dataset, config, Path(work), progress=False)
        config, split = context.config, context.split
        ldm = LatentDiffusion.load(config.ldm_source, device=context.device, precision=config.precision)
        images = needed_images(dataset, split, config)
        seconds = _time_images(ldm, dataset, config)
        step = {
            share: time_step(build_algorithm(_as_erm(context, share)).to(context.device))
            for share in {_synthetic_share(method, config) for method in METHODS}
        }
    slopes, curve = _time_slopes(ldm, dataset, config, config.batch_size * len(split.sources))
    trained = sum(len(split.train[domain]) for domain in split.sources)
    found = {}
    for method in METHODS:
        mine = images[method.key]
        found[method.key] = {
            "title": method.title,
            "here": {
                **mine, "seconds_fine_tuned": seconds["fine_tuned"], "seconds_generated": seconds[method.key],
                "seconds_step": step[_synthetic_share(method, config)], "steps": config.steps,
                "fine_tuning_days": mine["fine_tuned"] * seconds["fine_tuned"] / SECONDS_A_DAY,
                "generation_days": mine["generated"] * seconds[method.key] / SECONDS_A_DAY,
                "training_days": config.steps * step[_synthetic_share(method, config)] / SECONDS_A_DAY,
            },
            "counted": counted["methods"][method.key],
            "paper": paper_images(method, counted["scale"])
            | {f"{part}_days": days for part, days in paper_days(method, counted["scale"]).items()},
        }  # fmt: skip
    return {
        "data": data, "dataset": dataset.name, "target": target, "ldm": config.ldm_source, "gpu": gpu,
        "scale": counted["scale"], "utilisation": UTILISATION, "methods": found,
        "distillation": {
            "score": {
                "here_days": config.steps * slopes / SECONDS_A_DAY,
                "counted_days": counted["distillation"]["score_days"],
            },
            "curve": {
                "here_days": trained * curve / SECONDS_A_DAY, "counted_days": counted["distillation"]["curve_days"]
            },
        },
    }  # fmt: skip


def _synthetic_share(method: Method, config: TrainConfig) -> float:
    """Synthetic images in a step beside its raw ones, as a share of these; CDGA's stand in place of raw images."""
    return config.synthetic_share if method.key == "domainfusion" and config.synthetic_weight > 0 else 0.0


def _as_erm(context: Context, share: float) -> Context:
    """The context of ERM with a batch of raw images, and a share of it more."""
    config = context.config
    batch = round(config.batch_size * (1 + share))
    return dataclasses.replace(context, config=dataclasses.replace(config, algorithm="erm", batch_size=batch))


def _time_slopes(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, config: TrainConfig, batch: int
) -> tuple[float, float]:
    """Seconds of a training step's slopes by `score`, and of one image's curve."""
    distill = dataclasses.replace(config.distill, estimator="score")
    estimator, size = SlopeEstimator(ldm, distill), config.generate.image_size or ldm.image_size
    words = [config.generate.plain_template.format(label=word) for word in dataset.words()]
    rows = np.linspace(0, len(dataset) - 1, min(batch, distill.images_per_step or batch)).round().astype(int)
    images = resize(from_uint8(np.ascontiguousarray(dataset.images[rows])), size).to(ldm.device)
    prompts = [words[dataset.labels[row]] for row in rows]
    p = torch.linspace(max(0.1, distill.confidence_floor), 0.9, len(rows), device=ldm.device)
    draws = draw(ldm, len(rows), size, distill, torch.Generator().manual_seed(0))
    slopes = timed(lambda: estimator.slopes(images, prompts, p, draws), ldm.device)
    some = rows[:2]
    return slopes, timed(lambda: curves_of(estimator, dataset, some, words, size), ldm.device, most=3) / len(some)


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

    batch = images.repeat(-(-config.dsi.tune_batch_size // len(images)), 1, 1, 1)[: config.dsi.tune_batch_size]
    # From start step s there are s of the steps; all start steps are tried.
    inversion = max(1, round(config.dsi.steps * sum(starts) / len(starts)))
    return {
        "domainfusion": timed(make(generate.steps, generate.guidance, generate.candidates, middle), ldm.device)
        / (len(images) * generate.candidates),
        "cdga": timed(make(config.cdga.steps, config.cdga.guidance, 1, middle), ldm.device) / len(images),
        "dsi": timed(make(inversion, 1.0, 1, sum(starts) / len(starts)), ldm.device) / len(images),
        "fine_tuned": timed(_tuning_step(ldm, batch, config), ldm.device) / len(batch),
    }  # fmt: skip


def _tuning_step(ldm: LatentDiffusion, images: torch.Tensor, config: TrainConfig) -> Callable[[], None]:
    """A step of `train_denoiser` as DSI takes it, its images' encoding, optimizer and average with it."""
    options = tuning_options(config.dsi, config.ldm_source, images.shape[-1], len(images))
    denoiser = Denoiser(copy.deepcopy(ldm.unet).float(), copy.deepcopy(ldm.text_encoder)).train().requires_grad_(True)
    denoiser.text_encoder.requires_grad_(False)
    optimizer = build_optimizer(denoiser.parameters(), options.unet_lr, options.weight_decay)
    averaged, working = Averaged(denoiser, options.ema), WorkingCopy(denoiser)
    tokens = ldm.tokenizer(
        [""] * len(images), padding="max_length", truncation=True, max_length=ldm.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids.to(ldm.device)  # fmt: skip
    images = images.to(ldm.device)

    def step() -> None:
        with torch.no_grad(), torch.autocast(ldm.device.type, torch.bfloat16):
            latents = scaled_latents(ldm.vae, posterior_mean(ldm.vae, images))
        noise = torch.randn_like(latents)
        timesteps = torch.linspace(20, ldm.num_train_timesteps - 20, len(images)).long().to(ldm.device)
        noisy = ldm.add_noise(latents, noise, timesteps)
        loss = F.mse_loss(predict_noise(working, noisy, timesteps, tokens), noise)
        follow_gradient(loss, denoiser, working, optimizer, averaged)

    return step


def cost_rows(found: dict[str, Any]) -> list[list[str]]:
    """The table for people."""
    parts = ("fine_tuning", "generation", "training")
    names = [part.replace("_", "-") for part in parts]
    rows = [["", *(f"{side}: {name}" for side in ("here", "counted", "paper") for name in (IMAGES_HEAD, *names))]]
    for method in METHODS:
        entry = found["methods"][method.key]
        here, counted, paper = entry["here"], entry["counted"], entry["paper"]
        told = [paper[f"{part}_days"] for part in parts]
        rows.append([
            entry["title"],
            _images(here), *(duration(here[f"{part}_days"]) for part in parts),
            _images(counted), *(f"{counted[f'{part}_days']:.2f}" for part in parts),
            _images(paper_images(method, found["scale"])), *("–" if days is None else f"{days:.2f}" for days in told),
        ])  # fmt: skip
    for key, title in DISTILLATION.items():
        entry = found["distillation"][key]
        own = [duration(entry["here_days"]), f"{entry['counted_days']:.2f}", ""]
        rows.append([title, *(cell for days in own for cell in ("", "", "", days))])
    return rows


def _images(counts: Mapping[str, int | None]) -> str:
    fine_tuned, generated = counts["fine_tuned"], counts["generated"]
    return "–" if fine_tuned is None or generated is None else f"{fine_tuned:,} / {generated:,}"


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


def cost_title(found: Mapping[str, Any]) -> str:
    """What the table is about, in one line."""
    return (
        f"What fine-tuning, generation and training cost: here ({found['dataset']}, target {found['target']}), and in "
        f"{found['gpu']} days counted for {found['scale']}"
    )


DISTILLATION = {"score": "+ distillation by score", "curve": "or a table of curves, once"}

NOTE = (
    "Counted: operations at Stable Diffusion v1-4's size (DomainFusion at 320 pixels, the others at 512) and of "
    "ResNet-50 at 224 pixels, at 35 % of the GPU's peak rate. For DomainNet/clipart the numbers of images are the "
    "paper's. Fine-tuning passes each image once; training takes 120 epochs of the raw images, CDGA's too, whose "
    "translations stand in place of some; DomainFusion takes the denoising "
    "steps of these options, since the paper does not tell its own; distillation by score takes one pass of the U-Net "
    "for every image and epoch. Here: images and steps for one target with these options, times of a few multiplied; "
    "by score as many images in a step as `--distill.images-per-step` says. The paper gives no training time of DSI "
    "and CDGA, and 0.4 days for all processes but generation of its own."
)
