"""Candidates on a device that is not the CPU; no GPU is needed for it (`meta_device`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from meta_device import answer_for_meta_tensors


@pytest.mark.parametrize("solver", ["ddim", "dpm", "unipc"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("given", [False, True])
def test_images_and_noise_go_to_the_device_and_candidates_come_back(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, solver: Any, guidance: float, given: bool
) -> None:
    answer_for_meta_tensors(monkeypatch)
    ldm = LatentDiffusion.load(str(tiny_pipeline), device="meta", precision="float32")
    found = image_to_image(
        ldm, torch.zeros(2, 3, 16, 16), ["a cat"] * 4, torch.tensor([[0.5, 0.6], [0.7, 0.8]]), candidates=2, steps=3,
        generator=torch.Generator().manual_seed(0), noise=torch.zeros(4, 4, 8, 8) if given else None,
        guidance_scale=guidance, solver=solver, side=32,
    )  # fmt: skip
    assert found.shape == (2, 2, 3, 32, 32)
    assert found.device.type == "cpu"
