"""Short runs of ERM on a few images, whole or killed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from domainfusion.algorithms.erm import ERM
from domainfusion.config import DataConfig, TrainConfig
from domainfusion.experiments.runs import train_run


def options(**changes: Any) -> TrainConfig:
    """ERM on two of the three domains, evaluated after steps 2, 4, 6 and 8."""
    base = TrainConfig(
        algorithm="erm", target="sketch", steps=8, evaluations=4, batch_size=4, backbone="test_resnet",
        precision="float32", device="cpu", data=DataConfig(size=32),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def run(images: Path, folder: Path, /, **changes: Any) -> dict[str, Any]:
    return train_run(str(images), options(**changes), folder, progress=False)


class Killed(BaseException):
    """What a test raises in place of a signal; nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def before_step(self: ERM, now: int, epoch: int) -> None:
        if now == step:
            raise Killed

    monkeypatch.setattr(ERM, "before_step", before_step)


def train_until(images: Path, folder: Path, step: int, /, **changes: Any) -> None:
    """A run that is killed before `step`."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            run(images, folder, **changes)
