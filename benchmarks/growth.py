"""Rows about growth: time and memory of the LDM's work against images, classes, candidates and resolution.

Each axis runs in a process of its own, from small to large by doubling, until the next size would take it past its
budget of seconds (`GROWTH_SECONDS`, 20). On a CPU that is processor time, which other programs on the machine change
little, and the memory is the process's; with a GPU it is wall time and the GPU's memory. Points and plots go to
runs/benchmarks/growth.json and growth.png.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.candidates import ours_of, pictures
from benchmarks.timing import device, row, seconds_of
from domainfusion.algorithms.diffusion_classifier import DiffusionClassifier
from domainfusion.config import DataConfig, DistillConfig, ZeroShotConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.transforms import resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.curve_rounds import curves_of
from domainfusion.distillation.slopes import SlopeEstimator
from domainfusion.files import write_json

FOLDER = Path("runs/benchmarks")
Point = dict[str, float]


def candidates_work(ldm: LatentDiffusion, images: int, candidates: int, side: int) -> Callable[[], object]:
    """Candidates of `images` pictures at `side` pixels, by the default options."""
    shown, prompts = pictures(images)
    return ours_of(ldm, resize(shown, side), prompts, candidates)


def curves_work(ldm: LatentDiffusion, images: int) -> Callable[[], object]:
    """Curves of `images` pictures, by the default options."""
    dataset = load_dataset("pictograms", DataConfig())
    rows = np.random.default_rng(0).choice(len(dataset), images, replace=False)
    estimator, words = SlopeEstimator(ldm, DistillConfig(estimator="curve")), list(dataset.words())
    parts = np.array_split(rows, max(1, images // 12))
    return lambda: [curves_of(estimator, dataset, part, words, ldm.image_size) for part in parts]


def classes_work(ldm: LatentDiffusion, classes: int) -> Callable[[], object]:
    """Zero-shot classification of four pictures among `classes` classes, four draws each."""
    method = DiffusionClassifier(ldm, [f"thing {c}" for c in range(classes)], ZeroShotConfig(samples=(4,), keep=(1,)))
    images, _ = pictures(4)
    return lambda: method.classify(images)


# axis: what is done, the smallest size, what a size counts (for the exponent), and the work of a size.
AXES: dict[str, tuple[str, int, Callable[[int], float], Callable[[LatentDiffusion, int], Callable[[], object]]]] = {
    "images": ("3 candidates of each image", 4, float, lambda ldm, n: candidates_work(ldm, n, 3, ldm.image_size)),
    "curves": ("curves of the images", 2, float, curves_work),
    "candidates": ("candidates of 4 images", 1, float, lambda ldm, n: candidates_work(ldm, 4, n, ldm.image_size)),
    "resolution": ("3 candidates of 2 images, px", 32, lambda n: float(n * n),
                   lambda ldm, n: candidates_work(ldm, 2, 3, n)),
    "classes": ("zero-shot classification of 4 images", 4, float, classes_work),
}  # fmt: skip


def measure(axis: str, budget: float) -> list[Point]:
    """{"size", "seconds", "megabytes" at most so far} of each size that the budget reaches."""
    _, size, counted, build = AXES[axis]
    ldm = LatentDiffusion.load("embedded", device=device())
    build(ldm, size)()  # warm
    points: list[Point] = []
    spent = 0.0
    while True:
        work = build(ldm, size)
        if device().type == "cuda":
            seconds, peak = seconds_of(work), torch.cuda.max_memory_allocated() / 2**20
        else:
            started = time.process_time()
            work()
            seconds = time.process_time() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        points.append({"size": size, "seconds": seconds, "megabytes": peak})
        spent += seconds
        beyond = spent + seconds * counted(2 * size) / counted(size) > budget
        if (beyond and len(points) > 1) or 2 * size > 3525:  # two sizes at least; Pictograms has no more images
            return points
        size *= 2


def exponent(points: list[Point], counted: Callable[[int], float]) -> float:
    """How fast time grows: the power of the size that leads from the last point but one to the last (1: in proportion).

    >>> exponent([{"size": 2, "seconds": 3.0}, {"size": 4, "seconds": 12.0}], float)
    2.0
    """
    first, last = points[-2:]
    grown = counted(int(last["size"])) / counted(int(first["size"]))
    return math.log(last["seconds"] / first["seconds"]) / math.log(grown)


def growth() -> list[dict[str, Any]]:
    """A row for each axis, and the plots."""
    budget = float(os.environ.get("GROWTH_SECONDS", "20"))
    found: dict[str, list[Point]] = {}
    rows = []
    for axis, (what, _, counted, _) in AXES.items():
        code = f"import json; from benchmarks.growth import measure; print(json.dumps(measure({axis!r}, {budget})))"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        found[axis] = points = json.loads(done.stdout.strip().splitlines()[-1])
        first, last = points[0], points[-1]
        power = exponent(points, counted)
        rows.append(
            row("growth", f"{what}: seconds at {axis} {last['size']:g}", f"{axis} {points[-2]['size']:g}",
                ratio=power, target="power <= 1.1 of the size" + (" in pixels" if axis == "resolution" else ""),
                reached=power <= 1.1, ours=last["seconds"], theirs=points[-2]["seconds"], unit="s",
                megabytes=[first["megabytes"], last["megabytes"]], points=points)
        )  # fmt: skip
    write_json(FOLDER / "growth.json", found)
    plot(found, FOLDER / "growth.png")
    return rows


def plot(found: dict[str, list[Point]], path: Path) -> None:
    """Time above memory for each axis, both scales logarithmic, with a line of proportion."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(found), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (axis, points) in enumerate(found.items()):
        what, _, counted, _ = AXES[axis]
        sizes = [point["size"] for point in points]
        seconds = [point["seconds"] for point in points]
        scale = seconds[-1] / counted(int(sizes[-1]))
        axes[0, column].loglog(sizes, seconds, "o-", color="#d4490d")
        axes[0, column].loglog(sizes, [scale * counted(int(size)) for size in sizes], ":", color="#64748b")
        axes[1, column].semilogx(sizes, [point["megabytes"] for point in points], "o-", color="#0b7285")
        axes[1, column].set_ylim(bottom=0)
        for axes_of in axes[:, column]:  # the sizes themselves, not powers of ten
            axes_of.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axes_of.set_xticks([], minor=True)
        axes[0, column].set_title(what, fontsize=9)
        axes[1, column].set_xlabel(axis)
    axes[0, 0].set_ylabel("seconds\n(dotted: in proportion)")
    axes[1, 0].set_ylabel("peak memory, MB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def domainnet() -> list[dict[str, Any]]:
    """DomainNet at Stable Diffusion v1-4's size, 320 pixels, 120 epochs: days on one GPU and on 64, from counted FLOPs.

    Nothing is timed: the rate is the GPU's published one times an assumed share of it.
    """
    from domainfusion.experiments.costs import DOMAINNET, estimate

    rows = []
    for gpu in ("V100", "H100"):
        found = estimate(DOMAINNET, gpu=gpu)
        one, many = (found["days"][count]["generation"] for count in ("1", "64"))
        rows.append(
            row("domainnet", f"days of generation on one {gpu} at {found['utilisation']:.0%} of its peak rate, counted",
                "on 64 of them", ratio=one / many, target="none: an estimate", reached=True, ours=one, theirs=many,
                unit="days", details=found)
        )  # fmt: skip
    return rows
