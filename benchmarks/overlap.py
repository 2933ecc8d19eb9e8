"""A row about generation beside training: a whole run with a worker that makes candidates, and the same run without."""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import row, seconds_of
from domainfusion.config import DataConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.experiments.runs import train_run
from domainfusion.fusion.worker_decision import threads_to_share

IMAGES = 4  # of each class and domain
STEPS = 240  # three generations, at 24, 96 and 168
TURNS = 3
MODES = ("on", "off")


def few_pictograms(folder: Path, count: int) -> Path:
    """A folder with the first `count` images of each class and domain of Pictograms."""
    dataset = load_dataset("pictograms", DataConfig())
    for domain in range(len(dataset.domains)):
        for label, name in enumerate(dataset.classes):
            place = folder / dataset.domains[domain] / name
            place.mkdir(parents=True)
            for number in np.flatnonzero((dataset.domain_of == domain) & (dataset.labels == label))[:count]:
                Image.fromarray(np.asarray(dataset.images[number])).save(place / f"{number}.png")
    return folder


def overlap(images: int = IMAGES, steps: int = STEPS, turns: int = TURNS) -> dict[str, Any]:
    """Wall seconds of a run whose cache is empty, with and without a worker, in turn.

    The start of the worker (imports, the LDM) is part of it. `seconds` has every turn; `rounding` says how the
    synthetic images of the two differ, in levels at most and in which share of the values.
    """
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    made: dict[str, np.ndarray] = {}
    before = os.environ.get("DOMAINFUSION_CACHE")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = str(few_pictograms(folder / "pictograms", images))
        config = TrainConfig(algorithm="domainfusion", target="pixel", steps=steps, distill_weight=0.0)
        try:
            for turn in range(turns):
                for mode in MODES if turn % 2 else MODES[::-1]:
                    os.environ["DOMAINFUSION_CACHE"] = str(folder / f"cache-{turn}-{mode}")
                    options = dataclasses.replace(config, generate=dataclasses.replace(config.generate, worker=mode))
                    run = folder / f"run-{turn}-{mode}"
                    seconds[mode].append(seconds_of(lambda o=options, run=run: train_run(data, o, run, progress=False)))
                    made[mode] = np.load(run / "synthetic" / "generation-00" / "images.npy").astype(int)
        finally:
            os.environ.pop("DOMAINFUSION_CACHE")
            if before is not None:
                os.environ["DOMAINFUSION_CACHE"] = before
    difference = np.abs(made["on"] - made["off"])
    ours, theirs = (statistics.median(seconds[mode]) for mode in MODES)
    return row(
        "overlap", "a run with a worker that makes candidates beside training", "the same run without",
        ratio=ours / theirs, target="< 1", reached=ours < theirs, ours=ours, theirs=theirs, unit="s", seconds=seconds,
        threads=threads_to_share(), gpus=torch.cuda.device_count(),
        rounding={"levels": int(difference.max()), "share": float((difference > 0).mean())},
    )  # fmt: skip
