"""A training step of every algorithm keeps its tensors on its device; no GPU is needed for it (`meta_device`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from domainfusion.algorithms.base import Batch
from domainfusion.algorithms.erm import ERM
from domainfusion.algorithms.zero_shot import ZeroShot
from domainfusion.config import CDGAConfig, DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.registry import ALGORITHMS
from domainfusion.training.step import compute_losses, make_batch
from meta_device import answer_for_meta_tensors

TRAINED = [name for name in ALGORITHMS.names() if not issubclass(ALGORITHMS.load(name), ZeroShot)]


def step(
    algorithm: str, images: Path, ldm: Path, folder: Path, number: int = 0, **changes: Any
) -> dict[str, torch.Tensor]:
    """The losses of step `number` on the meta device, their gradients computed."""
    options: dict[str, Any] = {
        "target": "sketch", "steps": 40, "batch_size": 4, "backbone": "test_resnet", "device": "meta", "ldm": str(ldm),
        "precision": "float32", "synthetic_weight": 0.0, "data": DataConfig(size=32, grayscale=0.5),
        "generate": GenerateConfig(candidates=2, steps=2), "cdga": CDGAConfig(steps=2),
    } | changes  # fmt: skip
    config = TrainConfig(algorithm=algorithm, **options)
    made = build_algorithm(build_context(str(images), config, folder, progress=False)).to("meta")
    made.before_step(number, 0)
    losses = compute_losses(made, make_batch(made, number))
    torch.stack(list(losses.values())).sum().backward()
    return losses


@pytest.mark.parametrize(
    ("algorithm", "estimator"), [*((name, "score") for name in TRAINED), ("domainfusion", "autograd")]
)
def test_a_step_keeps_everything_on_the_device(
    algorithm: str, estimator: Any, shared_images: Path, tiny_pipeline: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    answer_for_meta_tensors(monkeypatch)
    distill = DistillConfig(estimator=estimator, images_per_step=2)
    losses = step(algorithm, shared_images, tiny_pipeline, tmp_path, distill=distill)
    assert {value.device.type for value in losses.values()} == {"meta"}


@pytest.mark.parametrize("options", [{}, {"recombination": False}, {"recombination": False, "updating": True}])
def test_so_do_generations_and_steps_with_synthetic_images(
    options: dict[str, Any], shared_images: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_for_meta_tensors(monkeypatch)
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "cache"))
    losses = step(
        "domainfusion", shared_images, tiny_pipeline, tmp_path / "run", 20, synthetic_weight=0.5, distill_weight=0.0,
        generate=GenerateConfig(candidates=2, steps=2, **options),
    )  # fmt: skip
    assert {name: value.device.type for name, value in losses.items()} == {
        "raw_loss": "meta", "synthetic_loss": "meta"
    }  # fmt: skip


def test_a_tensor_left_on_the_cpu_is_found(
    shared_images: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above can fail."""
    answer_for_meta_tensors(monkeypatch)
    losses = ERM.losses
    monkeypatch.setattr(
        ERM, "losses",
        lambda self, batch: losses(self, Batch(0, 0, batch.rows, batch.images, torch.zeros(len(batch.rows)).long())),
    )  # fmt: skip
    with pytest.raises((RuntimeError, ValueError), match="device"):
        step("erm", shared_images, tiny_pipeline, tmp_path)
