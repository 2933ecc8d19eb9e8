"""`curve_error`: how far curves are from the slopes that they stand for, by what they cost.

The error is that of training: at confidences that are no points of the table (`CHECKED`, evenly spread), so that noise
and the lines between points both count.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import torch

from benchmarks.direct_slopes import direct_slopes, relative
from benchmarks.timing import device, row
from domainfusion.config import DataConfig, DistillConfig
from domainfusion.data.content import image_keys
from domainfusion.data.domains import load_dataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.curve_rounds import confidences, curves_of
from domainfusion.distillation.curves import Curves
from domainfusion.distillation.slopes import SlopeEstimator

REFERENCE_DRAWS = 1000
SHARED_DRAWS = 32  # in each of two rounds, of the lines between points, whose error noise has no part in
CHECKED = tuple(round(0.02 + 0.98 * (i + 0.5) / 24, 4) for i in range(24))
# Detail, draws in a round, rounds.
OPTIONS = (
    (1, 4, 2), (1, 8, 2), (1, 8, 4), (1, 16, 2), (1, 16, 4), (1, 32, 2), (1, 64, 2),
    (2, 16, 2), (2, 32, 2), (2, 64, 2), (2, 128, 2), (3, 64, 2), (3, 128, 2),
)  # fmt: skip


def curve_error() -> dict[str, Any]:
    """Root mean square error of curves over images and confidences, as a share of the slopes' size, by their cost."""
    ldm, dataset = LatentDiffusion.load("embedded", device=device()), load_dataset("pictograms", DataConfig())
    rows = np.random.default_rng(0).choice(len(dataset), int(os.environ.get("CURVE_IMAGES", "8")), replace=False)
    config, words = DistillConfig(estimator="curve"), dataset.words()
    stored, given = dataset.images[rows], [words[label] for label in dataset.labels[rows]]

    def direct(draws: int, seed: str, rounds: int) -> torch.Tensor:
        images = resize(from_uint8(stored), ldm.image_size)
        return direct_slopes(ldm, config, images, given, CHECKED, draws, seed, image_keys(stored).tolist(), rounds)

    def read(detail: int = 1, **options: Any) -> tuple[torch.Tensor, float]:
        """Slopes (N, P) as training reads them from curves, and the rounds that an image got."""
        estimator = SlopeEstimator(ldm, dataclasses.replace(config, curve_detail=detail, **options))
        found = curves_of(estimator, dataset, rows, list(words), ldm.image_size)
        curves = Curves(torch.tensor(confidences(detail)[1]), found["slopes"], found["errors"], found["rounds"])
        which = np.repeat(np.arange(len(rows)), len(CHECKED))
        slopes = curves.slopes_at(which, torch.tensor(CHECKED).repeat(len(rows)))
        return slopes.view(len(rows), -1), float(found["rounds"].float().mean())

    truth = direct(REFERENCE_DRAWS, "reference", 1)
    table = []
    for detail, samples, rounds in OPTIONS:
        knots, points = confidences(detail)
        slopes, _ = read(detail, curve_samples=samples, curve_rounds=rounds, curve_tolerance=0.0)
        passes = len(knots) * samples * rounds + 2 * len(points)
        table.append({"detail": detail, "samples": samples, "rounds": rounds, "passes": passes,
                      "error": relative(slopes, truth)})  # fmt: skip
    found, rounds = read()
    ours = relative(found, truth)
    # With the very draws that the direct slopes have: what is left is the lines between points.
    shared = direct(SHARED_DRAWS, "curve", 2)
    between = {
        detail: relative(read(detail, curve_samples=SHARED_DRAWS, curve_rounds=2, curve_tolerance=0.0)[0], shared)
        for detail in dict.fromkeys(detail for detail, _, _ in OPTIONS)
    }
    return row(
        "curve_error", "error of curves by the default options, at confidences between their points", "1,000 draws",
        ratio=ours, target="<= 0.02", reached=ours <= 0.02, ours=ours, theirs=0.0, unit="of the slopes' size (rms)",
        images=len(rows), rounds=rounds, between_points=between, table=table,
    )  # fmt: skip
