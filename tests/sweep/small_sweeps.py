"""Options of sweeps that take little time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domainfusion.config import DataConfig, TrainConfig
from domainfusion.sweep.options import SweepConfig

CONFIG = TrainConfig(
    algorithm="erm", steps=150, evaluations=15, batch_size=4, backbone="test_resnet", precision="float32", device="cpu",
    data=DataConfig(size=32),
)  # fmt: skip


def sweep_of(images: Path, **options: Any) -> SweepConfig:
    values: dict[str, Any] = {"algorithms": ("erm",), "targets": ("photo", "sketch"), "trials": 1, **options}
    return SweepConfig(data=(str(images),), **values)
