"""The page of `domainfusion explain`: what an LDM, and a classifier where there is one, make of one image."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from domainfusion.config import Corruption
from domainfusion.files import make_folder, write_text
from domainfusion.picture_grid import save_figure
from domainfusion.report.charts import Dot, Line, difference_chart, line_chart
from domainfusion.report.corruption_figure import NAMES, CorruptionPictures, draw_corruptions
from domainfusion.report.heat_figure import LabelPictures, draw_heat
from domainfusion.report.html import render
from domainfusion.report.image_evolution import ImageEvolution, draw_image_evolution, evolution_columns
from domainfusion.report.label_evidence import GRID
from domainfusion.report.overlays import enlarge, noise_picture
from domainfusion.report.pictures import png_uri
from domainfusion.report.slope_figure import draw_slopes

TILE = 112  # pixels of a small picture


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Everything that was computed for an image and K labels, the matched one first."""

    name: str
    labels: tuple[str, ...]
    heat: LabelPictures
    corruptions: tuple[CorruptionPictures, ...]  # under the first label
    evolution: ImageEvolution  # under the first label
    label_slopes: np.ndarray  # (R, K, G) of every label under contrast reduction
    corruption_slopes: dict[Corruption, np.ndarray]  # kind -> (R, G) of the first label
    confidences: dict[str, float] | None  # a classifier's, of all its classes
    made: dict[str, Any]  # how it was made

    def numbers(self) -> dict[str, Any]:
        """The figures behind the pictures, for JSON."""
        labels = [
            {"label": name, **{key: value for key, value in entry.items() if key != "label"}, "words": entry["label"]}
            for name, entry in zip(self.labels, self.heat.facts(), strict=True)
        ]
        for entry in labels:
            if self.confidences is not None:
                entry["confidence"] = self.confidences.get(entry["label"])
        slopes = {name: self.label_slopes[:, k] for k, name in enumerate(self.labels)}
        return {
            "image": self.name, "labels": labels, **self.order(),
            "classifier": None if self.confidences is None else max(self.confidences, key=self.confidences.__getitem__),
            "slopes": {
                "p": list(GRID), "contrast_by_label": {name: _estimate(values) for name, values in slopes.items()},
                "less_first_by_label": {
                    name: _estimate(values - slopes[self.labels[0]]) for name, values in slopes.items()
                },
                "by_corruption": {kind: _estimate(values) for kind, values in self.corruption_slopes.items()},
            },
            "structure": {
                "p": list(self.corruptions[0].confidences),
                **{part.kind: list(part.structure) for part in self.corruptions},
            },
            "evolution": self.evolution.facts(),
            **self.made,
        }  # fmt: skip

    def order(self) -> dict[str, Any]:
        """The `best` and the `second` label, and how far the second's error is above (`lead`, paired)."""
        scores = self.heat.scores
        differences, errors = scores.differences(scores.best)
        second = int(
            np.argsort(np.where(np.arange(len(errors)) == scores.best, -np.inf, differences), kind="stable")[1]
        )
        return {
            "best": self.labels[scores.best], "second": self.labels[second], "lead": float(differences[second]),
            "lead_standard_error": float(errors[second]),
        }  # fmt: skip


def _estimate(rounds: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard error (G) of rounds (R, G)."""
    return {
        "mean": rounds.mean(0).tolist(),
        "standard_error": (rounds.std(0, ddof=1) / np.sqrt(len(rounds))).tolist(),
    }


def write_explanation(found: Explanation, folder: Path, command: str) -> list[Path]:
    """Write explain.html and its pictures as PNG to `folder`; the files, the page first."""
    make_folder(folder)
    page = render(
        "explain.html", title=f"{found.name}, explained", found=found, numbers=found.numbers(),
        headline=headline(found), rows=label_rows(found), heat=_heat_cards(found),
        scores=_score_chart(found), corruptions=_corruption_cards(found),
        evolution=evolution_columns(found.evolution), charts=_slope_charts(found),
        image=png_uri(enlarge(found.heat.image)), command=command,
    )  # fmt: skip
    write_text(folder / "explain.html", page)
    return [
        folder / "explain.html",
        save_figure(draw_heat([found.heat]), folder / "heat.png"),
        save_figure(draw_corruptions([found.corruptions], [found.heat.words[0]]), folder / "ld_noise.png", dpi=110),
        save_figure(draw_image_evolution(found.evolution), folder / "evolution.png"),
        save_figure(draw_slopes(found.labels, found.label_slopes, found.corruption_slopes), folder / "slopes.png"),
    ]


def headline(found: Explanation) -> Markup:
    """The page in a sentence: which label the LDM fits best and how sure that is, and what the classifier says."""
    order = found.order()
    lead, error = 1000 * order["lead"], 1000 * order["lead_standard_error"]
    sure = "clearly ahead of" if lead > 2 * error else "but hardly apart from"
    text = Markup("Of these labels <strong>{}</strong> fits the diffusion model best, {} {} ({}).").format(
        order["best"], sure, order["second"], f"errors × 1000 differ by {lead:.2f} ±\u00a0{error:.2f}"
    )
    if found.confidences is not None:
        said = max(found.confidences, key=found.confidences.__getitem__)
        share = f"{100 * found.confidences[said]:.0f}\u00a0%"
        text += Markup(" The classifier says <strong>{}</strong> ({}).").format(said, share)
    return text


def label_rows(found: Explanation) -> list[list[str]]:
    """A table of the labels."""
    rows = [["label", "in words", "error × 1000", "less the first", "± s.e.", "attention", "heat like the first's"]]
    if found.confidences is not None:
        rows[0].append("classifier")
    for name, entry in zip(found.labels, found.heat.facts(), strict=True):
        first = name == found.labels[0]
        row = [name, entry["label"], f"{1000 * entry['error']:.2f}"]
        row += (
            ["–", "–"]
            if first
            else [f"{1000 * entry['error_difference']:+z.2f}", f"{1000 * entry['standard_error']:.2f}"]
        )
        row += [f"{100 * entry['attention_share']:.1f} %", "–" if first else f"{entry['heat_likeness_to_first']:.2f}"]
        if found.confidences is not None:
            row.append(f"{100 * found.confidences[name]:.1f} %" if name in found.confidences else "–")
        rows.append(row)
    return rows


def _heat_cards(found: Explanation) -> list[dict[str, str]]:
    pairs = zip(found.labels, found.heat.overlays(), found.heat.particular_pictures(), strict=True)
    return [{"label": name, "heat": png_uri(heat), "particular": png_uri(own)} for name, heat, own in pairs]


def _score_chart(found: Explanation) -> Markup:
    differences, errors = found.heat.scores.differences(0)
    dots = [
        Dot(number + 1, name, 1000 * float(differences[number]), 1000 * float(errors[number]))
        for number, name in enumerate(found.labels)
    ]
    return difference_chart(dots, "errors of the labels against the first", "error less the first label's, × 1000")


def _corruption_cards(found: Explanation) -> list[dict[str, Any]]:
    cards = []
    for part in found.corruptions:
        rows = [("left", part.corrupted), ("prior", part.priors)]
        if part.noise is not None:
            rows.append(("LD noise", np.stack([noise_picture(level) for level in part.noise])))
        cards.append({
            "name": NAMES[part.kind],
            "heads": [f"{p:g}" for p in part.confidences],
            "rows": [{"name": name, "pictures": [png_uri(enlarge(x, TILE)) for x in row]} for name, row in rows],
            "structure": [f"{value:.2f}" for value in part.structure],
        })  # fmt: skip
    return cards


def _slope_charts(found: Explanation) -> list[dict[str, Any]]:
    first = found.labels[0]
    p = None if found.confidences is None else found.confidences.get(first)

    def line(number: int, name: str, rounds: np.ndarray, mark: float | None = None, thin: bool = False) -> Line:
        points = [[(x, float(y)) for x, y in zip(GRID, values, strict=True)] for values in (rounds.mean(0), *rounds)]
        at = None if mark is None else (mark, float(np.interp(mark, GRID, rounds.mean(0))))
        return Line(number, name, points[0], points[1:] if thin else (), at)

    labels = [line(k + 1, name, found.label_slopes[:, k]) for k, name in enumerate(found.labels)]
    differences = [
        line(k + 1, name, found.label_slopes[:, k] - found.label_slopes[:, 0]) for k, name in enumerate(found.labels)
    ]
    kinds = [
        line(k + 1, NAMES[kind], rounds, p if k == 0 else None, thin=k == 0)
        for k, (kind, rounds) in enumerate(found.corruption_slopes.items())
    ]
    ring = " The ring is where the classifier stands." if p is not None else ""
    thin = f"Thin lines: the {len(found.label_slopes)} independent estimates that the first curve is the mean of.{ring}"
    charts = [
        (f"By corruption, label {first}", kinds, thin),
        ("By label, contrast reduction", labels, "All labels on the same draws."),
        (f"By label, less that of {first}", differences, f"Above zero, the label gets less confidence than {first}."),
    ]
    return [
        {"title": title, "lines": lines, "text": text,
         "chart": line_chart(lines, f"slopes: {title}", percent=False, axis="confidence p")}
        for title, lines, text in charts
    ]  # fmt: skip
