"""Small runs of zero-shot classifiers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from domainfusion.config import DataConfig, GenerateConfig, TrainConfig, ZeroShotConfig


def zero_shot_config(pipeline: Path) -> TrainConfig:
    """Diffusion Classifier by the pipeline in `pipeline`, in two stages of two draws."""
    return TrainConfig(
        algorithm="diffusion_classifier", target="photo", ldm=str(pipeline), precision="float32", device="cpu",
        steps=2, evaluations=1, batch_size=4, backbone="test_resnet", data=DataConfig(size=32),
        generate=GenerateConfig(plain_template="a {label}"),
        zero_shot=ZeroShotConfig(samples=(2, 4), keep=(2, 1), min_scores=2, max_scores=4, batch_size=8),
    )  # fmt: skip


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """`config` with other options, those of zero-shot classification by their own names."""
    outer = {name: value for name, value in values.items() if hasattr(config, name)}
    inner = {name: value for name, value in values.items() if name not in outer}
    return dataclasses.replace(config, **outer, zero_shot=dataclasses.replace(config.zero_shot, **inner))
