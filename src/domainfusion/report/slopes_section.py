"""What the diffusion model tells the classifier through its confidence: the slopes that latent distillation read.

Only of runs that read them from a table (`distillation.curves`) which is still there: nothing is computed for a report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.splits import build_split
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.distillation.curve_choice import reads_curves
from domainfusion.distillation.curves import Curves, CurveStore
from domainfusion.errors import DomainFusionError, show_note
from domainfusion.report.charts import TICK, WIDTH, Line, element, line_chart, series_class, ticks
from domainfusion.report.reading import Run
from domainfusion.report.study import Arm, Study


@dataclasses.dataclass
class Read:
    """A table of slopes that runs read: by which arms, and for which training images."""

    arms: list[Arm]
    config: TrainConfig  # of the first of these runs
    store: CurveStore
    rows: set[int]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Slopes dL/dp of n images over G confidences."""

    grid: np.ndarray  # (G,) ascending
    mean: np.ndarray  # (G,)
    low: np.ndarray  # (G,) a quarter of the images is below
    high: np.ndarray  # (G,) a quarter of the images is above
    negative: np.ndarray  # (G,) share of the images whose slope is below zero
    negative_overall: float  # share of the images whose slope is below zero on average over p
    images: int

    def mean_at(self, p: float) -> float:
        """The mean slope at a confidence, linear between those of the table."""
        return float(np.interp(p, self.grid, self.mean))


def build_slopes(study: Study, dataset: MultiDomainDataset | None) -> list[dict[str, Any]]:
    """For each table that compared runs read: `arms`, `charts`, `sentences`, `note`; empty where none can be read."""
    if dataset is None:
        return []
    found = []
    for read in find_tables(study, dataset):
        try:
            curves = read.store.load()
        except DomainFusionError as error:
            show_note(f"the report goes without the slopes of {read.arms[0].title}: {error}")
            continue
        rows = np.array(sorted(read.rows), dtype=np.int64)
        rows = rows[curves.rounds[torch.from_numpy(rows)].numpy() > 0]
        if len(rows):
            found.append(_describe(read, summarize(curves, rows), curves.error()))
    return found


def find_tables(study: Study, dataset: MultiDomainDataset) -> list[Read]:
    """The tables that a study's compared runs read, each once."""
    tables: dict[str, Read] = {}
    fingerprints: dict[str, str] = {}
    for arm in study.arms:
        for run in study.compared(arm) if arm.algorithm == "domainfusion" else ():
            try:
                path = run.folder / "config.toml"
                config = build_config(TrainConfig, load_toml(path), str(path))
                split = build_split(dataset, config.data, config.target, config.trial, config.second_target)
                used = [int(row) for domain in split.sources for row in split.train[domain]]
                if not _read_a_table(run, config, dataset, np.array(used)):
                    continue
                if config.ldm_source not in fingerprints:
                    fingerprints[config.ldm_source] = source_fingerprint(config.ldm_source)
                store = CurveStore(
                    dataset, fingerprints[config.ldm_source], config.distill, config.generate.plain_template,
                    config.generate.image_size,
                )  # fmt: skip
            except DomainFusionError:
                continue  # options of another version, an LDM that is gone
            read = tables.setdefault(store.key, Read([], config, store, set()))
            read.arms += [arm] if arm not in read.arms else []
            read.rows.update(used)
    return list(tables.values())


def _read_a_table(run: Run, config: TrainConfig, dataset: MultiDomainDataset, rows: np.ndarray) -> bool:
    """Whether the run read its slopes from a table, of an LDM that need not be loaded to tell which it is."""
    if config.ldm_source != "embedded" and not Path(config.ldm_source).is_dir():
        return False
    if "slopes" in run.data:
        return bool(run.data["slopes"] == "curve")
    return reads_curves(config, dataset, rows, config.batch_size * len(run.data["sources"]), made=False)


def summarize(curves: Curves, rows: np.ndarray) -> Summary:
    """The slopes of rows (n,) of a table."""
    slopes = curves.slopes[torch.from_numpy(rows)].double().numpy()  # (n, G)
    grid = curves.grid.double().numpy()
    low, high = np.quantile(slopes, [0.25, 0.75], axis=0)
    overall = ((slopes[:, 1:] + slopes[:, :-1]) / 2) @ np.diff(grid)  # trapezoids
    return Summary(
        grid, slopes.mean(0), low, high, (slopes < 0).mean(0), float((overall < 0).mean()), len(rows)
    )  # fmt: skip


def _describe(read: Read, found: Summary, error: float) -> dict[str, Any]:
    config, distill, number = read.config, read.config.distill, read.arms[0].number
    share = Line(
        number, "negative slopes", [(float(p), 100 * float(v)) for p, v in zip(found.grid, found.negative, strict=True)]
    )
    return {
        "arms": read.arms,
        "charts": [
            ("Slope dL/dp", band_chart(number, found, "mean slope of the diffusion model's loss over the confidence")),
            (
                "Images with a negative slope, %",
                line_chart([share], "share of images with a negative slope", percent=True, axis="confidence p"),
            ),
        ],
        "sentences": _sentences(config, found),
        "note": (
            f"Line: mean over {found.images:,} training images of the compared runs. Band: the middle half of them. "
            f"Corruption {distill.corruption}, slopes by {distill.curve_of}, residual {distill.residual}, LDM "
            f"`{config.ldm_source}`. A single image's slope has a standard error of {100 * error:.0f} % of their root "
            "mean square."
        ),
    }  # fmt: skip


def _sentences(config: TrainConfig, found: Summary) -> list[str]:
    """What the slopes do to the classifier, and how much."""
    sentences = [
        "Latent distillation tells the classifier one number of an image: the slope of the diffusion model's loss over "
        "the confidence p in the true class. Training goes downhill: a negative slope pushes the confidence up, as "
        "cross-entropy does; a positive one holds it down.",
        f"On average over p the slope is negative for {100 * found.negative_overall:.0f} % of the images.",
    ]
    p = 0.5
    pull = config.distill_weight * found.mean_at(p)
    if config.raw_weight > 0 and pull:
        against = config.raw_weight / p
        ratio = float(f"{against / abs(pull):.2g}")
        sentences[1] += (
            f" At p = {p:g}, λ2 = {config.distill_weight:g} times the mean slope is {pull:+.2g}; cross-entropy on the "
            f"raw images, -λ1/p, is {-against:+.2g} there, about {ratio:,.{0 if ratio >= 10 else 1}f} times as much."
        )
    return sentences


def band_chart(number: int, found: Summary, label: str) -> Markup:
    """The mean slope over p, its middle half as a band, zero dashed."""
    scale = ticks(min(0.0, float(found.low.min()), float(found.mean.min())),
                  max(0.0, float(found.high.max()), float(found.mean.max())))  # fmt: skip
    width, height, right, top, bottom = WIDTH, 204.0, 20.0, 10.0, 36.0
    left = 12 + TICK * max(len(f"{tick:g}") for tick in scale)
    colour = series_class(number)

    def at(p: float, slope: float) -> tuple[float, float]:
        share = (scale[-1] - slope) / (scale[-1] - scale[0])
        return left + (width - left - right) * p, top + (height - top - bottom) * share

    def way(values: Sequence[tuple[float, float]]) -> str:
        return " L".join(f"{x:.1f} {y:.1f}" for x, y in (at(p, slope) for p, slope in values))

    parts: list[str] = []
    for tick in scale:
        y = at(0, tick)[1]
        parts.append(element("line", x1=left, y1=y, x2=width - right, y2=y, class_="rule" if tick else "chance"))
        parts.append(element("text", f"{tick:g}", x=left - 6, y=y + 4, text_anchor="end", class_="tick"))
    for tick in ticks(0, 1, 4):
        x = at(tick, 0)[0]
        parts.append(element("text", f"{tick:g}", x=x, y=height - bottom + 15, text_anchor="middle", class_="tick"))
    middle = (left + width - right) / 2
    parts.append(element("text", "confidence p", x=middle, y=height - 4, text_anchor="middle", class_="tick"))
    grid = found.grid.tolist()
    edge = [*zip(grid, found.high.tolist(), strict=True), *zip(grid[::-1], found.low.tolist()[::-1], strict=True)]
    parts.append(element("path", d=f"M{way(edge)} Z", class_=f"band {colour}"))
    points = list(zip(grid, found.mean.tolist(), strict=True))
    parts.append(element("path", d=f"M{way(points)}", class_=f"line {colour}"))
    for (p, slope), share in zip(points, found.negative, strict=True):
        x, y = at(p, slope)
        tip = element("title", f"p = {p:g}: mean slope {slope:.3g}, negative for {100 * share:.0f} % of the images")
        parts.append(element("circle", tip, cx=x, cy=y, r=2.4, class_=f"dot {colour}"))
    size = f"0 0 {width:g} {height:g}"
    return element("svg", *parts, viewBox=size, role="img", class_="chart", aria_label=label)
