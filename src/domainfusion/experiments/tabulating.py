"""`domainfusion distill`: the curves of a whole data set, and what they came to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.batches import steps_per_epoch, with_steps
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.findings import number
from domainfusion.data.splits import build_split
from domainfusion.devices import choose_device
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.curves import SHAPING, CurveStore, reads_curves, store_of, table_passes, training_passes
from domainfusion.distillation.shards import SHARD
from domainfusion.errors import UsageError, printable, show_note
from domainfusion.experiments.informative import COLUMNS, describe_classes, describe_images
from domainfusion.files import hash_of, write_text
from domainfusion.interruption import stoppable
from domainfusion.registry import ALGORITHMS
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
        "mean_slope": [float(value) for value in slopes.mean(0)],
        "negative_share": [float(value) for value in (slopes < 0).float().mean(0)],
        "largest": {"classes": describe_classes(dataset, curves)[:SHOWN], "images": images[:SHOWN]},
    }  # fmt: skip


def curve_store(data: str, config: TrainConfig) -> CurveStore:
    """The store of the curves that a run with `config` reads."""
    options = dataclasses.replace(config.distill, estimator="curve")
    return store_of(dataclasses.replace(config, distill=options), load_dataset(data, config.data))


@dataclasses.dataclass
class Asked:
    """What a run of DomainFusion will ask for slopes of: its options with steps, the rows of its training images, how
    many of them are in a step, and the steps of an epoch."""

    data: str
    config: TrainConfig
    dataset: MultiDomainDataset
    rows: np.ndarray
    batch: int
    epoch: int

    @classmethod
    def of_run(cls, data: str, config: TrainConfig, dataset: MultiDomainDataset) -> Asked:
        """That of a run with `config`."""
        split = build_split(dataset, config.data, config.target, config.trial, config.second_target)
        rows = np.sort(np.concatenate([split.train[domain] for domain in split.sources]))
        batch, epoch = config.batch_size * len(split.sources), steps_per_epoch(split, config.batch_size)
        return cls(data, with_steps(config, split), dataset, rows, batch, epoch)

    def table(self) -> str:
        """Which table has its slopes, among those of one data set read with the same options."""
        config, options = self.config, plain_values(self.config.distill)
        shaping = [
            {name: options[name] for name in SHAPING},
            config.generate.plain_template,
            config.generate.image_size,
        ]
        return hash_of([self.data, plain_values(config.data), config.ldm_source, config.precision, shaping])


def tables_worth_making(runs: Iterable[Asked]) -> list[Asked]:
    """Tables that take fewer passes of the U-Net than runs which share them do together, though no run alone does.

    Of each the first run that would read it, with the rows of all of them. When it is made, `auto` reads it.
    """
    found: dict[str, Asked] = {}
    passes: dict[str, int] = {}
    for run in runs:
        distill = run.config.distill
        if distill.estimator != "auto" or run.config.distill_weight == 0:
            continue
        if reads_curves(run.config, run.dataset, run.rows, run.batch):
            continue
        first = found.setdefault(key := run.table(), dataclasses.replace(run))
        first.rows = np.union1d(first.rows, run.rows)
        passes[key] = passes.get(key, 0) + training_passes(run.config, run.batch)
    return [run for key, run in found.items() if table_passes(len(run.rows), run.config.distill) <= passes[key]]


def make_shared_tables(data: str, dataset: MultiDomainDataset, runs: Iterable[TrainConfig]) -> None:
    """Tabulate what `tables_worth_making` of runs on one data set; several processes share the work."""
    asked = [
        Asked.of_run(data, config, dataset) for config in runs
        if issubclass(ALGORITHMS.load(config.algorithm), DomainFusion)
    ]  # fmt: skip
    for table in tables_worth_making(asked):
        store = store_of(table.config, dataset)
        if len(missing := store.take_over(table.rows)):
            show_note(
                f"tabulating slopes of {number(len(missing), 'image')}, which takes less than computing them in the "
                "steps of all these runs (--distill.estimator score does that)"
            )
            ldm = LatentDiffusion.load(
                table.config.ldm_source, device=choose_device(table.config.device), precision=table.config.precision
            )
            with stoppable():
                store.fill(ldm, missing)


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
    for p, slope, share in zip(found["grid"], found["mean_slope"], found["negative_share"], strict=True):
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
