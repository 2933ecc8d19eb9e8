"""Rows about latent distillation: its cost in a run, its slopes' variance and error, its memory, a sweep's share."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.candidates import pictures
from benchmarks.timing import compare, device, row
from domainfusion.config import DataConfig, DistillConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.curve_rounds import curves_of
from domainfusion.distillation.slopes import Draws, SlopeEstimator, draw

EPOCHS = 120


def distillation_run() -> dict[str, Any]:
    """Seconds per training image: curves by the default options, beside Algorithm 2 to the letter for 120 epochs."""
    ldm = LatentDiffusion.load("embedded", device=device())
    dataset = load_dataset("pictograms", DataConfig())
    rows = np.random.default_rng(0).choice(len(dataset), 48, replace=False)
    curve = SlopeEstimator(ldm, DistillConfig(estimator="curve"))
    images, prompts = pictures(48)
    literal = SlopeEstimator(ldm, DistillConfig(estimator="autograd", samples=1))
    p = torch.rand(48, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        draws = draw(ldm, 48, images.shape[-1], literal.config, torch.Generator().manual_seed(2))
        literal.slopes(images, prompts, p, draws)

    words = list(dataset.words())

    def tabulate() -> None:
        for part in np.array_split(rows, 4):
            curves_of(curve, dataset, part, words, images.shape[-1])

    found = compare(tabulate, step, repeats=2)
    mine, theirs = found["ours"] / 48, EPOCHS * found["theirs"] / 48
    return row(
        "distillation_run", "distillation of an image in a run of 120 epochs, curve computed", "autograd, T = 1",
        ratio=mine / theirs, target="<= 1/20", reached=mine / theirs <= 1 / 20, ours=mine, theirs=theirs,
        unit="s/image",
    )  # fmt: skip


def slope_variance() -> dict[str, Any]:
    """Variance between repetitions of 16 passes: stratified antithetic pairs, beside 16 independent draws."""
    ldm = LatentDiffusion.load("embedded", device=device())
    images, prompts = pictures(24)
    passes, repeats = 16, 16
    config = DistillConfig(samples=passes // 2)
    estimator = SlopeEstimator(ldm, config)
    p = torch.full((len(images),), 0.5)
    pairs, single = [], []
    for number in range(repeats):
        generator = torch.Generator().manual_seed(number)
        first = draw(ldm, len(images), images.shape[-1], config, generator)
        both = Draws(torch.cat([first.timesteps] * 2), torch.cat([first.noise, -first.noise]), first.seed)
        pairs.append(estimator.slopes(images, prompts, p, both))
        one = dataclasses.replace(config, samples=1)
        draws = [draw(ldm, len(images), images.shape[-1], one, generator) for _ in range(passes)]
        loose = Draws(torch.cat([d.timesteps for d in draws]), torch.cat([d.noise for d in draws]), 0)
        single.append(estimator.slopes(images, prompts, p, loose))
    ours, theirs = (float(torch.stack(part).var(0).mean()) for part in (pairs, single))
    return row(
        "slope_variance", "variance of the slope, 16 passes of the LDM as curves spend them", "16 one-draw estimates",
        ratio=ours / theirs, target="<= 1/10", reached=ours / theirs <= 0.1, ours=ours, theirs=theirs, unit="variance",
    )  # fmt: skip


MEMORY = """
import json, sys
from pathlib import Path
import torch
from benchmarks.candidates import random_stable_diffusion
from domainfusion.config import DistillConfig
from domainfusion.devices import choose_device, choose_dtype
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.slopes import SlopeEstimator, draw

device = choose_device("auto")

def held(name):
    if device.type == "cuda":
        read = torch.cuda.memory_allocated if name == "VmRSS" else torch.cuda.max_memory_allocated
        return read() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))

what = sys.argv[1]
dtype = choose_dtype("auto", device)
pipeline = random_stable_diffusion(dtype)
ldm = LatentDiffusion(pipeline.vae.float(), pipeline.unet, pipeline.text_encoder.float(), pipeline.tokenizer,
                      pipeline.scheduler, device=device, dtype=dtype)
images = torch.rand(1, 3, 320, 320).to(device) * 2 - 1
before = held("VmRSS")
# The peak so far is that of building the model: start anew.
if device.type == "cuda":
    torch.cuda.reset_peak_memory_stats()
else:
    Path("/proc/self/clear_refs").write_text("5")
config = DistillConfig(estimator="autograd" if what == "autograd" else "score", samples=1)
draws = draw(ldm, 1, 320, config, torch.Generator().manual_seed(0))
if what == "forward":
    with torch.no_grad():
        latents = ldm.encode(images)
        ldm.predict_noise(ldm.add_noise(latents, draws.noise[0], draws.timesteps[0]), draws.timesteps[0],
                          ldm.prompt_embeds(["dog"]))
else:
    SlopeEstimator(ldm, config).slopes(images, ["dog"], torch.tensor([0.5]), draws)
print(json.dumps([before, held("VmHWM")]))
"""


def distillation_memory() -> dict[str, Any]:
    """Peak memory (MB of the process or the GPU, while it is computed) of one slope at Stable Diffusion v1-4's size.

    Without a GPU Linux alone tells the peak of a part of a process's life.
    """
    found = {}
    for what in ("forward", "score", "autograd"):
        output = subprocess.run(
            [sys.executable, "-c", MEMORY, what], check=True, capture_output=True, text=True
        ).stdout  # fmt: skip
        found[what] = json.loads(output.strip().splitlines()[-1])
    ratio = found["score"][1] / found["forward"][1]
    return row(
        "distillation_memory", "peak memory of a slope by score, Stable Diffusion v1-4's size, 320 px",
        "one forward pass", ratio=ratio, target="<= 1.1", reached=ratio <= 1.1, ours=found["score"][1],
        theirs=found["forward"][1], unit="MB", autograd=found["autograd"][1],
        above_the_model={what: after - before for what, (before, after) in found.items()},
    )  # fmt: skip


def sweep_share() -> dict[str, Any]:
    """Images to tabulate in a sweep of 20 hyperparameters x 3 trials x 5 targets (strict splits), counted."""
    dataset = load_dataset("pictograms", DataConfig())
    tables = []
    for trial in range(3):
        for target in dataset.domains:
            split = build_split(dataset, DataConfig(), target, trial)
            tables.append(np.concatenate([split.train[domain] for domain in split.sources]))
    alone = 20 * sum(map(len, tables))
    shared = len(np.unique(np.concatenate(tables)))
    return row(
        "sweep_share", "images tabulated for a sweep of 300 runs that share one table", "each run tabulates its own",
        ratio=shared / alone, target="<= 1/300 (300 runs of all images)", reached=shared / alone <= 1 / 300,
        ours=shared, theirs=alone, unit="images",
    )  # fmt: skip
