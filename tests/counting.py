"""An LDM under watch: how many passes of its U-Net it makes, and what happens where memory runs out."""

from __future__ import annotations

import pytest
import torch

from domainfusion.diffusion.ldm import LatentDiffusion


def count_passes(ldm: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the size of each batch that the U-Net is given from now on."""
    spent: list[int] = []
    forward = ldm.unet.forward

    def counted(noisy: torch.Tensor, *rest: object, **options: object) -> object:
        spent.append(len(noisy))
        return forward(noisy, *rest, **options)

    monkeypatch.setattr(ldm.unet, "forward", counted)
    return spent


def run_out_above(ldm: LatentDiffusion, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on memory runs out where the U-Net is given a batch of more than `most`."""
    forward = ldm.unet.forward

    def limited(noisy: torch.Tensor, *rest: object, **options: object) -> object:
        if len(noisy) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(noisy, *rest, **options)

    monkeypatch.setattr(ldm.unet, "forward", limited)
