"""The algorithms on a small real case: two source domains of 29 training images, and a small residual network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domainfusion.algorithms.base import Algorithm
from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion_runs import MakeConfig

MakeAlgorithm = Callable[..., Algorithm]


@pytest.fixture(scope="session")
def shared_images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image folder for all tests that only read it."""
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def small_options() -> Callable[..., TrainConfig]:
    """`small_options("coral", steps=3)`: a config for a small run on two of the three domains."""

    def make(algorithm: str, **changes: Any) -> TrainConfig:
        base = TrainConfig(
            algorithm=algorithm, target="sketch", steps=8, evaluations=4, batch_size=6, backbone="test_resnet",
            precision="float32", device="cpu", data=DataConfig(size=32),
        )  # fmt: skip
        return dataclasses.replace(base, **changes)

    return make


@pytest.fixture
def make_algorithm(
    shared_images: Path, small_options: Callable[..., TrainConfig], tmp_path: Path
) -> Callable[..., Algorithm]:
    """`make_algorithm("coral", batch_size=4)`: the algorithm as a run would build it."""

    def make(algorithm: str, **changes: Any) -> Algorithm:
        config = small_options(algorithm, **changes)
        return build_algorithm(build_context(str(shared_images), config, tmp_path / "run", progress=False))

    return make


@pytest.fixture
def make_config(tiny_pipeline: Path) -> MakeConfig:
    """A very small run; one epoch is one step, so that generations come in every step."""

    def make(**options: object) -> TrainConfig:
        values: dict[str, Any] = {
            "target": "sketch", "steps": 4, "batch_size": 4, "backbone": "resnet10t", "ldm": str(tiny_pipeline),
            "precision": "float32", "device": "cpu", "evaluations": 2, "data": DataConfig(size=32),
            "generate": GenerateConfig(candidates=2, steps=2, interval=1),
        }  # fmt: skip
        return TrainConfig(**(values | options))

    return make


@pytest.fixture
def few_images(make_image_folder: Callable[..., Path]) -> Path:
    """3 domains x 3 classes x 2 images: 5 of each source's 6 train."""
    return make_image_folder("few", count=2)
