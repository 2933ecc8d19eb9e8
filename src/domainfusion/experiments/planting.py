"""Wrong labels planted on purpose, and how well a ranking of suspicious labels finds them."""

from __future__ import annotations

import numpy as np

from domainfusion.errors import UsageError
from domainfusion.results.rankings import average_precision, precision_at, recall_at
from domainfusion.seeding import derive_numpy_rng


def plant_labels(
    labels: np.ndarray, classes: int, share: float, seed: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) of which `share` are wrong, and (N,) bool which; each wrong one is drawn from the other classes.

    Exactly round(share·n) of `rows` (n,) are wrong, and as large a share of the others: a subset that is looked at has
    its full number, and a classifier trained on all images sees as much noise everywhere.
    """
    rng = derive_numpy_rng("planted labels", seed)
    planted = np.zeros(len(labels), dtype=bool)
    for part in (rows, np.setdiff1d(np.arange(len(labels)), rows)):
        planted[rng.choice(part, round(share * len(part)), replace=False)] = True
    if not planted[rows].any():
        raise UsageError(f"--plant {share:g} plants no wrong label among {len(rows)} images; raise it or --images")
    wrong = labels.copy()
    wrong[planted] = (labels[planted] + rng.integers(1, classes, int(planted.sum()))) % classes
    return wrong, planted


def ranking_figures(scores: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    """How well the highest scores (n,) point at what is planted (n,) bool.

    `precision` is that of the first m, m being the number planted, where precision and recall are the same;
    `recall_twice` is the recall of the first 2m.
    """
    count = int(planted.sum())
    return {
        "precision": precision_at(scores, planted, count), "recall": recall_at(scores, planted, count),
        "recall_twice": recall_at(scores, planted, 2 * count), "average_precision": average_precision(scores, planted),
    }  # fmt: skip
