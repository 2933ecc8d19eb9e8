"""What the classifiers say class by class: accuracy with its change, confusion matrices, frequent mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from domainfusion.report.charts import Dot, dumbbell
from domainfusion.report.confusion import confusion_chart, frequent_mistakes
from domainfusion.report.reading import Run
from domainfusion.report.study import Arm, Study

MOST_CLASSES = 30  # shown at once; the others fold away


def total_confusion(runs: list[Run], classes: int) -> np.ndarray:
    """(classes, classes) counts over the runs' tests."""
    total = np.zeros((classes, classes), dtype=np.int64)
    for run in runs:
        if "confusion" in run.result:
            total += np.array(run.result["confusion"], dtype=np.int64)
    return total


def build_class_parts(study: Study) -> dict[str, Any] | None:
    """`heading`, `rows`, `more` (a table of classes) and `matrices`; None where nothing was tested."""
    classes = study.classes
    if not any("confusion" in run.result for arm in study.arms for run in arm.runs):
        return None
    counts = {arm: total_confusion(study.compared(arm), len(classes)) for arm in study.arms}
    if not any(matrix.sum() for matrix in counts.values()):
        return None
    rows = _class_rows(study, counts)
    shown, more = rows, []
    if len(rows) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        shown, more = rows[:half] + rows[-half:], rows[half:-half]
    tests = len(study.compared(study.arms[0]))
    return {
        "arms": study.arms, "rows": shown, "more": more, "change": _compared_arms(study) is not None,
        "challenger": study.challenger, "baseline": study.baseline, "pooled": tests > 1, "tests": tests,
        "matrices": [
            {
                "arm": arm, "chart": confusion_chart(counts[arm], classes, arm.title),
                "mistakes": frequent_mistakes(counts[arm], classes),
            }
            for arm in study.arms
        ],
    }  # fmt: skip


def _compared_arms(study: Study) -> tuple[Arm, Arm] | None:
    """Challenger and baseline, where both are there and were tested on the same images."""
    challenger, baseline = study.challenger, study.baseline
    if challenger is None or baseline is None or baseline is challenger or not study.units:
        return None
    pairs = zip(study.compared(challenger), study.compared(baseline), strict=True)
    if any(first.images != second.images for first, second in pairs):  # one of some of them alone
        return None
    return challenger, baseline


def _class_rows(study: Study, counts: dict[Arm, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each class that has images, the greatest gain first."""
    pair = _compared_arms(study)
    rows = []
    for i, name in enumerate(study.classes):
        images = {arm: int(matrix[i].sum()) for arm, matrix in counts.items()}
        if not any(images.values()):
            continue
        values = {arm: 100 * matrix[i, i] / images[arm] for arm, matrix in counts.items() if images[arm]}
        change = values[pair[0]] - values[pair[1]] if pair and pair[0] in values and pair[1] in values else 0.0
        rows.append(
            {
                "name": name, "images": max(images.values()), "change": change,
                "values": [f"{values[arm]:.0f}" if arm in values else "–" for arm in study.arms],
                "chart": dumbbell([Dot(arm.number, arm.title, value) for arm, value in values.items()]),
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row["change"])
