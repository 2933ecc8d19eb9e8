"""Accuracy of a classifier on images as they are stored (or in a view of theirs)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import to_float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a classifier said of n images; every figure below derives from it."""

    rows: np.ndarray  # (n,) rows of the data set
    labels: np.ndarray  # (n,)
    probabilities: np.ndarray  # (n, classes) float32

    @property
    def predictions(self) -> np.ndarray:
        """(n,) the most probable class."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """Share of right predictions; NaN of no image."""
        return float((self.predictions == self.labels).mean()) if len(self.labels) else float("nan")

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        right = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(right, 1e-12)).mean()) if len(self.labels) else float("nan")

    def confusion(self) -> np.ndarray:
        """(classes, classes) counts: row = true class, column = predicted class."""
        classes = self.probabilities.shape[1]
        flat = np.bincount(self.labels * classes + self.predictions, minlength=classes * classes)
        return flat.reshape(classes, classes)


@torch.no_grad()
def collect_logits(
    predict: Callable[[torch.Tensor], torch.Tensor], dataset: MultiDomainDataset, rows: np.ndarray, *,
    device: torch.device, dtype: torch.dtype, batch_size: int = 256,
    view: Callable[[torch.Tensor], torch.Tensor] | None = None, between: Callable[[], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """(n, classes) float32 logits of rows (n,) of a data set, by `predict` (images (B, 3, S, S) in [0, 1]).

    Args:
        view: what is made of a batch of images before it is predicted (None: nothing).
        between: called before each batch; it may raise to end the evaluation.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(rows), batch_size):
        if between is not None:
            between()
        images = to_float(torch.from_numpy(dataset.images[rows[start : start + batch_size]]).to(device))
        images = images if view is None else view(images)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = predict(images)
        found.append(logits.float().cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, len(dataset.classes)), dtype=np.float32)


def evaluate(
    predict: Callable[[torch.Tensor], torch.Tensor], dataset: MultiDomainDataset, rows: np.ndarray, *,
    device: torch.device, dtype: torch.dtype, batch_size: int = 256,
    view: Callable[[torch.Tensor], torch.Tensor] | None = None, between: Callable[[], None] | None = None,
) -> Evaluation:  # fmt: skip
    """The evaluation of `predict` (images (B, 3, S, S) in [0, 1] to logits) on rows of a data set, seen by `view`.

    `between` is called before each batch; it may raise to end the evaluation.
    """
    logits = collect_logits(
        predict, dataset, rows, device=device, dtype=dtype, batch_size=batch_size, view=view, between=between
    )
    return evaluation_of_logits(logits, dataset, rows)


def evaluation_of_logits(logits: np.ndarray, dataset: MultiDomainDataset, rows: np.ndarray) -> Evaluation:
    """The evaluation of logits (n, classes) of rows (n,) of a data set."""
    return Evaluation(rows, dataset.labels[rows], torch.from_numpy(logits).softmax(-1).numpy())
