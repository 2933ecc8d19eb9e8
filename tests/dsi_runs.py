"""Small runs of DSI."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from domainfusion.config import DataConfig, DSIConfig, TrainConfig


def dsi_config(pipeline: Path) -> TrainConfig:
    """A run of three steps, whose LDMs are the pipeline in `pipeline` after two steps of fine-tuning."""
    return TrainConfig(
        algorithm="dsi", target="photo", ldm=str(pipeline), precision="float32", device="cpu", steps=3, evaluations=1,
        batch_size=4, backbone="test_resnet", data=DataConfig(size=16),
        dsi=DSIConfig(tune_steps=2, tune_batch_size=4, steps=4, starts=(0.25, 0.75), threshold=0.45),
    )  # fmt: skip


def with_options(config: TrainConfig, **values: Any) -> TrainConfig:
    """`config` with other options of DSI."""
    return dataclasses.replace(config, dsi=dataclasses.replace(config.dsi, **values))
