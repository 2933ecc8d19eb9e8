"""A tiny LDM, images in its own size, and a small data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.diffusion.ldm import LatentDiffusion
from draws import FEW_ROUNDS


@pytest.fixture(scope="module")
def ldm(tiny_pipeline: Path) -> LatentDiffusion:
    return LatentDiffusion.load(str(tiny_pipeline), precision="float32")


@pytest.fixture
def images() -> torch.Tensor:
    """(3, 3, 16, 16) in [-1, 1], in double precision."""
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1


@pytest.fixture
def few_images(make_image_folder: Callable[..., Path]) -> Path:
    """3 domains x 3 classes x 2 images."""
    return make_image_folder("few", count=2)


@pytest.fixture
def dataset(few_images: Path) -> MultiDomainDataset:
    return load_dataset(str(few_images), DataConfig(size=32))


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    """A short run with distillation by curves alone."""
    return TrainConfig(
        target="sketch", steps=3, batch_size=4, ldm=str(tiny_pipeline), precision="float32", evaluations=1,
        synthetic_weight=0, data=DataConfig(size=32), generate=GenerateConfig(candidates=2, steps=2),
        distill=FEW_ROUNDS,
    )  # fmt: skip
