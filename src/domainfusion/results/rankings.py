"""How well a ranking finds what it looks for: precision, recall, average precision."""

from __future__ import annotations

import numpy as np


def order_of(scores: np.ndarray) -> np.ndarray:
    """(n,) positions by falling score, equal scores in their order.

    >>> order_of(np.array([0.1, 0.9, 0.1])).tolist()
    [1, 0, 2]
    """
    return np.argsort(-scores, kind="stable")


def precision_at(scores: np.ndarray, wanted: np.ndarray, count: int) -> float:
    """Share of `wanted` (n,) bool among the `count` highest scores (n,)."""
    return float(wanted[order_of(scores)[:count]].mean())


def recall_at(scores: np.ndarray, wanted: np.ndarray, count: int) -> float:
    """Share of all `wanted` (n,) bool that is among the `count` highest scores (n,)."""
    return float(wanted[order_of(scores)[:count]].sum() / wanted.sum())


def average_precision(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Mean over the wanted of the precision at the place of each; by chance about their share.

    >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.8333333333333333
    """
    hits = wanted[order_of(scores)]
    places = np.flatnonzero(hits) + 1
    return float((np.arange(1, len(places) + 1) / places).mean())
