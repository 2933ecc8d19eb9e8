"""What the figures of `judge` are taken to say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import LDMError
from domainfusion.experiments import judging
from domainfusion.experiments.judging import judge_ldm, slope_ranking, verdict
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


def test_slopes_of_true_labels_are_compared_with_those_of_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """70 images in two portions; the slope of a label is its class's number, less three for one residual."""
    classes = ("cat", "dog", "house")
    dataset = SimpleNamespace(classes=classes, words=lambda: tuple(name.upper() for name in classes))
    labels = np.random.default_rng(0).integers(0, 3, 70)
    asked: dict[str, list[tuple[list[str], list[float], int]]] = {}

    class Estimator:
        def __init__(self, ldm: None, config: DistillConfig) -> None:
            self.residual = config.residual

        def slopes(self, images: torch.Tensor, prompts: list[str], p: torch.Tensor, draws: int) -> torch.Tensor:
            asked.setdefault(self.residual, []).append((prompts, p.tolist(), draws))
            found = torch.tensor([float(dataset.words().index(prompt)) for prompt in prompts])
            return found - 3 * (self.residual == "contrast")

    monkeypatch.setattr(judging, "SlopeEstimator", Estimator)
    monkeypatch.setattr(judging, "draw", lambda *rest: rest[-1].initial_seed())
    found = slope_ranking(None, torch.zeros(70, 3, 8, 8), dataset, labels)
    assert set(found) == set(asked) == {"plain", "guided", "contrast"}
    for residual, calls in asked.items():
        true, wrong = ([prompt for prompts, _, _ in calls[k::2] for prompt in prompts] for k in (0, 1))
        assert true == [classes[label].upper() for label in labels]
        assert all(a != b for a, b in zip(true, wrong, strict=True))
        assert {p for _, shares, _ in calls for p in shares} == {0.5}
        seeds = [draws for *_, draws in calls]
        assert seeds[0] == seeds[1] != seeds[2] == seeds[3]  # the same for both labels, others in each portion
        share = np.mean([a < b for a, b in zip(true, wrong, strict=True)])  # classes are in the order of names
        assert 0.3 < share < 0.7
        entry = found[residual]
        assert entry["true_below_wrong"] == pytest.approx(100 * share)
        assert entry["standard_error"] == pytest.approx(100 * np.sqrt(share * (1 - share) / 70))
        slopes = labels - 3.0 * (residual == "contrast")
        assert (entry["mean"], entry["mean_size"]) == (pytest.approx(slopes.mean()), pytest.approx(abs(slopes).mean()))


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
    pixels, judged = judging._pixels, []

    def pixels_of(dataset: MultiDomainDataset, rows: np.ndarray, size: int) -> torch.Tensor:
        judged.append(rows)
        return pixels(dataset, rows, size)

    monkeypatch.setattr(judging, "_pixels", pixels_of)

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
    split = build_split(load_dataset(str(image_folder), DataConfig(size=16)), DataConfig(), None, 0)
    assert len(judged[0]) == 4
    assert set(np.concatenate(judged)) <= set(np.concatenate(list(split.validation.values())))  # not trained on


def test_a_wrong_ldm_is_refused_before_anything_is_trained(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LDMError, match=r"there is no folder \./absent"):
        judge_ldm(str(image_folder), "./absent", 4, tmp_path / "judge", steps=2)
    assert list((tmp_path / "judge").iterdir()) == []
