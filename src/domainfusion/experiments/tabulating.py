"""`domainfusion distill`: the curves of a whole data set, and what they came to."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.config import TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.devices import choose_device
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.curves import CurveStore, store_of
from domainfusion.distillation.shards import SHARD
from domainfusion.errors import UsageError, printable
from domainfusion.experiments.informative import COLUMNS, describe_classes, describe_images
from domainfusion.files import write_text
from domainfusion.interruption import stoppable
from domainfusion.results.tables import csv_table, text_table

SHOWN = 3  # classes and images with the largest slopes that the summary names


def tabulate_curves(
    data: str, config: TrainConfig, *, shard: tuple[int, int] = (0, 1), export: Path | None = None,
    csv: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compute what is missing of a data set's curves; a summary of the table.

    Args:
        shard: (i, n): every n-th file of the table (`SHARD` images) from the i-th, so that n processes share the work.
        export: also write the table, which must be whole, as one file.
        csv: also write a line for each image that was tabulated, by whichever share, the largest slopes first.

    Raises:
        UsageError: for a share that there is not, and for an export of a table that lacks images.
    """
    if not 0 <= shard[0] < shard[1]:
        raise UsageError(f"--shard {shard[0]} {shard[1]} is not I N with I from 0 to N - 1")
    store = curve_store(data, config)
    dataset, options = store.dataset, store.config
    rows = np.arange(len(dataset))
    rows = rows[rows // SHARD % shard[1] == shard[0]]
    started = time.monotonic()
    if len(missing := store.take_over(rows)):
        ldm = LatentDiffusion.load(config.ldm_source, device=choose_device(config.device), precision=config.precision)
        with stoppable():
            store.fill(ldm, missing)
    curves = store.load()
    seconds = time.monotonic() - started
    known = int((curves.rounds > 0).sum())
    images = describe_images(dataset, curves)
    if csv is not None:
        write_text(csv, csv_table(images, COLUMNS))
    if export is not None:
        if known < len(dataset):
            raise UsageError(
                f"--export: the table has {known} of {len(dataset)} images; when the other shares are done too, the "
                "same command writes it"
            )
        store.export(export)
    slopes = curves.slopes[curves.rounds > 0]
    return {
        "data": data, "ldm": config.ldm_source, "key": store.key, "folder": str(store.folder), "images": len(dataset),
        "tabulated": known, "computed": store.computed, "taken_over": store.taken_over,
        "seconds": round(seconds, 1), "size": curves.size(),
        "relative_error": curves.error(),
        "draws_per_image": float(curves.rounds.sum()) / max(known, 1) * options.curve_samples,
        "grid": [round(float(p), 4) for p in curves.grid],
        "mean_slope": [float(value) for value in slopes.mean(0)] if len(slopes) else [],
        "negative_share": [float(value) for value in (slopes < 0).float().mean(0)] if len(slopes) else [],
        "largest": {"classes": describe_classes(dataset, curves)[:SHOWN], "images": images[:SHOWN]},
    }  # fmt: skip


def curve_store(data: str, config: TrainConfig) -> CurveStore:
    """The store of the curves that a run with `config` reads."""
    options = dataclasses.replace(config.distill, estimator="curve")
    return store_of(dataclasses.replace(config, distill=options), load_dataset(data, config.data))


def tabulate_part(data: str, config: TrainConfig, rows: np.ndarray) -> int:
    """Compute what is missing of the curves of rows (n,), for processes that share a table; how many it computed.

    Rows that lie in the same file of the store belong into the same part.
    """
    store = curve_store(data, config)
    missing = store.take_over(rows)
    if len(missing):
        ldm = LatentDiffusion.load(config.ldm_source, device=choose_device(config.device), precision=config.precision)
        store.fill(ldm, missing, progress=False)
    return store.computed


def tabulation_text(found: dict[str, Any]) -> str:
    """The summary as text."""
    rows = [["confidence p", "mean slope dL/dp", "images with a negative slope"]]
    for p, slope, share in zip(
        found["grid"], found["mean_slope"], found["negative_share"], strict=False
    ):  # of none none
        rows.append([f"{p:g}", f"{slope:+z.5f}", f"{100 * share:.0f} %"])
    taken_over = f", {found['taken_over']} taken over from tables of other data sets" if found["taken_over"] else ""
    return (
        f"{text_table(rows)}\n\n"
        f"{found['tabulated']} of {found['images']} images tabulated, {found['computed']} of them now in "
        f"{found['seconds']:.0f} s{taken_over}; {found['draws_per_image']:.0f} draws an image\n"
        f"size of a slope {found['size']:.4f} (root mean square), standard error {100 * found['relative_error']:.0f} % "
        f"of it\n{_largest(found['largest'])}kept in {found['folder']}, where runs with these options find it"
    )


def _largest(found: dict[str, list[dict[str, Any]]]) -> str:
    """The classes and images with the largest slopes, a line each; none where nothing is tabulated."""
    names = {
        "classes": [entry["class"] for entry in found["classes"]],
        "images": [
            entry["image"] if entry["domain"] in entry["image"] else f"{entry['domain']}/{entry['image']}"
            for entry in found["images"]
        ],
    }
    lines = ""
    for what, given in names.items():
        sizes = [f"{printable(name)} {entry['size']:.4f}" for name, entry in zip(given, found[what], strict=True)]
        if sizes:
            lines += f"most informative {what} (size of their slopes): {', '.join(sizes)}\n"
    return lines
