"""How far a confidence can be trusted: what the classifiers say of their certainty, and how often they are right.

A temperature is fitted on held-out images of the source domains (`training.calibration`). Whether the confidence that
it gives holds on a domain that took part in nothing is measured here, and chooses nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from domainfusion.errors import DomainFusionError
from domainfusion.files import read_json_object
from domainfusion.registry import ALGORITHMS
from domainfusion.report.certainty import binomial_error
from domainfusion.report.charts import TICK, WIDTH, element, series_class
from domainfusion.report.predictions import Predictions, read_predictions
from domainfusion.report.reading import Run
from domainfusion.report.study import Arm, Study
from domainfusion.training.calibration import confidence_error

MOST_POINTS = 10  # of a reliability curve
FEWEST_IMAGES = 10  # behind a point

Pair = tuple[float | None, float | None]  # a figure without and with the temperature; None where it is not known


@dataclasses.dataclass(frozen=True)
class Point:
    """Images of about the same confidence; shares in per cent."""

    confidence: float  # mean
    right: float
    images: int


@dataclasses.dataclass(frozen=True)
class Trust:
    """Confidence beside what is right, in per cent: on one kind of images, means over runs."""

    right: float | None
    confidence: Pair
    error: Pair  # expected calibration error
    misfit_error: Pair = (None, None)  # standard error of confidence less share that is right, from the images' number

    def misfit(self, calibrated: bool) -> float | None:
        """By how many points the mean confidence is above the share that is right."""
        confidence = self.confidence[calibrated]
        return None if confidence is None or self.right is None else confidence - self.right


def build_calibration(study: Study) -> dict[str, Any] | None:
    """`arms`, `charts`, `rows` (a table), `sentences`, `several`; None where no run wrote down what it said."""
    said: dict[Arm, list[Predictions]] = {}
    for arm in study.arms:
        found = [one for run in study.compared(arm) if (one := read_predictions(run)) is not None]
        if found:
            said[arm] = found
    if not said:
        return None
    target = {arm: _trust_of_target(found) for arm, found in said.items()}
    sources = {arm: _trust_of_sources(study.compared(arm)) for arm in said}
    tests = max(len(found) for found in said.values())
    return {
        "arms": list(said), "charts": _charts(said), "several": tests > 1,
        "rows": _table(target, sources, "targets" if len(study.targets) > 1 else "target"),
        "sentences": _sentences(study, target, sources),
    }  # fmt: skip


def reliability(confidence: np.ndarray, hits: np.ndarray) -> list[Point]:
    """Points of at most 10 bins of equally many images, 10 or more, by rising confidence.

    Images of the same confidence are never parted, lest something else order them; bins are then not quite equal.

    Args:
        confidence: (n,) in [0, 1].
        hits: (n,) bool.
    """
    order = np.argsort(confidence, kind="stable")
    confidence, hits = confidence[order], hits[order]
    count = max(1, min(MOST_POINTS, len(order) // FEWEST_IMAGES))
    starts = [int(part[0]) for part in np.array_split(np.arange(len(order)), count)]
    starts = sorted({int(np.searchsorted(confidence, confidence[start])) for start in starts})
    return [
        Point(100 * float(p.mean()), 100 * float(right.mean()), len(p))
        for p, right in zip(np.split(confidence, starts[1:]), np.split(hits, starts[1:]), strict=True)
    ]


def _trust_of_target(said: Sequence[Predictions]) -> Trust:
    """The mean over tests."""
    raw = [one.probability for one in said]
    tempered = [one.calibrated for one in said if one.calibrated is not None]
    columns = [raw, tempered if len(tempered) == len(said) else []]
    hits = [one.hits for one in said]

    def of(figure: Callable[[np.ndarray, np.ndarray], float], column: list[np.ndarray]) -> float | None:
        return _mean([100 * figure(p, right) for p, right in zip(column, hits, strict=True)]) if column else None

    def spread(column: list[np.ndarray]) -> float | None:
        if not column:
            return None
        squares = [float((p - right).var()) / len(p) for p, right in zip(column, hits, strict=True)]
        return 100 * math.sqrt(sum(squares)) / len(squares)

    return Trust(
        right=_mean([100 * float(right.mean()) for right in hits]),
        confidence=(of(lambda p, _: float(p.mean()), columns[0]), of(lambda p, _: float(p.mean()), columns[1])),
        error=(of(confidence_error, columns[0]), of(confidence_error, columns[1])),
        misfit_error=(spread(columns[0]), spread(columns[1])),
    )


def _trust_of_sources(runs: Sequence[Run]) -> Trust | None:
    """The mean over runs of what their `calibration.json` says; None where one has none that is of what was tested."""
    try:
        kept = [read_json_object(run.folder / "calibration.json", calibration_error=list) for run in runs]
        if not all(_tested_by_classifier(run.algorithm) for run in runs):
            return None
        error = _pair([one["calibration_error"] for one in kept])
        if not all("confidence" in one and "accuracy" in one for one in kept):  # an older version's
            return Trust(None, (None, None), error)
        right = _mean([100 * float(one["accuracy"]) for one in kept])
        return Trust(right, _pair([one["confidence"] for one in kept]), error)
    except (DomainFusionError, TypeError, ValueError):
        return None


def _tested_by_classifier(algorithm: str) -> bool:
    """Whether what a run tested is the classifier that its temperature is of; of a user's own class it is not asked."""
    known = ":" not in algorithm and algorithm in ALGORITHMS.names()
    return bool(getattr(ALGORITHMS.load(algorithm), "tests_by_classifier", False)) if known else True


def _pair(values: Sequence[Sequence[float]]) -> Pair:
    before, after = zip(*((100 * float(a), 100 * float(b)) for a, b in values), strict=True)
    return _mean(before), _mean(after)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _charts(said: dict[Arm, list[Predictions]]) -> list[dict[str, Any]]:
    """Reliability of the raw confidence, and of the calibrated one where an arm has it in all its tests."""
    charts = []
    for title, column in (("raw confidence", "probability"), ("calibrated confidence", "calibrated")):
        lines = []
        for arm, found in said.items():
            values = [getattr(one, column) for one in found]
            if all(value is not None for value in values):
                hits = np.concatenate([one.hits for one in found])
                lines.append((arm.number, arm.title, reliability(np.concatenate(values), hits)))
        if lines:
            charts.append({"title": title, "chart": reliability_chart(lines, f"share that is right over {title}")})
    return charts


def _table(target: dict[Arm, Trust], sources: dict[Arm, Trust | None], word: str) -> list[list[str]]:
    rows = [["algorithm", "on", "right", "confidence", "calibrated", "calibration error", "of the calibrated"]]
    for arm, found in target.items():
        for place, trust in ((word, found), ("sources", sources[arm])):
            if trust is not None:
                cells = [_per_cent(trust.right), *map(_per_cent, trust.confidence), *map(_points, trust.error)]
                rows.append([arm.title, place, *cells])
    return rows


def _per_cent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _sentences(study: Study, target: dict[Arm, Trust], sources: dict[Arm, Trust | None]) -> list[str]:
    """What the figures mean, of the arms that the headline names."""
    leading = [arm for arm in study.leading if arm in target]
    where = "domains that the models never saw" if len(study.targets) > 1 else "a domain that the models never saw"
    sentences: list[str] = []
    for arm in leading or list(target)[:1]:
        found = target[arm]
        place = (
            f"On {where}, {arm.title}'s mean confidence" if not sentences else f"{arm.title}'s mean confidence there"
        )
        text = (
            f"{place} is {_per_cent(found.confidence[0])}, and it is right on {_per_cent(found.right)} of the images: "
            f"{_misfit(found, calibrated=False)}."
        )
        if found.confidence[1] is not None:
            known = sources[arm]
            source = None if known is None else known.misfit(True)
            fits = "" if source is None else f" (where it is off by {source:+z.1f} points)"
            text += (
                f" At the temperature that fits held-out images of the sources best{fits} it is "
                f"{_per_cent(found.confidence[1])}: {_misfit(found, calibrated=True)}."
            )
        sentences.append(text)
    if any(_surely_above(target[arm]) for arm in leading):
        sentences.append(
            "A confidence that fits the sources is too high on what was never seen here: take it for an order of what "
            "to look at first, not for the chance of being right."
        )
    return sentences


def _misfit(trust: Trust, *, calibrated: bool) -> str:
    """The misfit in words; what is within twice its standard error is called so."""
    value, error = trust.misfit(calibrated) or 0.0, trust.misfit_error[calibrated] or 0.0
    if abs(value) < 2 * error:
        return f"{value:+z.1f} points, within twice the standard error of {error:.1f}"
    return f"{abs(value):.1f} points (± {error:.1f}) {'too sure' if value > 0 else 'less sure than it might be'}"


def _surely_above(trust: Trust) -> bool:
    """Whether the calibrated confidence is above what is right by more than twice its standard error."""
    value, error = trust.misfit(True), trust.misfit_error[1]
    return value is not None and error is not None and value > 2 * error


def reliability_chart(lines: Sequence[tuple[int, str, Sequence[Point]]], label: str) -> Markup:
    """Share that is right over confidence, both in per cent, for (arm's number, title, points); dashed: a perfect fit.

    Whiskers are one standard error each way, from the number of images.
    """
    left, right, top, bottom = 12 + TICK * 3, 20.0, 26.0, 36.0
    side = WIDTH - left - right
    floor = top + side

    def at(confidence: float, share: float) -> tuple[float, float]:
        return left + side * confidence / 100, floor - side * min(max(share, 0.0), 100.0) / 100

    parts: list[str] = []
    for tick in range(0, 101, 20):
        x, y = at(tick, tick)
        parts.append(element("line", x1=left, y1=y, x2=left + side, y2=y, class_="rule"))
        parts.append(element("text", str(tick), x=left - 6, y=y + 4, text_anchor="end", class_="tick"))
        parts.append(element("text", str(tick), x=x, y=floor + 15, text_anchor="middle", class_="tick"))
    parts.append(element("line", x1=left, y1=floor, x2=left + side, y2=top, class_="chance"))
    parts.append(element("text", "right, %", x=2.0, y=11.0, class_="tick"))
    parts.append(element("text", "not sure enough", x=left + 6, y=top + 16, class_="tick"))
    parts.append(element("text", "too sure", x=left + side - 6, y=floor - 8, text_anchor="end", class_="tick"))
    parts.append(element("text", "confidence, %", x=left + side / 2, y=floor + 32, text_anchor="middle", class_="tick"))
    for number, name, points in lines:
        colour = series_class(number)
        way = " ".join(
            f"{'L' if i else 'M'}{x:.1f} {y:.1f}"
            for i, (x, y) in enumerate(at(point.confidence, point.right) for point in points)
        )
        parts.append(element("path", d=way, class_=f"line {colour}"))
        for point in points:
            error = binomial_error(point.right, point.images)
            x, high = at(point.confidence, point.right + error)
            low, y = at(point.confidence, point.right - error)[1], at(point.confidence, point.right)[1]
            parts.append(element("line", x1=x, y1=low, x2=x, y2=high, class_=f"whisker {colour}"))
            tip = element(
                "title",
                f"{name}: confidence {point.confidence:.1f} %, right {point.right:.1f} % of {point.images} images",
            )
            parts.append(element("circle", tip, cx=x, cy=y, r=3.4, class_=f"dot {colour}"))
    size = f"0 0 {WIDTH:g} {floor + bottom:g}"
    return element("svg", *parts, viewBox=size, role="img", class_="chart", aria_label=label)
