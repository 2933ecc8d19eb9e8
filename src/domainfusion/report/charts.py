"""Charts as inline SVG: lines, dots with whiskers, dumbbells, confusion matrices.

Colours are classes (`s0`, `s1`, …, `rule`) that report.css defines for light, dark and print; sizes are chosen so that
text stays readable where a chart is as narrow as a phone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

COLOURS = 6  # series colours in report.css
WIDTH = 320.0  # of a chart, about the px that it has on a phone and in a column of three
MOST_LETTERS = 12  # of a row's name
TICK, LABEL = 7.2, 7.8  # px that a letter of report.css's .tick and .label takes in a wide font


@dataclasses.dataclass(frozen=True)
class Dot:
    """A value with its standard error, of arm `number`."""

    number: int
    name: str
    value: float
    error: float = math.nan


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of arm `number`: its mean, the runs behind it, and a point to mark on the mean."""

    number: int
    name: str
    mean: Sequence[tuple[float, float]]
    runs: Sequence[Sequence[tuple[float, float]]] = ()
    mark: tuple[float, float] | None = None


def element(name: str, *children: str, **attributes: Any) -> Markup:
    """An SVG element, everything escaped that is not `Markup`; `_` in attribute names becomes `-`, a last one goes.

    >>> str(element("text", "a < b", x=1.5, class_="label"))
    '<text x="1.5" class="label">a &lt; b</text>'
    """
    text = Markup().join(
        Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup().join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), text, inner)


def _plain(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _svg(width: float, height: float, label: str, *children: str, class_: str = "chart") -> Markup:
    return element(
        "svg", *children, viewBox=f"0 0 {_plain(float(width))} {_plain(float(height))}", role="img", class_=class_,
        aria_label=label,
    )  # fmt: skip


def series_class(number: int) -> str:
    """The class that gives arm `number` its colour: s0 is the baseline's."""
    return f"s{number if number < COLOURS else 1 + (number - 1) % (COLOURS - 1)}"


def swatch(number: int) -> Markup:
    """A piece of an arm's line, for legends."""
    line = element("line", x1=1, y1=5, x2=25, y2=5, class_=f"line {series_class(number)}")
    dot = element("circle", cx=13, cy=5, r=3.5, class_=f"dot {series_class(number)}")
    return element("svg", line, dot, viewBox="0 0 26 10", class_="swatch", aria_hidden="true")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` of them.

    >>> ticks(0, 87)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    span = (high - low) or abs(high) or 1.0
    raw = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.9)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _tick_label(value: float) -> str:
    if abs(value) >= 1000 and value % 1000 == 0:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def line_chart(lines: Sequence[Line], label: str, *, percent: bool, axis: str = "training step") -> Markup:
    """Curves against the training step, or what `axis` says; thin lines are single runs, a ring marks a point."""
    points = [p for line in lines for part in (line.mean, *line.runs) for p in part]
    values = [y for _, y in points]
    y_ticks = ticks(min(values), max(values))
    if percent:
        y_ticks = [tick for tick in y_ticks if 0 <= tick <= 100]
    x_ticks = ticks(0, max(x for x, _ in points), 4)
    low, high = min(y_ticks[0], min(values)), max(y_ticks[-1], max(values))
    last = max(x for x, _ in points)
    width, height, right, top, bottom = WIDTH, 204.0, 20.0, 10.0, 36.0
    left = 12 + TICK * max(len(_tick_label(tick)) for tick in y_ticks)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = left + (width - left - right) * point[0] / last
        return x, top + (height - top - bottom) * (high - point[1]) / ((high - low) or 1)

    parts: list[str] = []
    for tick in y_ticks:
        y = place((0, tick))[1]
        parts.append(element("line", x1=left, y1=y, x2=width - right, y2=y, class_="rule"))
        parts.append(element("text", _tick_label(tick), x=left - 6, y=y + 4, text_anchor="end", class_="tick"))
    for tick in x_ticks:
        if tick <= last:
            x = place((tick, low))[0]
            parts.append(
                element("text", _tick_label(tick), x=x, y=height - bottom + 15, text_anchor="middle", class_="tick")
            )
    parts.append(element("text", axis, x=(left + width - right) / 2, y=height - 4, text_anchor="middle", class_="tick"))
    unit = axis.split()[-1]
    for line in lines:
        colour = series_class(line.number)
        for run in line.runs:
            parts.append(_path([place(p) for p in run], f"line thin {colour}"))
        parts.append(_path([place(p) for p in line.mean], f"line {colour}"))
        for p in line.mean if len(line.mean) <= 20 else ():
            x, y = place(p)
            tip = element("title", f"{line.name}, {unit} {p[0]:g}: {_shown(p[1], percent)}")
            parts.append(element("circle", tip, cx=x, cy=y, r=2.4, class_=f"dot {colour}"))
        if line.mark is not None:
            x, y = place(line.mark)
            tip = element("title", f"{line.name}, chosen at {unit} {line.mark[0]:g}: {_shown(line.mark[1], percent)}")
            parts.append(element("circle", tip, cx=x, cy=y, r=5.5, class_=f"ring {colour}"))
    return _svg(width, height, label, *parts)


def _shown(value: float, percent: bool) -> str:
    return f"{value:.1f} %" if percent else f"{value:.4g}"


def _path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    moves = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return element("path", d=moves, class_=class_)


def dot_chart(rows: Sequence[tuple[str, Sequence[Dot]]], chance: float) -> Markup:
    """Accuracies in per cent with whiskers, a block of lines for each row; the dashed line is guessing."""
    width, right, step, gap, top, bottom = WIDTH, 46.0, 16.0, 14.0, 8.0, 34.0
    left = 14 + LABEL * min(max((len(label) for label, _ in rows), default=0), MOST_LETTERS)
    ends = [dot.value + (0 if math.isnan(dot.error) else dot.error) for _, dots in rows for dot in dots]
    scale = [tick for tick in ticks(0, max([*ends, chance])) if tick <= 100]
    high = max(scale[-1], *ends) if ends else scale[-1]
    height = top + bottom + sum(step * len(dots) + gap for _, dots in rows)

    def at(value: float) -> float:
        return left + (width - left - right) * max(value, 0.0) / high

    floor = height - bottom
    parts: list[str] = []
    for tick in scale:
        parts.append(element("line", x1=at(tick), y1=top, x2=at(tick), y2=floor, class_="rule"))
        name = f"{tick:g} %" if tick == scale[-1] else f"{tick:g}"
        parts.append(element("text", name, x=at(tick), y=floor + 14, text_anchor="middle", class_="tick"))
    parts.append(element("line", x1=at(chance), y1=top, x2=at(chance), y2=floor + 4, class_="chance"))
    parts.append(element("text", "guessing", x=at(chance), y=floor + 28, text_anchor="middle", class_="tick"))
    y = top + gap / 2
    for label, dots in rows:
        middle = y + step * len(dots) / 2
        parts.append(_label(label, left - 10, middle + 4, "end"))
        for dot in dots:
            parts += _whisker(dot, at, y + step / 2, width)
            y += step
        y += gap
    return _svg(width, height, "accuracy of each algorithm on each target", *parts)


def _whisker(dot: Dot, at: Any, y: float, width: float) -> list[str]:
    colour = series_class(dot.number)
    parts: list[str] = []
    error = "" if math.isnan(dot.error) else f" ± {dot.error:.1f}"
    if error:
        parts.append(
            element(
                "line",
                x1=at(dot.value - dot.error),
                y1=y,
                x2=at(dot.value + dot.error),
                y2=y,
                class_=f"whisker {colour}",
            )
        )
    tip = element("title", f"{dot.name}: {dot.value:.1f}{error} %")
    parts.append(element("circle", tip, cx=at(dot.value), cy=y, r=5, class_=f"dot {colour}"))
    parts.append(element("text", f"{dot.value:.1f}", x=width - 4, y=y + 4, text_anchor="end", class_=f"value {colour}"))
    return parts


def difference_chart(dots: Sequence[Dot], label: str, axis: str) -> Markup:
    """Values with whiskers on a line each, to both sides of zero, which is dashed."""
    width, right, step, top, bottom = WIDTH, 24.0, 24.0, 6.0, 34.0
    left = 18 + LABEL * min(max(len(dot.name) for dot in dots), MOST_LETTERS)
    ends = [dot.value + sign * (0 if math.isnan(dot.error) else dot.error) for dot in dots for sign in (-1, 1)]
    scale = ticks(min([0.0, *ends]), max([0.0, *ends]))
    height = top + bottom + step * len(dots)

    def at(value: float) -> float:
        return left + (width - left - right) * (value - scale[0]) / (scale[-1] - scale[0])

    floor = height - bottom
    parts: list[str] = []
    for tick in scale:
        parts.append(element("line", x1=at(tick), y1=top, x2=at(tick), y2=floor, class_="rule"))
        parts.append(element("text", _tick_label(tick), x=at(tick), y=floor + 14, text_anchor="middle", class_="tick"))
    parts.append(element("line", x1=at(0), y1=top, x2=at(0), y2=floor, class_="chance"))
    middle = (left + width - right) / 2
    parts.append(element("text", axis, x=middle, y=height - 4, text_anchor="middle", class_="tick"))
    for number, dot in enumerate(dots):
        y, colour = top + step * (number + 0.5), series_class(dot.number)
        parts.append(_label(dot.name, left - 14, y + 4, "end"))
        if dot.error > 0:
            x1, x2 = at(dot.value - dot.error), at(dot.value + dot.error)
            parts.append(element("line", x1=x1, y1=y, x2=x2, y2=y, class_=f"whisker {colour}"))
        tip = element("title", f"{dot.name}: {dot.value:+.4g} ± {dot.error:.2g}")
        parts.append(element("circle", tip, cx=at(dot.value), cy=y, r=5, class_=f"dot {colour}"))
    return _svg(width, height, label, *parts)


def _label(text: str, x: float, y: float, anchor: str, **attributes: Any) -> Markup:
    """A text cut to `MOST_LETTERS`; the whole of it shows on hovering."""
    short = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
    return element("text", short, element("title", text), x=x, y=y, text_anchor=anchor, class_="label", **attributes)


def dumbbell(dots: Sequence[Dot]) -> Markup:
    """One class's accuracies on a line from 0 to 100 %; of dots in one place, the earlier shows as a rim."""
    width, height, edge = 150.0, 18.0, 9.0

    def at(value: float) -> float:
        return edge + (width - 2 * edge) * value / 100

    values = [dot.value for dot in dots]
    parts: list[str] = [element("line", x1=at(0), y1=9, x2=at(100), y2=9, class_="rule")]
    parts.append(element("line", x1=at(min(values)), y1=9, x2=at(max(values)), y2=9, class_="bridge"))
    for i, dot in enumerate(dots):
        tip = element("title", f"{dot.name}: {dot.value:.0f} %")
        covering = sum(abs(at(dot.value) - at(later.value)) < 2 for later in dots[i + 1 :])
        radius = min(5.0 + 1.8 * covering, 8.6)
        parts.append(element("circle", tip, cx=at(dot.value), cy=9, r=radius, class_=f"dot {series_class(dot.number)}"))
    text = ", ".join(f"{dot.name} {dot.value:.0f} %" for dot in dots)
    return _svg(width, height, text, *parts, class_="dumbbell")
