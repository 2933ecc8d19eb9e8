"""Images and options of the runs of zero-shot classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from domainfusion.config import TrainConfig
from zero_shot_runs import zero_shot_config


@pytest.fixture
def images(make_image_folder: Callable[..., Path]) -> Path:
    """3 domains x 3 classes x 5 images: 12 of a target's 15 are tested on, 3 of a source's validate."""
    return make_image_folder("five", count=5)


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    return zero_shot_config(tiny_pipeline)
