"""What the figures of `judge` are taken to say."""

from __future__ import annotations

from typing import Any

import pytest

from domainfusion.experiments.judging import verdict


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
