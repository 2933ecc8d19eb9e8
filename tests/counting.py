"""How many passes of its U-Net an LDM makes."""

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
