"""Confusion matrices as inline SVG, all on one colour scale: the share of a true class, from 0 to 1."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from domainfusion.report.charts import element
from domainfusion.report.pictures import png_uri

SMALLEST = 8.6  # px of its names on the screen
MOST_DRAWN = 30  # classes whose cells are drawn one by one, with names and numbers


def row_shares(counts: np.ndarray) -> np.ndarray:
    """(classes, classes) shares of each true class (row); a class without images has zeros."""
    totals = counts.sum(1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)


def confusion_chart(counts: np.ndarray, classes: list[str], title: str) -> Markup:
    """The matrix of counts (rows true, columns predicted); hovering a cell tells its numbers."""
    label = f"confusion matrix of {title}: rows are true classes, columns predicted classes"
    return _drawn(counts, classes, label) if len(classes) <= MOST_DRAWN else _painted(counts, label)


def _drawn(counts: np.ndarray, classes: list[str], label: str) -> Markup:
    names = [name if len(name) <= 12 else name[:11] + "…" for name in classes]
    font = 12.0 if len(classes) <= 16 else 10.5 if len(classes) <= 20 else 9.0
    margin = 14 + 0.64 * font * max(len(name) for name in names)
    cell = (400 - margin) / len(classes)
    side = cell * len(classes)
    shares = row_shares(counts)
    parts: list[str] = [element("rect", x=margin, y=margin, width=side, height=side, class_="plate")]
    for i, name in enumerate(classes):
        middle = margin + (i + 0.5) * cell
        tip, base = element("title", name), middle + font * 0.35
        upright = f"translate({base:.1f} {margin - 5:.1f}) rotate(-90)"
        parts.append(element("text", names[i], tip, x=margin - 5, y=base, text_anchor="end", font_size=font))
        parts.append(element("text", names[i], tip, x=0, y=0, transform=upright, font_size=font))
        for j, other in enumerate(classes):
            if not counts[i, j]:
                continue
            said = f"{name} taken for {other}" if i != j else f"{name} recognised"
            parts.append(
                element(
                    "rect", element("title", f"{said}: {counts[i, j]} of {counts[i].sum()} ({shares[i, j]:.0%})"),
                    x=margin + j * cell, y=margin + i * cell, width=cell, height=cell,
                    class_="cell", fill_opacity=float(shares[i, j]),
                )
            )  # fmt: skip
    for i in range(len(classes)):  # on top, so that an empty diagonal shows too
        place = margin + i * cell
        parts.append(element("rect", x=place, y=place, width=cell, height=cell, class_="diagonal"))
    total = _number(margin + side + 2)
    least = f"min-width: {SMALLEST / font * (margin + side):.0f}px"  # below it, the matrix scrolls
    return element(
        "svg", *parts, viewBox=f"0 0 {total} {total}", role="img", class_="confusion", aria_label=label, style=least
    )


def _number(value: float) -> str:
    return f"{value:.1f}"


def _painted(counts: np.ndarray, label: str) -> Markup:
    """Many classes: one pixel for each cell, its opacity the share; the colour suits light and dark pages."""
    pixels = np.empty((*counts.shape, 4), dtype=np.uint8)
    pixels[..., :3] = (92, 138, 250)
    pixels[..., 3] = np.round(255 * row_shares(counts)).astype(np.uint8)
    return Markup('<img class="confusion pixels" src="{}" alt="{}">').format(png_uri(pixels), label)


def frequent_mistakes(counts: np.ndarray, classes: list[str], most: int = 5) -> list[str]:
    """The largest cells off the diagonal, as "bird taken for mammal: 12 of 40"."""
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    found = [(int(i) // len(classes), int(i) % len(classes)) for i in order]
    return [f"{classes[i]} taken for {classes[j]}: {off[i, j]} of {counts[i].sum()}" for i, j in found if off[i, j]]
