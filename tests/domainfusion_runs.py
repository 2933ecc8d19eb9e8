"""DomainFusion on few images: how tests build it, and what a generation of a run holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import TrainConfig
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.fusion.synthetic import load_generation

MakeConfig = Callable[..., TrainConfig]


def build(data: Path, config: TrainConfig, folder: Path) -> DomainFusion:
    algorithm = build_algorithm(build_context(str(data), config, folder, progress=False))
    assert isinstance(algorithm, DomainFusion)
    return algorithm


def load(run: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    generation = load_generation(run / "synthetic" / f"generation-{number:02d}")
    return generation.rows, generation.images
