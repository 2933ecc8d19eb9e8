"""CDGA's and DSI's translations where memory runs out: fewer at once, and the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.config import CDGAConfig, DataConfig, DSIConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.fusion.inversion import translate
from domainfusion.fusion.translations import Translations


@pytest.fixture
def ldm(tiny_pipeline: Path) -> LatentDiffusion:
    return LatentDiffusion.load(str(tiny_pipeline), precision="float32")


def of_little_memory(ldm: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Passes of three latents and more run out of it; the list of all sizes asked for."""
    predict, sizes = ldm.predict_noise, []

    def limited(latents: torch.Tensor, timesteps: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        sizes.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(latents, timesteps, embeds)

    monkeypatch.setattr(ldm, "predict_noise", limited)
    return sizes


def test_dsis(ldm: LatentDiffusion, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    config = DSIConfig(steps=4)
    whole = translate(ldm, images, 0.5, config)
    sizes = of_little_memory(ldm, monkeypatch)
    np.testing.assert_allclose(translate(ldm, images, 0.5, config).astype(int), whole.astype(int), atol=1)
    assert sizes[0] == 4
    assert set(sizes[1:]) == {2}
    assert "out of memory in translating (--dsi.batch-size): 2 at once" in capsys.readouterr().err


def test_cdgas(
    ldm: LatentDiffusion, image_folder: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = TrainConfig(
        algorithm="cdga", ldm=str(tiny_pipeline), precision="float32", device="cpu", data=DataConfig(size=16),
        cdga=CDGAConfig(steps=2, guidance=1.0, pictures=False),
    )  # fmt: skip
    dataset = load_dataset(str(image_folder), config.data)
    rows = np.arange(4)
    whole = Translations(dataset, config, lambda: ldm, torch.float32)
    whole.make(rows, ["photo"], progress=False)
    expected = whole.cache("photo").images[rows].astype(int)
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "other"))
    of_little_memory(ldm, monkeypatch)
    again = Translations(dataset, config, lambda: ldm, torch.float32)
    again.make(rows, ["photo"], progress=False)
    np.testing.assert_allclose(again.cache("photo").images[rows].astype(int), expected, atol=1)
    assert "out of memory in translating (--generate.batch-size)" in capsys.readouterr().err
    assert again.at_once <= 2
