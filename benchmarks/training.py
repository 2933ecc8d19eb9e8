"""Rows about training: a step with distillation by curve, a whole run, and the way of images into the classifier."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import compare, row, seconds_of
from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.classifier import build_classifier
from domainfusion.algorithms.cpu_convolutions import is_slow
from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.commands.layers import base_options
from domainfusion.config import DistillConfig, TrainConfig
from domainfusion.distillation.curve_rounds import GRID
from domainfusion.distillation.curves import Curves
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.fusion.generation import make_generation
from domainfusion.fusion.style import recombine
from domainfusion.training.step import compute_losses, descend, make_batch

STEPS = 15
GENERATED = 128  # images
BATCHES, READY = 100, 20  # batches read, and those before them, which workers may have ready when they are asked for


def stepper(algorithm: Algorithm) -> Any:
    """A function that makes one optimizer step, as the trainer makes it, and the steps' counter with it."""
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=1e-3, fused=True)
    counter = iter(range(10**9))
    algorithm.train()

    def step() -> None:
        terms = compute_losses(algorithm, make_batch(algorithm, next(counter)))
        descend(optimizer, torch.stack(list(terms.values())).sum())

    return step


def training_step() -> list[dict[str, Any]]:
    """A step of ERM beside those that also read slopes from curves (their values do not matter for its time), and that
    compute slopes of some images in the step, as data sets without a table do."""
    config = TrainConfig(
        algorithm="domainfusion", target="pixel", synthetic_weight=0.0, distill=DistillConfig(estimator="score")
    )
    with tempfile.TemporaryDirectory() as folder:
        context = build_context("pictograms", config, Path(folder), progress=False)
        algorithm, computing = (build_algorithm(context).to(context.device) for _ in range(2))
        assert isinstance(algorithm, DomainFusion)
        count = len(context.dataset)
        values = torch.randn(count, len(GRID), generator=torch.Generator().manual_seed(0))
        algorithm.curves = Curves(torch.tensor(GRID), values, values.abs(), torch.ones(count, dtype=torch.int64))
        algorithm.curves = algorithm.curves.to(context.device)
        plain = dataclasses.replace(context, config=dataclasses.replace(config, algorithm="erm"))
        rows = []
        for by, ours, most in (("by curve", algorithm, 1.03), ("in the step (score, 8 images)", computing, None)):
            found = compare(stepper(ours), stepper(build_algorithm(plain).to(context.device)), STEPS, warm_up=3)
            ratio = 1 / found["speedup"]
            rows.append(
                row("training_step", f"training step with distillation {by}", "ERM step", ratio=ratio,
                    target=f"<= {most}" if most else "none: what curves save", reached=most is None or ratio <= most,
                    ours=1e3 * found["ours"], theirs=1e3 * found["theirs"], unit="ms",
                    spread=[1 / found["high"], 1 / found["low"]])
            )  # fmt: skip
    return rows


def depthwise() -> dict[str, Any]:
    """A step of EfficientNet-Lite0 as it is built, beside the same network all in bfloat16."""
    images, labels = torch.rand(24, 3, 128, 128), torch.arange(24) % 7
    config = TrainConfig(backbone="tf_efficientnet_lite0")

    def step_of(plain: bool) -> Callable[[], None]:
        classifier = build_classifier(config, 7).train()
        if plain:
            for module in classifier.modules():
                if isinstance(module, torch.nn.Conv2d) and is_slow(module):
                    module.__class__ = type(module).__mro__[2]  # the class of the library, below the quick one
        optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(classifier(images), labels)
            descend(optimizer, loss)

        return step

    found = compare(step_of(plain=False), step_of(plain=True), repeats=STEPS)
    ratio = 1 / found["speedup"]
    return row(
        "depthwise", "training step of EfficientNet-Lite0, 24 images of 128 px, slow gradients in float32",
        "all of it in bfloat16", ratio=ratio, target="<= 1", reached=ratio <= 1, ours=1e3 * found["ours"],
        theirs=1e3 * found["theirs"], unit="ms", spread=[1 / found["high"], 1 / found["low"]],
    )  # fmt: skip


class Recombining(DomainFusion):
    """DomainFusion as if a generation had been made: the stored images in the place of candidates, recombined as they
    are."""

    def synthetic_images(self, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """(n, S, S, 3) uint8: the content of rows (n,) and the style of others."""
        content, style = (self.context.dataset.images[of] for of in (rows, rng.permutation(rows)))
        return recombine(*(torch.from_numpy(images).to(self.context.device) for images in (content, style)))


def whole_run() -> list[dict[str, Any]]:
    """Runs by default options, with one generation, and by the preset `quick`, of measured parts: steps of both,
    generations of some images.

    A run takes its steps and, for DomainFusion, as many generations of all training images as are due. Curves belong to
    the data set and the LDM and are not counted; evaluations, the same in both, are left out.
    """
    quick: TrainConfig = base_options(TrainConfig, ["--preset", "quick"])
    found = []
    for options, given, limits in (
        ("default options", TrainConfig(), (None, 1)), ("preset quick", quick, (None,))
    ):  # fmt: skip
        parts = _parts_of_a_run(given)
        for most in limits:
            generations = parts.generations if most is None else min(most, parts.generations)
            generating = generations * parts.images * parts.generated_image
            ours, theirs = given.steps * parts.our_step + generating, given.steps * parts.their_step
            found.append(
                row(
                    "whole_run",
                    f"DomainFusion run, {options if most is None else 'one generation'}",
                    "ERM run, same steps",
                    ratio=ours / theirs,
                    target="<= 2",
                    reached=ours / theirs <= 2,
                    ours=ours,
                    theirs=theirs,
                    unit="s",
                    steps=given.steps,
                    generations=generations,
                    images=parts.images,
                    generating=generating,
                    without_generating=parts.our_step / parts.their_step,
                )
            )
    return found


@dataclasses.dataclass(frozen=True)
class RunParts:
    """What a run of DomainFusion beside ERM consists of; times in seconds."""

    our_step: float
    their_step: float
    generated_image: float  # all candidates of an image in one generation
    generations: int
    images: int  # of each generation


def _parts_of_a_run(options: TrainConfig) -> RunParts:
    config = dataclasses.replace(
        options,
        algorithm="domainfusion",
        target="pixel",
        distill=dataclasses.replace(options.distill, estimator="score"),
    )
    with tempfile.TemporaryDirectory() as folder:
        context = build_context("pictograms", config, Path(folder), progress=False)
        algorithm = Recombining(context).to(context.device)
        count = len(context.dataset)
        values = torch.zeros(count, len(GRID))
        algorithm.curves = Curves(torch.tensor(GRID), values, values, torch.ones(count, dtype=torch.int64))
        algorithm.curves = algorithm.curves.to(context.device)
        plain = dataclasses.replace(context, config=dataclasses.replace(config, algorithm="erm"))
        steps = compare(stepper(algorithm), stepper(build_algorithm(plain).to(context.device)), STEPS, warm_up=3)
        rows = np.random.default_rng(0).choice(algorithm.rows, GENERATED, replace=False)

        def generate() -> None:
            make_generation(
                algorithm.ldm, context.dataset, rows, context.dataset.images[rows], algorithm.judge, config.generate,
                number=0, styles=algorithm.styles, stored=False, progress=False,
            )  # fmt: skip

        generate()
        an_image = min(seconds_of(generate) for _ in range(2)) / GENERATED
        due = algorithm.generations_due(config.steps - 1)
        return RunParts(steps["ours"], steps["theirs"], an_image, due, len(algorithm.rows))


def loading() -> list[dict[str, Any]]:
    """Augmented batches from the decoded cache, beside one DataLoader of 8 workers per domain over image files."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    config = TrainConfig(algorithm="erm", target="pixel")
    with tempfile.TemporaryDirectory() as folder:
        context = build_context("pictograms", config, Path(folder) / "run", progress=False)
        algorithm, dataset = build_algorithm(context), context.dataset
        for domain in context.split.sources:
            for number, index in enumerate(context.split.train[domain]):
                place = Path(folder) / domain / dataset.classes[dataset.labels[index]]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(dataset.images[index])).save(place / f"{number}.png")
        augment = transforms.Compose([
            transforms.RandomResizedCrop(64, scale=(0.7, 1.0)), transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3), transforms.RandomGrayscale(), transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ])  # fmt: skip

        def endless(loader: DataLoader[Any]) -> Any:
            while True:
                yield from loader

        def theirs() -> float:
            """Seconds of `BATCHES` batches, those not counted that workers have made before they are asked for."""
            loaders = [
                endless(DataLoader(ImageFolder(str(Path(folder) / domain), augment), config.batch_size, shuffle=True,
                                   num_workers=8, drop_last=True, persistent_workers=True))
                for domain in context.split.sources
            ]  # fmt: skip

            def read(batches: int) -> None:
                for _ in range(batches):
                    torch.cat([next(loader)[0] for loader in loaders])

            read(READY)
            return seconds_of(lambda: read(BATCHES))  # the workers end with this function: none works beside ours

        step, counter = stepper(algorithm.to(context.device)), iter(range(10**9))
        turns = []
        for _ in range(3):
            turns.append((seconds_of(lambda: [make_batch(algorithm, next(counter)) for _ in range(BATCHES)]), theirs()))
        ours, against = (statistics.median(side) for side in zip(*turns, strict=True))
        step()
        steps = [seconds_of(step) for _ in range(STEPS)]
        images = BATCHES * config.batch_size * len(context.split.sources)
    waiting, whole = ours / BATCHES, statistics.median(steps)
    return [
        row("loading", "images per second into the classifier", "DataLoader with 8 workers per domain, files of 64 px",
            ratio=against / ours, target=">= 5", reached=against / ours >= 5, ours=images / ours,
            theirs=images / against, unit="images/s"),
        row("loading_share", "the making of its batch, which a step of ERM waits for", "the step",
            ratio=waiting / whole, target="0: never waits", reached=False, ours=1e3 * waiting, theirs=1e3 * whole,
            unit="ms"),
    ]  # fmt: skip
