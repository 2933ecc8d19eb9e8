"""The baselines on a small real case: two source domains of 29 training images, and a small residual network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domainfusion.algorithms.base import Algorithm
from domainfusion.config import DataConfig, TrainConfig
from domainfusion.experiments.runs import build_algorithm, build_context

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
