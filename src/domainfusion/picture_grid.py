"""Pictures in rows and columns with headings, as a figure on white paper (PNG)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domainfusion.files import atomic_path, make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL, GAP = 1.2, 0.08  # inches
FONT = 8.0  # points
CHARACTER = FONT * 0.58 / 72  # inches that a letter takes on average
LETTERS = int((CELL + GAP) / CHARACTER)  # that fit above or below a picture


@dataclasses.dataclass(frozen=True)
class Row:
    """Pictures (S, S, 3) uint8 beside each other, None leaving a place empty, with a label and captions below them."""

    label: str
    pictures: Sequence[np.ndarray | None]
    captions: Sequence[str] = ()
    apart: bool = False  # more room above: a new group begins


def fitting(*lines: str) -> str:
    """Lines for above or below a picture, cut where they are wider than it.

    >>> fitting("cat", "from a domain with a long name")
    'cat\\nfrom a domain with…'
    """
    return "\n".join(line if len(line) <= LETTERS else f"{line[: LETTERS - 1].rstrip()}…" for line in lines)


def picture_grid(
    rows: Sequence[Row], *, heads: Sequence[str] = (), title: str = "", notes: str = "", splits: Sequence[int] = (),
    scale: tuple[str, float, float, str] | None = None,
) -> Figure:  # fmt: skip
    """A figure of the rows.

    Args:
        heads: what stands above the columns, in one line or several.
        notes: a text below.
        splits: columns with more room in front of them.
        scale: colours, lowest and highest value, and the name of a colour bar at the right.
    """
    from matplotlib.figure import Figure

    columns = max(len(row.pictures) for row in rows)
    left = 0.15 + CHARACTER * max(max(map(len, row.label.split("\n"))) for row in rows)
    right = 0.75 if scale else 0.1
    lines = notes.count("\n") + 1 if notes else 0
    above = max((0.06 + 0.14 * (head.count("\n") + 1) for head in heads), default=0.0)
    top, bottom = 0.1 + 0.26 * bool(title) + above, 0.1 + 0.16 * lines
    x = [left + column * (CELL + GAP) + 0.3 * sum(s <= column for s in splits) for column in range(columns)]
    feet = [0.03 + 0.15 * max(text.count("\n") + 1 for text in row.captions) if row.captions else 0.0 for row in rows]
    heads_apart = [0.2 * (row.apart and i > 0) for i, row in enumerate(rows)]
    heights = [CELL + GAP + foot + apart for foot, apart in zip(feet, heads_apart, strict=True)]
    width, height = x[-1] + CELL + right, top + sum(heights) + bottom
    width = max(width, 0.3 + CHARACTER * 1.05 * max([len(title) * 1.2, *map(len, notes.split("\n"))]))
    figure = Figure(figsize=(width, height))
    if title:
        figure.text(0.1 / width, 1 - 0.08 / height, title, fontsize=FONT + 2, va="top", weight="bold")
    for column, head in enumerate(heads):
        place = (x[column] + CELL / 2) / width, 1 - (top - 0.04) / height
        figure.text(*place, head, fontsize=FONT, ha="center", va="bottom")
    y = height - top
    for i, row in enumerate(rows):
        y -= heights[i]
        foot = y + GAP + feet[i]
        figure.text(
            (left - 0.08) / width, (foot + CELL / 2) / height, row.label, fontsize=FONT, ha="right", va="center"
        )
        for column, picture in enumerate(row.pictures):
            if picture is None:
                continue
            axes = figure.add_axes((x[column] / width, foot / height, CELL / width, CELL / height))
            axes.imshow(picture, interpolation="lanczos" if len(picture) < 200 else "antialiased")
            axes.set_axis_off()
            if column < len(row.captions):
                place = (x[column] + CELL / 2) / width, (foot - 0.03) / height
                figure.text(*place, row.captions[column], fontsize=FONT - 1, ha="center", va="top")
    if scale:
        _colour_bar(figure, scale, (x[-1] + CELL + 0.1) / width, bottom / height, 0.1 / width, sum(heights) / height)
    if notes:
        figure.text(0.1 / width, 0.08 / height, notes, fontsize=FONT - 0.5, va="bottom", linespacing=1.4)
    return figure


def _colour_bar(figure: Figure, scale: tuple[str, float, float, str], x: float, y: float, w: float, h: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours, low, high, name = scale
    axes = figure.add_axes((x, y + h * 0.1, w, h * 0.8))
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), colours), cax=axes)
    bar.set_label(name, fontsize=FONT - 1)
    bar.ax.tick_params(labelsize=FONT - 1)
    bar.outline.set_visible(False)


def save_figure(figure: Any, path: Path, dpi: int = 150) -> Path:
    """Write a matplotlib figure to `path` as PNG, atomically, and return `path`."""
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return path
