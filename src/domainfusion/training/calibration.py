"""Temperature scaling: confidences that fit how often the classifier is right on held-out images of its sources.

Guo et al., ICML 2017 (arXiv 1706.04599): p = softmax(z/T) with the one T > 0 that minimises the negative
log-likelihood of a validation set. No prediction changes. It is fitted on the source domains' validation images and
never on a target, so on an unseen domain the confidence is still too high wherever the classifier is worse there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.splits import Split
from domainfusion.training.evaluation import collect_logits

# Temperatures looked at; beyond them a confidence says nothing (all classes equal, or always 100 %).
LOWEST, HIGHEST = 0.05, 20.0
FEW = 100  # images; of fewer, confidences are not raised
BINS = 15


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in [0.05, 20] that minimises the mean negative log-likelihood of softmax(z/T).

    The likelihood is convex in 1/T, so its derivative there, mean(Σ_k softmax(z/T)_k z_k - z_y), is bisected. Where it
    has no minimum (every image is right, or there is none) T is 1: nothing is known that would change it. A minimum
    beyond these temperatures gives the nearest of them. Of fewer than 100 images T is 1 at least: a few that happen to
    be right would make the classifier sure of everything.

    Args:
        logits: (n, classes).
        labels: (n,) int.
    """
    values = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    if not len(values):
        return 1.0
    right = values[torch.arange(len(values)), torch.from_numpy(np.asarray(labels))]

    def derivative(inverse: float) -> float:
        return float(((values * inverse).softmax(1).mul(values).sum(1) - right).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    if bool((values.amax(1) <= right).all()):
        return 1.0
    if len(values) < FEW and derivative(1.0) <= 0:
        return 1.0
    if derivative(high) <= 0:
        return LOWEST
    if derivative(low) >= 0:
        return HIGHEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if derivative(middle) > 0 else (middle, high)
    return float((low * high) ** -0.5)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log softmax(z/T)_y over logits (n, classes) and labels (n,)."""
    scaled = torch.from_numpy(np.asarray(logits, dtype=np.float64)) / temperature
    return float(nn.functional.cross_entropy(scaled, torch.from_numpy(np.asarray(labels))))


def confidences_at(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """(n,) float64 greatest probability of softmax(log p / T), of probabilities (n, classes) and a temperature T > 0.

    Probabilities are softmax(z), which differ from z by a constant of each image that the softmax takes out again.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return np.asarray(1 / ((p / p.max(1, keepdims=True)) ** (1 / temperature)).sum(1))


def confidence_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    """Expected calibration error (15 bins of equal width): mean |accuracy - confidence| over bins, by their size.

    Args:
        confidence: (n,) in [0, 1].
        hits: (n,) bool, whether the prediction is right.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, hits, BINS) - np.bincount(bins, confidence, BINS)
    return float(np.abs(gaps).sum() / max(1, len(hits)))


def calibration_error(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """`confidence_error` of softmax(z/T) over logits (n, classes) and labels (n,)."""
    scaled = torch.from_numpy(np.asarray(logits, dtype=np.float64)) / temperature
    confidence, predicted = (part.numpy() for part in scaled.softmax(1).max(1))
    return confidence_error(confidence, predicted == labels)


def mean_confidence(logits: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of the greatest softmax(z/T) over logits (n, classes); 0 of no image."""
    scaled = torch.from_numpy(np.asarray(logits, dtype=np.float64)) / temperature
    return float(scaled.softmax(1).amax(1).sum() / max(1, len(scaled)))


def calibrate(
    classifier: nn.Module, dataset: MultiDomainDataset, split: Split, *, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The temperature of a classifier, fitted on the source domains' validation images, and what it changes there.

    {"temperature", "images", "domains", "accuracy", "confidence": [before, after], "nll": [before, after],
    "calibration_error": [before, after]}; all over the images of all these domains together.
    """
    classifier.eval()
    rows = np.concatenate([split.validation[domain] for domain in split.sources])
    logits, labels = collect_logits(classifier, dataset, rows, device=device, dtype=dtype), dataset.labels[rows]
    temperature = fit_temperature(logits, labels)
    return {
        "temperature": temperature, "images": len(rows), "domains": list(split.sources),
        "accuracy": float((logits.argmax(1) == labels).sum() / max(1, len(rows))),
        "confidence": [mean_confidence(logits, t) for t in (1.0, temperature)],
        "nll": [negative_log_likelihood(logits, labels, t) for t in (1.0, temperature)],
        "calibration_error": [calibration_error(logits, labels, t) for t in (1.0, temperature)],
    }  # fmt: skip
