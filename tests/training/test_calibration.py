"""Temperature scaling against a brute-force search, and its error against a literal one."""

from __future__ import annotations

import numpy as np
import pytest

from domainfusion.training.calibration import (
    BINS,
    HIGHEST,
    LOWEST,
    calibration_error,
    confidence_error,
    confidences_at,
    fit_temperature,
    mean_confidence,
    negative_log_likelihood,
)


def draw(seed: int, scale: float, count: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose calibrated version was multiplied by `scale`: the labels are drawn from softmax(logits/scale)."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (count, classes))
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in p])
    return (scale * true).astype(np.float32), labels


def literal_nll(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    total = 0.0
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        exps = np.exp(row / temperature)
        total -= np.log(exps[label] / exps.sum())
    return total / len(labels)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_grid_minimum_of_the_likelihood(scale: float) -> None:
    logits, labels = draw(int(10 * scale), scale)
    found = fit_temperature(logits, labels)
    grid = np.geomspace(0.05, 20, 2001)
    best = grid[np.argmin([negative_log_likelihood(logits, labels, t) for t in grid])]
    assert found == pytest.approx(best, rel=2 * np.log(400) / 2000)
    assert negative_log_likelihood(logits, labels, found) <= min(
        literal_nll(logits, labels, t) for t in (best, best * 1.003, best / 1.003, 1.0)
    ) + 1e-9  # fmt: skip
    assert found == pytest.approx(scale, rel=0.15)  # what the labels were drawn with


def test_a_minimum_beyond_the_temperatures_gives_the_nearest() -> None:
    for scale, nearest in ((0.01, LOWEST), (200.0, HIGHEST)):
        logits, labels = draw(4, scale)
        assert (logits.argmax(1) != labels).any()
        assert fit_temperature(logits, labels) == nearest


def test_a_few_images_do_not_make_it_surer() -> None:
    """Too timid by a factor of three: 400 images say so, 99 of them are not believed; too sure is believed of any."""
    logits, labels = draw(3, 0.3)
    assert fit_temperature(logits, labels) < 0.5
    assert fit_temperature(logits[:100], labels[:100]) < 0.5
    assert fit_temperature(logits[:99], labels[:99]) == 1.0
    assert fit_temperature(10 * logits[:99], labels[:99]) > 2


def test_likelihood_is_the_literal_one() -> None:
    logits, labels = draw(3, 2.0, count=40)
    for t in (0.2, 1.0, 7.0):
        assert negative_log_likelihood(logits, labels, t) == pytest.approx(literal_nll(logits, labels, t), rel=1e-9)


def test_without_a_minimum_nothing_is_changed() -> None:
    logits = 3 * np.eye(4, dtype=np.float32)
    assert fit_temperature(logits, np.arange(4)) == 1.0  # every image right: the likelihood grows without end
    assert fit_temperature(np.zeros((0, 4), np.float32), np.zeros(0, int)) == 1.0
    assert fit_temperature(logits, (np.arange(4) + 1) % 4) == HIGHEST  # every image wrong: nothing is known


# Neighbouring bins with gaps of either sign between accuracy and confidence, then of one sign.
@pytest.mark.parametrize(("seed", "scale"), [(11, 1.0), (5, 3.0)])
def test_calibration_error_is_the_literal_one(seed: int, scale: float) -> None:
    logits, labels = draw(seed, scale)
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    confidence, hits = p.max(1), p.argmax(1) == labels
    expected = 0.0
    for b in range(BINS):
        inside = (confidence >= b / BINS) & (confidence < (b + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    assert calibration_error(logits, labels) == pytest.approx(expected, rel=1e-9)
    if scale > 1:
        fitted = fit_temperature(logits, labels)
        assert calibration_error(logits, labels, fitted) < 0.5 * expected


@pytest.mark.parametrize("temperature", [LOWEST, 0.5, 1.0, 1.7, HIGHEST])
def test_confidences_at_a_temperature_are_those_of_the_logits(temperature: float) -> None:
    """softmax(log p / T) of p = softmax(z) is softmax(z/T)."""
    logits, labels = draw(6, 2.0, count=60)
    z = logits.astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    literal = [max(np.exp(row / temperature) / sum(np.exp(row / temperature))) for row in z]
    found = confidences_at(p.astype(np.float32), temperature)
    np.testing.assert_allclose(found, literal, rtol=2e-5)
    assert confidence_error(found, p.argmax(1) == labels) == pytest.approx(
        calibration_error(logits, labels, temperature), abs=0.05
    )
    assert mean_confidence(logits, temperature) == pytest.approx(sum(literal) / len(literal))


def test_a_class_without_any_probability_has_none_at_any_temperature() -> None:
    p = np.array([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]], dtype=np.float32)
    assert confidences_at(p, 3.0).tolist() == [1.0, 0.5]
    assert mean_confidence(np.zeros((0, 3), np.float32)) == 0.0
    assert confidence_error(np.zeros(0), np.zeros(0, bool)) == 0.0
