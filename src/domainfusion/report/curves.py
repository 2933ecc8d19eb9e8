"""Learning curves: accuracies and loss terms against the training step, all algorithms in one chart each."""

from __future__ import annotations

import math
from typing import Any

from domainfusion.report.charts import Line, line_chart
from domainfusion.report.reading import Run
from domainfusion.report.study import Study

# metric: (heading, what it says). Loss terms are recorded as they enter the loss, already weighted.
METRICS = {
    "target_accuracy": ("Accuracy on the target, %", "Written down to draw this curve; it never chooses anything."),
    "validation_accuracy": (
        "Accuracy on source validation, %", "Held-out images of the training domains. It chooses the model."
    ),
    "raw_loss": ("Loss on raw images", "Cross-entropy on augmented training images (in DomainFusion times λ1)."),
    "distill_loss": (
        "Latent distillation term",
        "λ2 · slope · confidence. Only its gradient has a meaning: it need not fall, and may be negative.",
    ),
    "synthetic_loss": (
        "Loss on synthetic images", "Cross-entropy on the images that the diffusion model made, times λ3."
    ),
    "validation_loss": (
        "Loss on source validation",
        "Cross-entropy. Where it rises while accuracy stands still, the model grows overconfident.",
    ),
}  # fmt: skip


def build_curves(study: Study) -> list[dict[str, Any]]:
    """`title`, `text` and `chart` of each metric that some run recorded."""
    runs = {arm: study.compared(arm) for arm in study.arms}
    recorded = {name for part in runs.values() for run in part for record in run.records for name in record}
    extra = sorted(name for name in recorded if name.endswith("_loss") and name not in METRICS)
    charts = []
    for metric in [*METRICS, *extra]:
        percent = metric.endswith("accuracy")
        lines = []
        for arm in study.arms:
            curves = [curve for run in runs[arm] if (curve := _curve(run, metric, percent))]
            if curves:
                mean = _mean(curves)
                mark = _selected(runs[arm][0], mean) if len(runs[arm]) == 1 and percent else None
                lines.append(Line(arm.number, arm.title, mean, curves if len(curves) > 1 else (), mark))
        if lines:
            title, text = METRICS.get(metric, (metric.replace("_", " "), ""))
            charts.append({"title": title, "text": text, "chart": line_chart(lines, title, percent=percent)})
    return charts


def _curve(run: Run, metric: str, percent: bool) -> list[tuple[float, float]]:
    """(step, value) of a metric, what is not a number left out."""
    factor = 100 if percent else 1
    found = [(record["step"], record.get(metric)) for record in run.records]
    return [(step, factor * value) for step, value in found if value is not None and math.isfinite(value)]


def _mean(curves: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean at the steps that all curves have; the first curve where there is no such step."""
    tables = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    return [(step, sum(table[step] for table in tables) / len(tables)) for step in steps] or curves[0]


def _selected(run: Run, mean: list[tuple[float, float]]) -> tuple[float, float] | None:
    """The point of the step that was chosen."""
    return next((point for point in mean if point[0] == run.step), None)
