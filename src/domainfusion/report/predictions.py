"""What a run said of each image of its target: its `predictions.csv`."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np

from domainfusion.report.reading import Run


@dataclasses.dataclass(frozen=True)
class Predictions:
    """n images of a target, as a run saw them."""

    rows: np.ndarray  # (n,) int64, rows of the data set
    true: tuple[str, ...]  # (n,) classes
    said: tuple[str, ...]  # (n,) predicted classes
    probability: np.ndarray  # (n,) of the prediction
    calibrated: np.ndarray | None = None  # (n,) the same at the temperature fitted on the sources, where there is one

    @property
    def hits(self) -> np.ndarray:
        """(n,) bool: whether the prediction is right."""
        return np.array(self.true) == np.array(self.said)


def read_predictions(run: Run) -> Predictions | None:
    """A run's `predictions.csv`; None where there is none, it holds no image, or something else than it should."""
    try:
        with open(run.folder / "predictions.csv", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        found = Predictions(
            rows=np.array([int(line["row"]) for line in lines], dtype=np.int64),
            true=tuple(str(line["class"]) for line in lines), said=tuple(str(line["prediction"]) for line in lines),
            probability=_shares(lines, "probability"),
            calibrated=_shares(lines, "calibrated") if lines and "calibrated" in lines[0] else None,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error):
        return None
    return found if lines and found.rows.min() >= 0 else None


def _shares(lines: list[dict[str, str]], name: str) -> np.ndarray:
    """(n,) the values of a column. Raises `ValueError` where one is no number from 0 to 1."""
    values = np.array([float(line[name]) for line in lines])
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(name)
    return values
