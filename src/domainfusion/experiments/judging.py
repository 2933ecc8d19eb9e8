"""What an LDM is worth for DomainFusion, in numbers: are its candidates still the thing, in another style, and do its
slopes know a true label from a wrong one?"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import to_float, to_uint8
from domainfusion.devices import choose_device
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import compose_prompts
from domainfusion.distillation.slopes import SlopeEstimator, draw
from domainfusion.errors import show_note
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.files import make_folder, write_json
from domainfusion.fusion.style import split_style, style_divergence
from domainfusion.memory import halve_until_it_fits
from domainfusion.picture_grid import Row, fitting, picture_grid, save_figure
from domainfusion.results.tables import text_table
from domainfusion.seeding import derive_numpy_rng
from domainfusion.training.checkpoint import load_model

SHOWN = 12  # images of the sheet, spread over those that are judged
STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# What decides how candidates are made here, one of an image at each of STRENGTHS.
READ = ("steps", "guidance", "guidance_interval", "solver", "spacing", "style_words", "template", "plain_template",
        "image_size", "batch_size")  # fmt: skip


def judge_ldm(
    data: str, ldm_name: str, count: int, folder: Path, *, reading: DataConfig | None = None,
    generate: GenerateConfig | None = None, steps: int = 600,
) -> dict[str, Any]:  # fmt: skip
    """The figures of the module's docstring, on `count` images that the oracle was not trained on.

    The oracle is an ERM classifier trained on all domains (kept in `folder/oracle-…`); what it says of the stored
    images and of their plain reconstructions is the yardstick for what it says of candidates.

    Args:
        reading: how the images are read and split, and augmented for the oracle.
        generate: how candidates are made.
        steps: of the oracle's training.
    """
    make_folder(folder)
    reading, generate = reading or DataConfig(), generate or GenerateConfig()
    oracle_config = TrainConfig(algorithm="erm", steps=steps, data=reading)
    ldm = LatentDiffusion.load(ldm_name, device=choose_device(oracle_config.device))  # a wrong name costs no training
    named = data if reading == DataConfig() else f"{data} {reading}"  # an oracle of its own for each way to read them
    oracle_folder = folder / ("oracle-" + hashlib.sha256(named.encode()).hexdigest()[:8])
    if not (oracle_folder / "result.json").exists():
        show_note(
            f"candidates are judged by a classifier trained on the images first, once for {data}: {steps} steps of ERM"
        )
    train_run(data, oracle_config, oracle_folder)
    context = build_context(data, oracle_config, oracle_folder)
    oracle = build_algorithm(context)
    load_model(oracle_folder, oracle.classifier)
    oracle.to(context.device).eval()
    dataset = context.dataset
    held = np.concatenate(list(context.split.validation.values()))
    rows = np.sort(derive_numpy_rng("judge", 0).choice(held, min(count, len(held)), replace=False))
    size = generate.image_size or ldm.image_size
    images = _pixels(dataset, rows, size)
    labels = dataset.labels[rows]

    @torch.no_grad()
    def recognised(pictures: torch.Tensor, given: np.ndarray) -> float:
        """Share (per cent) of pictures (n, 3, H, W) in [-1, 1] that the oracle gives the label they should have."""
        small = F.interpolate((pictures + 1) / 2, size=(dataset.size, dataset.size), mode="bilinear", antialias=True)
        found = torch.cat([oracle.predict(part.to(context.device)).argmax(1).cpu() for part in small.split(256)])
        return 100 * float((found.numpy() == given).mean())

    @torch.no_grad()
    def reconstruct(at_once: int) -> torch.Tensor:
        return torch.cat([ldm.decode(ldm.encode(part)).clamp(-1, 1).cpu() for part in images.split(at_once)])

    what = "the making of candidates (--generate.batch-size)"
    reconstructed, at_once = halve_until_it_fits(reconstruct, ldm.at_once(generate.batch_size, size), what)
    squared = ((reconstructed - images) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
    figures: dict[str, Any] = {
        "ldm": ldm_name, "data": data, "images": len(rows), "image_size": size,
        "generate": {name: value for name, value in plain_values(generate).items() if name in READ},
        "psnr": float((-10 * squared.log10()).mean()),
        "raw_recognised": recognised(images, labels), "reconstruction_recognised": recognised(reconstructed, labels),
        "candidates": [], "slopes": {},
    }  # fmt: skip
    rng = derive_numpy_rng("judge prompts", 0)
    prompts = compose_prompts(dataset.words(), labels, generate, ldm.styles, rng)
    _, mean0, std0 = split_style(images)
    shown = ((np.arange(min(SHOWN, len(rows))) + 0.5) * len(rows) / min(SHOWN, len(rows))).astype(int)
    sheet = [Row("as stored", _pictures(images[shown]))]
    for strength in tqdm(STRENGTHS, desc="candidates"):

        def make(at_once: int, strength: float = strength) -> torch.Tensor:
            return _redraw(ldm, images, prompts, strength, dataclasses.replace(generate, batch_size=at_once))

        made, at_once = halve_until_it_fits(make, at_once, what)
        _, mean, std = split_style(made)
        moved = style_divergence(mean0, std0, mean[:, None], std[:, None], "gaussian")
        saturation = (made.amax(1) - made.amin(1)).mean()
        right = recognised(made, labels)
        figures["candidates"].append(
            {"strength": strength, "recognised": right, "style_moved": float(moved.median()),
             "pixel_distance": float((made - images).square().mean().sqrt()), "saturation": float(saturation)}
        )  # fmt: skip
        sheet.append(Row(f"strength {strength:g}\n{right:.0f} % recognised", _pictures(made[shown])))
    _draw_candidates(sheet, dataset, rows[shown], len(rows), folder / "candidates.png")
    figures["slopes"] = slope_ranking(ldm, images, dataset, labels)
    write_json(folder / "judge.json", figures)
    return figures


def _redraw(
    ldm: LatentDiffusion, images: torch.Tensor, prompts: Sequence[str], strength: float, generate: GenerateConfig
) -> torch.Tensor:
    """A candidate of each image (n, 3, S, S) in [-1, 1], all from the same noise at every strength."""
    side = images.shape[-1] // ldm.latent_factor
    shape = (len(images), ldm.unet.config.in_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(ldm.device)
    made = []
    for part in torch.arange(len(images)).split(generate.batch_size):
        made.append(image_to_image(
            ldm, images[part], [prompts[k] for k in part], torch.full((len(part), 1), strength),
            noise=noise[part.to(ldm.device)], steps=generate.steps, guidance_scale=generate.guidance,
            guidance_interval=generate.guidance_interval, solver=generate.solver, spacing=generate.spacing,
            batch_size=generate.batch_size,
        )[:, 0])  # fmt: skip
    return torch.cat(made)


def slope_ranking(
    ldm: LatentDiffusion, images: torch.Tensor, dataset: MultiDomainDataset, labels: np.ndarray, samples: int = 8
) -> dict[str, Any]:
    """By residual: how often (per cent; chance 50) the slope of the true label lies below that of a random wrong one.

    Both are taken at p = 0.5 on the same draws; `mean` is the mean slope of the true label,
    `standard_error` that of the share.
    """
    words = dataset.words()
    rng = derive_numpy_rng("wrong labels", 0)
    wrong = (labels + rng.integers(1, len(dataset.classes), len(labels))) % len(dataset.classes)
    result: dict[str, Any] = {}
    for residual in ("plain", "guided", "contrast"):
        config = DistillConfig(residual=residual, samples=samples)
        estimator = SlopeEstimator(ldm, config)
        true: list[torch.Tensor] = []
        other: list[torch.Tensor] = []
        for part in torch.arange(len(images)).split(64):
            generator = torch.Generator().manual_seed(int(part[0]))
            draws = draw(ldm, len(part), images.shape[-1], config, generator)
            p = torch.full((len(part),), 0.5)
            for given, found in ((labels, true), (wrong, other)):
                prompts = [words[given[i]] for i in part]
                found.append(estimator.slopes(images[part], prompts, p, draws).cpu())
        first, second = torch.cat(true), torch.cat(other)
        share = float((first < second).float().mean())
        result[residual] = {
            "true_below_wrong": 100 * share, "standard_error": 100 * (share * (1 - share) / len(first)) ** 0.5,
            "mean": float(first.mean()), "mean_size": float(first.abs().mean()),
        }  # fmt: skip
    return result


def _pixels(dataset: MultiDomainDataset, rows: np.ndarray, size: int) -> torch.Tensor:
    images = to_float(torch.from_numpy(dataset.images[rows])) * 2 - 1
    return images if size == dataset.size else F.interpolate(images, (size, size), mode="bicubic", antialias=True)


def _pictures(images: torch.Tensor) -> list[np.ndarray]:
    return list(to_uint8(images))


def _draw_candidates(
    sheet: Sequence[Row], dataset: MultiDomainDataset, rows: np.ndarray, count: int, path: Path
) -> None:
    """Write the sheet of candidates of some images, of rows (n,) of the data set, out of `count` that were judged."""
    names = [(dataset.classes[dataset.labels[row]], dataset.domains[dataset.domain_of[row]]) for row in rows]
    figure = picture_grid(
        sheet, heads=[fitting(name, f"from {domain}") for name, domain in names],
        title=f"{dataset.name}: what the LDM redraws images as",
        notes="A column is one image and what it is redrawn as, given its class. The higher the strength, the freer.\n"
        f"Recognised: the share of all {count} images to which a classifier of stored images gives their class.",
    )  # fmt: skip
    save_figure(figure, path, dpi=110)


def judgement_text(figures: dict[str, Any]) -> str:
    """The figures as two tables."""
    first = [["pictures", "recognised %", "style moved", "saturation"]]
    first.append(["as stored", f"{figures['raw_recognised']:.1f}", "", ""])
    first.append([f"reconstructed ({figures['psnr']:.1f} dB)", f"{figures['reconstruction_recognised']:.1f}", "0", ""])
    for entry in figures["candidates"]:
        first.append(
            [f"strength {entry['strength']}", f"{entry['recognised']:.1f}", f"{entry['style_moved']:.2f}",
             f"{entry['saturation']:.2f}"]
        )  # fmt: skip
    second = [["slope residual", "true below wrong %", "s.e.", "mean", "mean size"]]
    for name, entry in figures["slopes"].items():
        second.append(
            [name, f"{entry['true_below_wrong']:.1f}", f"{entry['standard_error']:.1f}", f"{entry['mean']:.4f}",
             f"{entry['mean_size']:.4f}"]
        )  # fmt: skip
    return f"{text_table(first)}\n\n{text_table(second)}\n\n{verdict(figures)}"


def verdict(figures: dict[str, Any]) -> str:
    """What the figures say to do: which strengths keep the class, and whether slopes know labels.

    A strength keeps it where the oracle recognises nine tenths of the stored images' share, or is within two standard
    errors of that (binomial), at this and every smaller strength.
    """
    share, count = 0.9 * figures["raw_recognised"] / 100, figures["images"]
    lowest = 100 * (share - 2 * (share * (1 - share) / count) ** 0.5)
    kept = []
    for entry in figures["candidates"]:
        if entry["recognised"] < lowest:
            break
        kept.append(entry["strength"])
    chance = f"of {count:,} images"
    if kept:
        keeps = (
            f"Up to strength {kept[-1]:g} candidates keep their class ({chance}): --generate.strength 0.3 {kept[-1]:g}."
        )
    else:
        keeps = (
            f"At no strength do candidates keep their class ({chance}): this LDM redraws these images as something "
            "else (candidates.png). Train one on your images (domainfusion pretrain DATA), or take another (--ldm)."
        )
    plain = figures["slopes"]["plain"]
    knows = plain["true_below_wrong"] - 50 > 2 * plain["standard_error"]
    slopes = (
        "The slopes of latent distillation tell true labels from wrong ones."
        if knows
        else "The slopes of latent distillation do not tell true labels from wrong ones here."
    )  # fmt: skip
    return f"{keeps}\n{slopes}"
