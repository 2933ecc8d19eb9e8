"""What the figures of `judge` are taken to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.experiments import judging
from domainfusion.experiments.judging import judge_ldm, verdict
from domainfusion.files import read_json


def figures(recognised: list[float], images: int = 400, below: float = 71.0) -> dict[str, Any]:
    return {
        "images": images, "raw_recognised": 80.0,
        "candidates": [{"strength": 0.4 + 0.1 * k, "recognised": share} for k, share in enumerate(recognised)],
        "slopes": {"plain": {"true_below_wrong": below, "standard_error": 2.5}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recognised", "images", "said"),
    [
        # Nine tenths of 80 % less two standard errors: of 400 images 67.5 %, of 27 images 54.7 %.
        ([80, 75, 68, 67, 72, 40], 400, "Up to strength 0.6 candidates keep their class (of 400 images)"),
        ([80, 75, 56, 54, 40, 40], 27, "Up to strength 0.6 candidates keep their class (of 27 images)"),
        ([67, 80, 80, 80, 80, 80], 400, "At no strength do candidates keep their class"),
        ([80, 80, 80, 80, 80, 80], 400, "--generate.strength 0.3 0.9"),
    ],
)  # fmt: skip
def test_the_verdict_names_the_strengths_that_keep_the_class(recognised: list[float], images: int, said: str) -> None:
    assert said in verdict(figures(recognised, images))


def test_the_verdict_says_whether_slopes_know_labels() -> None:
    assert "tell true labels" in verdict(figures([80.0] * 6))
    assert "do not tell true labels" in verdict(figures([80.0] * 6, below=54.0))


def test_options_are_followed_and_recorded(
    tiny_pipeline: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The tiny LDM is of 16 pixels; of its candidates no more than two at once find memory here."""
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(judging, "STRENGTHS", (0.5,))
    monkeypatch.setattr(judging, "TrainConfig", lambda **options: TrainConfig(**options, batch_size=4))
    monkeypatch.setattr(judging, "slope_ranking", lambda *_: {})
    redraw, seen = judging.image_to_image, []

    def image_to_image(ldm: Any, images: torch.Tensor, *rest: Any, batch_size: int, **options: Any) -> torch.Tensor:
        seen.append((images.shape[-1], len(images), batch_size))
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return redraw(ldm, images, *rest, batch_size=batch_size, **options)

    monkeypatch.setattr(judging, "image_to_image", image_to_image)
    records = []
    for generate in (GenerateConfig(batch_size=2), GenerateConfig(batch_size=4, image_size=24, guidance=1.5)):
        seen.clear()
        judge_ldm(
            str(image_folder), str(tiny_pipeline), 4, tmp_path / "judge", reading=DataConfig(size=16),
            generate=generate, steps=1,
        )  # fmt: skip
        size = generate.image_size or 16
        assert seen[-2:] == [(size, 2, 2)] * 2
        assert len(seen) == 2 + (generate.batch_size > 2)
        records.append(read_json(tmp_path / "judge" / "judge.json"))
    assert "out of memory in the making of candidates (--generate.batch-size): 2 at once" in capsys.readouterr().err
    first, second = (record["generate"] for record in records)
    assert {name for name in first if first[name] != second[name]} == {"batch_size", "image_size", "guidance"}
    assert (second["image_size"], second["guidance"]) == (24, 1.5)
    assert [record["image_size"] for record in records] == [16, 24]
    assert records[0]["psnr"] != records[1]["psnr"]
