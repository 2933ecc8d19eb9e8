from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.config import DataConfig
from domainfusion.data.domains import load_folder
from domainfusion.training.evaluation import Evaluation, evaluate


def random_evaluation(count: int, classes: int, seed: int) -> Evaluation:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    return Evaluation(np.arange(count), rng.integers(0, classes, count), probabilities)


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 1000))
def test_the_figures_against_literal_loops(count: int, classes: int, seed: int) -> None:
    found = random_evaluation(count, classes, seed)
    confusion = [[0] * classes for _ in range(classes)]
    right, loss = 0, 0.0
    for label, row in zip(found.labels.tolist(), found.probabilities.tolist(), strict=True):
        said = max(range(classes), key=lambda c: row[c])
        confusion[label][said] += 1
        right += said == label
        loss -= math.log(max(row[label], 1e-12))
    assert found.confusion().tolist() == confusion
    assert found.accuracy == pytest.approx(right / count)
    assert found.loss == pytest.approx(loss / count, rel=1e-5)


def test_of_no_image_there_is_no_accuracy() -> None:
    none = Evaluation(np.empty(0, int), np.empty(0, int), np.zeros((0, 3), np.float32))
    assert math.isnan(none.accuracy)
    assert math.isnan(none.loss)
    assert none.confusion().tolist() == [[0] * 3] * 3


def test_certainty_of_the_wrong_class_costs_a_finite_loss() -> None:
    found = Evaluation(np.arange(1), np.array([0]), np.array([[0.0, 1.0]], dtype=np.float32))
    assert found.loss == pytest.approx(-math.log(1e-12))


def test_images_come_as_they_are_stored_in_the_order_of_rows(image_folder: Path) -> None:
    dataset = load_folder(image_folder, DataConfig(size=8))
    rows = np.array([5, 100, 40, 41, 7, 90, 3])
    sizes: list[int] = []

    def predict(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return 4 * images.mean((2, 3))  # three colours as three classes

    found = evaluate(predict, dataset, rows, device=torch.device("cpu"), dtype=torch.float32, batch_size=3)
    assert sizes == [3, 3, 1]
    assert found.labels.tolist() == dataset.labels[rows].tolist()
    assert found.rows.tolist() == rows.tolist()
    for row, probabilities in zip(rows, found.probabilities, strict=True):
        scores = np.exp(4 * (dataset.images[row].astype(np.float64) / 255).mean((0, 1)))
        assert probabilities == pytest.approx(scores / scores.sum(), abs=1e-5)


def test_nothing_is_evaluated_on_no_rows(image_folder: Path) -> None:
    dataset = load_folder(image_folder, DataConfig(size=8))
    none = np.empty(0, dtype=np.int64)
    found = evaluate(lambda images: images, dataset, none, device=torch.device("cpu"), dtype=torch.float32)
    assert found.probabilities.shape == (0, 3)


def test_autocast_gives_float32_probabilities(image_folder: Path) -> None:
    dataset = load_folder(image_folder, DataConfig(size=8))
    layer = torch.nn.Linear(192, 3)
    seen: list[torch.dtype] = []

    def predict(images: torch.Tensor) -> torch.Tensor:
        logits = layer(images.flatten(1))
        seen.append(logits.dtype)
        return logits

    found = evaluate(predict, dataset, np.arange(4), device=torch.device("cpu"), dtype=torch.bfloat16)
    assert seen == [torch.bfloat16]
    assert found.probabilities.dtype == np.float32
    assert found.probabilities.sum(1) == pytest.approx(np.ones(4), abs=1e-6)
