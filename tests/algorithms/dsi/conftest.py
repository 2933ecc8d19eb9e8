"""Images and options of the runs of DSI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from domainfusion.config import TrainConfig
from dsi_runs import dsi_config


@pytest.fixture
def images(make_image_folder: Callable[..., Path]) -> Path:
    """3 domains x 3 classes x 5 images: a source trains on 12 and validates on 3; of a target 12 are tested."""
    return make_image_folder("five", count=5)


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    return dsi_config(tiny_pipeline)
