"""A row about labels: at which timesteps and confidences the LDM's losses and slopes tell a true label from others."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks.timing import device, row
from domainfusion.config import AuditConfig, DataConfig
from domainfusion.data.domains import load_dataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.evidence import evidence_of, spread

TIMESTEPS = (0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.92)
CONFIDENCES = (0.2, 0.5, 1.0)
IMAGES = 96


def ranked(misfit: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """In per cent: how often the true label fits best of all (misfit (n, K) smallest), and better than a wrong one."""
    true = misfit[np.arange(len(labels)), labels]
    below = (true[:, None] < misfit).sum(1) / (misfit.shape[1] - 1)
    return 100 * float((misfit.argmin(1) == labels).mean()), 100 * float(below.mean())


def label_information() -> list[dict[str, Any]]:
    """One pair of noises for each image of Pictograms, timestep and confidence; `all` holds every figure."""
    ldm = LatentDiffusion.load("embedded", device=device())
    dataset = load_dataset("pictograms", DataConfig())
    rows = np.sort(np.random.default_rng(1).permutation(len(dataset))[:IMAGES])
    labels, classes = dataset.labels[rows], len(dataset.classes)
    images, given = np.divmod(np.arange(IMAGES * classes), classes)
    tasks = np.stack([images, np.zeros_like(images), given], 1)
    base = AuditConfig(confidences=CONFIDENCES, pairs=1)
    # (T, n, K, P, 2), a timestep at a time
    values = np.stack([
        evidence_of(
            ldm, dataset, rows, tasks, list(dataset.words()), dataclasses.replace(base, min_timestep=t, max_timestep=t)
        ).reshape(IMAGES, classes, len(CONFIDENCES), 2)
        for t in TIMESTEPS
    ])  # fmt: skip
    found = {
        f"{name}, p = {p:g}, t = {t:g}": ranked(values[i, :, :, j, k], labels)
        for k, name in enumerate(("loss", "slope")) for j, p in enumerate(CONFIDENCES)
        for i, t in enumerate(TIMESTEPS)
    }  # fmt: skip
    chosen = [i for i, t in enumerate(TIMESTEPS) if base.min_timestep <= t <= base.max_timestep]

    def both(steps: list[int]) -> np.ndarray:
        parts = [values[steps, :, :, 2, 0].mean(0), values[steps, :, :, 1, 1].mean(0)]
        return sum((part / spread(part[:, :, None, None]) for part in parts), np.zeros(1))

    here, whole = ranked(both(chosen), labels), ranked(both(list(range(len(TIMESTEPS)))), labels)
    return [
        row("label_information", f"images whose own label fits best, {base.min_timestep:g} to {base.max_timestep:g} of "
            "the schedule, loss and slope", "the whole schedule, twice as many passes", ratio=here[0] / whole[0],
            target=">= 1", reached=here[0] >= whole[0], ours=here[0], theirs=whole[0], unit="% of images",
            better_than_a_wrong_one=[here[1], whole[1]], all=found)
    ]  # fmt: skip
