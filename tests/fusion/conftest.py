"""The tiny pipeline and a small folder of images, loaded, for the tests of fusion."""

from __future__ import annotations

from pathlib import Path

import pytest

from domainfusion.config import DataConfig
from domainfusion.data.domains import MultiDomainDataset, load_folder
from domainfusion.diffusion.ldm import LatentDiffusion


@pytest.fixture
def ldm(tiny_pipeline: Path) -> LatentDiffusion:
    return LatentDiffusion.load(str(tiny_pipeline), precision="float32")


@pytest.fixture
def dataset(image_folder: Path) -> MultiDomainDataset:
    return load_folder(image_folder, DataConfig(size=16))
