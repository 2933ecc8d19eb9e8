"""An LDM under watch, how many passes of its U-Net it makes and what happens where memory runs out; images as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from domainfusion.data.decoded import DecodedImages
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


def count_images_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by how many images are read at once, at each reading of a data set's from now on."""
    read: list[int] = []
    get = DecodedImages.__getitem__

    def counted(self: DecodedImages, key: Any) -> Any:
        found = get(self, key)
        read.append(len(found) if np.ndim(found) == 4 else 1)
        return found

    monkeypatch.setattr(DecodedImages, "__getitem__", counted)
    return read
