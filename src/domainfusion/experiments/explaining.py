"""`domainfusion explain`: the pictures and figures of one image under some labels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainfusion.config import Corruption, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import load_dataset, words_of
from domainfusion.data.images import read_image
from domainfusion.data.transforms import from_uint8, to_uint8
from domainfusion.diffusion.heatmaps import TIMES, label_tokens
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import allowed_styles
from domainfusion.distillation.slopes import SlopeEstimator
from domainfusion.errors import DomainFusionError, UsageError, unknown_name
from domainfusion.experiments.hyperparameters import nested
from domainfusion.experiments.paper_tables import TABLES
from domainfusion.files import read_json
from domainfusion.fusion.evolving import evolve
from domainfusion.fusion.generation import Judge
from domainfusion.report.corruption_figure import corruption_pictures
from domainfusion.report.evolution_figure import evolution_pictures
from domainfusion.report.explanation import Explanation, write_explanation
from domainfusion.report.heat_figure import label_pictures
from domainfusion.report.image_evolution import ImageEvolution
from domainfusion.report.label_evidence import slope_curves
from domainfusion.results.tables import text_table

KINDS: tuple[Corruption, ...] = ("contrast", "mask", "blur", "pepper")
SHOWN = 4  # labels that are compared where none are named


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a classifier, in its order: their words in prompts, and its confidences in them for the image."""

    words: dict[str, str]
    confidences: dict[str, float]
    judge: Judge | None = None  # what chooses among candidates
    held_out: tuple[str, ...] = ()  # domains that prompts of candidates do not name


def choose_labels(label: str | None, labels: Sequence[str], classes: Classes | None) -> dict[str, str]:
    """The labels to compare, the matched one first, with their words in prompts.

    Args:
        label: the matched label; where it is not given, what the classifier says, or the first of `labels`.
        labels: the labels; where none are given, those that the classifier holds most probable.
        classes: of the classifier, where there is one: labels are then among them.

    Raises `UsageError` for fewer than two labels, a label named twice, or one that is not known, with the nearest.
    """
    if classes is None and len(labels) < 2:
        raise UsageError(
            "explain compares labels: name two or more (--labels cat dog), or give a trained model (--run)"
        )
    if len(set(labels)) < len(labels):
        twice = next(name for name in labels if labels.count(name) > 1)
        raise UsageError(f"--labels names {twice!r} twice")
    known = labels if classes is None else list(classes.words)
    for name in (*labels, *([label] if label is not None else [])):
        if name not in known:
            raise unknown_name("label", name, known)
    if classes is None:
        first = label if label is not None else labels[0]
        return {name: words_of(name) for name in dict.fromkeys([first, *labels])}
    ranked = sorted(classes.confidences, key=lambda name: -classes.confidences[name])
    chosen = list(dict.fromkeys([label if label is not None else ranked[0], *(labels or ranked)]))
    if not labels:
        chosen = chosen[:SHOWN]
    if len(chosen) < 2:
        raise UsageError("explain compares labels: name another one beside it in --labels")
    return {name: classes.words[name] for name in chosen}


def class_words(run: Path, config: TrainConfig, classes: Sequence[str]) -> dict[str, str]:
    """How prompts name the classes of a run: as its data set does, where that can be read here."""
    try:
        dataset = load_dataset(read_json(run / "data.json")["data"], config.data)
        if dataset.classes == tuple(classes):
            return dict(zip(classes, dataset.words(), strict=True))
    except (DomainFusionError, KeyError, TypeError):
        pass  # an exported model, or its images are elsewhere: the names themselves must do
    return {name: words_of(name) for name in classes}


def explain_image(
    path: Path, labels: Mapping[str, str], ldm: LatentDiffusion, folder: Path, *, generate: GenerateConfig,
    distill: DistillConfig | None = None, draws: int = 32, generations: int = 4, seed: int = 0,
    classes: Classes | None = None, run: str = "", command: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The figures of the image at `path` under `labels` (name -> words, the matched first); writes them to `folder`.

    `files` in what is returned names the page and the pictures.

    Args:
        generate: its prompts and size of images, and how candidates are made (updating, strengths and seed apart:
            `literally`).
        distill: what slopes and LD noise are of (residual, weights and timesteps; the corruption apart).
        draws: timesteps that labels are scored on; slopes take an eighth of them in each of their four rounds.
        generations: how often the image is redrawn, each time from what it has become.
        classes: of a classifier, where there is one, with the name of its `run`.
        command: how this was asked for.

    Raises `DataError` where the image cannot be read, `UsageError` for a prompt that is longer than the LDM reads.
    """
    started = time.monotonic()
    distill, size = distill or DistillConfig(), generate.image_size or ldm.image_size
    image = from_uint8(read_image(path, size).copy())
    words, template = tuple(labels.values()), generate.plain_template
    prompts = [label_tokens(ldm.tokenizer, template, word)[0] for word in words]  # refused before anything is computed
    heat = label_pictures(ldm, image, words, template=template, draws=draws, seed=seed)
    samples = max(2, draws // 8)
    by_label = slope_curves(ldm, image, prompts, distill=distill, samples=samples, seed=seed)
    by_kind = {
        kind: slope_curves(ldm, image, prompts[:1], corruption=kind, distill=distill, samples=samples, seed=seed)[:, 0]
        for kind in KINDS[1:]
    }
    parts = tuple(corruption_pictures(ldm, image, prompts[0], kind, distill=distill, seed=seed) for kind in KINDS)
    evolution = evolve_image(
        ldm, image, labels, literally(generate, seed), generations=generations, distill=distill, classes=classes
    )
    made = {
        "ldm": ldm.name, "image_size": size, "precision": str(ldm.dtype).removeprefix("torch."),
        "template": template, "draws": draws, "seed": seed, "heat_times": list(TIMES), "run": run,
        "steps": generate.steps, "guidance": generate.guidance, "residual": distill.residual,
        "seconds": time.monotonic() - started,
    }  # fmt: skip
    found = Explanation(
        path.name, tuple(labels), heat, parts, evolution, by_label, {"contrast": by_label[:, 0], **by_kind},
        None if classes is None else classes.confidences, made,
    )  # fmt: skip
    files = write_explanation(found, folder, command)
    return {**found.numbers(), "files": [str(file) for file in files]}


def literally(generate: GenerateConfig, seed: int) -> GenerateConfig:
    """`generate` with what the paper's tables have for Algorithm 1, its updating and its strengths.

    Words for a style stay, which tell more of what the LDM can make of one image.
    """
    arm = TABLES["table2"].arm("updating")
    literal = nested({**arm.options, **arm.defaults})["generate"] | {"style_words": generate.style_words}
    return dataclasses.replace(generate, **literal, seed=seed, worker="off")


def evolve_image(
    ldm: LatentDiffusion, image: torch.Tensor, labels: Mapping[str, str], generate: GenerateConfig, *,
    generations: int, distill: DistillConfig | None = None, classes: Classes | None = None,
) -> ImageEvolution:  # fmt: skip
    """What an image (3, S, S) in [-1, 1] of the first of `labels` becomes, and its LD noise under the plain prompt."""
    label, words = next(iter(labels)), labels if classes is None else classes.words
    judge, held_out = (None, ()) if classes is None else (classes.judge, classes.held_out)
    pixels, styles = to_uint8(image), allowed_styles(ldm.styles, *held_out)
    made = evolve(ldm, pixels, label, words, generate, generations=generations, judge=judge, styles=styles)
    names = ["raw", *(str(generation.number) for generation in made)]
    frames = np.concatenate([pixels[None], *(generation.images for generation in made)])
    prompt, sampled = generate.plain_template.format(label=words[label]), judge is not None and generate.sampling
    estimator = SlopeEstimator(ldm, distill or DistillConfig())
    return ImageEvolution(
        label, evolution_pictures(estimator, names, frames, prompt, image.shape[-1], seed=generate.seed),
        tuple(generation.lineage[0] for generation in made), generate.candidates if sampled else 1, sampled,
    )  # fmt: skip


def explanation_text(found: dict[str, Any]) -> str:
    """The figures as a table for people."""
    with_classifier = found["classifier"] is not None
    rows = [["label", "error × 1000", "less the first", "± s.e.", "attention", "heat like the first's"]]
    rows[0] += ["classifier"] if with_classifier else []
    for entry in found["labels"]:
        row = [
            entry["label"], f"{1000 * entry['error']:.2f}", f"{1000 * entry['error_difference']:+z.2f}",
            f"{1000 * entry['standard_error']:.2f}", f"{100 * entry['attention_share']:.1f} %",
            f"{entry['heat_likeness_to_first']:.2f}",
        ]  # fmt: skip
        if with_classifier:
            row.append("–" if entry["confidence"] is None else f"{100 * entry['confidence']:.1f} %")
        rows.append(row)
    lead, error = 1000 * found["lead"], 1000 * found["lead_standard_error"]
    sure = "" if lead > 2 * error else ", which is within chance"
    best = (
        f"{found['best']} fits the diffusion model best; the error × 1000 of {found['second']} is "
        f"{lead:.2f} ± {error:.2f} higher{sure}."
    )
    return "\n".join([text_table(rows), "", best, *found["files"]])


def check_template(template: str) -> None:
    """Raise `UsageError` where a template does not hold {label}, and nothing else, in braces."""
    try:
        shown = template.format(label="\0")
    except (KeyError, IndexError, ValueError):
        shown = ""
    if "\0" not in shown:
        raise UsageError(f"--template {template!r} must hold {{label}}, and no other braces")
