"""Slopes of latent distillation over the confidence, by label and by corruption, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from domainfusion.config import Corruption
from domainfusion.report.corruption_figure import NAMES
from domainfusion.report.label_evidence import GRID

# Okabe and Ito's colours, told apart by the colour-blind; lines differ in style as well.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#000000")
STYLES = ("-", "--", ":", "-.")


def draw_slopes(labels: Sequence[str], by_label: np.ndarray, by_corruption: Mapping[Corruption, np.ndarray]) -> Any:
    """A figure of slopes (R, K, G) of K labels, which share their draws, and of slopes (R, G) by corruption.

    Bands are one standard error each way; what labels differ by is far smaller than what the draws do, so it has a
    chart of its own, with the errors of paired differences.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    _draw(first, {NAMES[kind]: rounds for kind, rounds in by_corruption.items()}, f"by corruption, label “{labels[0]}”")
    _draw(second, {name: by_label[:, k] for k, name in enumerate(labels)}, "by label, contrast reduction")
    paired = {name: by_label[:, k] - by_label[:, 0] for k, name in enumerate(labels)}
    _draw(third, paired, f"by label, less that of “{labels[0]}”")
    first.set_ylabel("slope dL/dp")
    return figure


def _draw(axes: Any, curves: Mapping[str, np.ndarray], title: str) -> None:
    for number, (name, rounds) in enumerate(curves.items()):
        mean, error = rounds.mean(0), rounds.std(0, ddof=1) / np.sqrt(len(rounds))
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(GRID, mean, STYLES[number % len(STYLES)], color=colour, label=name, marker=".")
        axes.fill_between(GRID, mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("confidence p")
    axes.legend(fontsize=7.5, frameon=False)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
