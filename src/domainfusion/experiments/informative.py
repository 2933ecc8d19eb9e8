"""Which images and classes the LDM finds informative: those that its slopes pull at the most.

The size of an image's slopes is their root mean square over the confidences of the table, what noise there is in them
included (its standard error, likewise). Their mean over a span of confidences is the change of the LDM's loss over it,
so where it is negative, fading the image in, from nothing to half or from half to all of it, lowers the loss. (In
Pictograms it rises for two thirds of the images, with their right labels.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.distillation.curves import Curves
from domainfusion.results.rankings import order_of

COLUMNS = ("row", "image", "domain", "class", "size", "standard_error", "rounds", "mean_slope_below",
           "mean_slope_above")  # fmt: skip
HALF = 0.5  # the confidence at which "below" ends and "above" begins


def describe_images(dataset: MultiDomainDataset, curves: Curves) -> list[dict[str, Any]]:
    """An entry (`COLUMNS`) for each image that was tabulated, the largest slopes first.

    The standard error of an image that has one round is not known (None).
    """
    rounds = curves.rounds.cpu().numpy()
    rows = np.flatnonzero(rounds > 0)
    grid, slopes, errors = (
        values.cpu().double().numpy() for values in (curves.grid, curves.slopes[rows], curves.errors[rows])
    )
    size, error = (np.sqrt(np.square(values).mean(1)) for values in (slopes, errors))
    below, above = mean_over(grid, slopes, grid[0], HALF), mean_over(grid, slopes, HALF, grid[-1])
    entries = []
    for i in order_of(size).tolist():
        row = int(rows[i])
        entries.append({
            "row": row, "image": dataset.keys[row], "domain": dataset.domains[dataset.domain_of[row]],
            "class": dataset.classes[dataset.labels[row]], "size": _digits(size[i]),
            "standard_error": _digits(error[i]) if rounds[row] > 1 else None, "rounds": int(rounds[row]),
            "mean_slope_below": _digits(below[i]), "mean_slope_above": _digits(above[i]),
        })  # fmt: skip
    return entries


def mean_over(grid: np.ndarray, slopes: np.ndarray, low: float, high: float) -> np.ndarray:
    """(n,) mean from `low` to `high` of the lines through slopes (n, G) at confidences grid (G,), ascending.

    >>> mean_over(np.array([0.0, 0.4, 1.0]), np.array([[0.0, 4.0, 4.0]]), 0.2, 1.0)
    array([3.75])
    """
    p = np.concatenate([[low], grid[(grid > low) & (grid < high)], [high]])
    values = np.stack([np.interp(p, grid, line) for line in slopes]) if len(slopes) else np.zeros((0, len(p)))
    return ((values[:, 1:] + values[:, :-1]) / 2) @ np.diff(p) / (high - low)


def describe_classes(dataset: MultiDomainDataset, curves: Curves) -> list[dict[str, Any]]:
    """{"class", "size", "images"} of each class with tabulated images, the largest slopes (root mean square) first."""
    known = curves.rounds.cpu().numpy() > 0
    squares = curves.slopes.cpu().double().square().mean(1).numpy()
    entries = []
    for label, name in enumerate(dataset.classes):
        mine = known & (dataset.labels == label)
        if mine.any():
            size = np.sqrt(squares[mine].mean())
            entries.append({"class": name, "size": _digits(size), "images": int(mine.sum())})
    return [entries[i] for i in order_of(np.array([entry["size"] for entry in entries]))]


def _digits(value: float) -> float:
    """Six digits of a value, whatever its magnitude."""
    return float(f"{value:.6g}")
