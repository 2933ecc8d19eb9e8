"""Tables of curves that several runs read: when one is worth making, and its making ahead of the runs.

A run alone computes its slopes in its steps where that takes fewer passes of the U-Net than a table of its images. Runs
that share images, LDM and options share a table; made ahead of them, it is found by `--distill.estimator auto`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.batches import steps_per_epoch, with_steps
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.findings import number
from domainfusion.data.splits import build_split
from domainfusion.devices import choose_device
from domainfusion.diffusion.labelled_corpus import refuse_seen_target
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.curve_choice import has_table, reads_curves, table_passes, training_passes
from domainfusion.distillation.curves import SHAPING, store_of
from domainfusion.errors import LDMError, show_note
from domainfusion.experiments.run_folder import recorded_data, refuse_other_options
from domainfusion.files import hash_of
from domainfusion.interruption import stoppable
from domainfusion.registry import ALGORITHMS


@dataclasses.dataclass
class Asked:
    """What a run of DomainFusion asks for: slopes (and candidates) of `rows`, its training images."""

    data: str
    config: TrainConfig  # with steps
    dataset: MultiDomainDataset
    rows: np.ndarray
    batch: int  # raw images in a step
    epoch: int  # steps of an epoch
    table: str  # key of the table that has its slopes
    there: bool  # whether that table has them already

    @property
    def automatic(self) -> bool:
        """Whether the tables that there are decide how slopes are found."""
        return self.config.distill.estimator == "auto" and self.config.distill_weight > 0

    @property
    def reads(self) -> bool:
        """Whether the run reads a table, as it is or made by itself."""
        return (self.automatic and self.there) or reads_curves(
            self.config, self.dataset, self.rows, self.batch, made=False
        )


class Inquiry:
    """Asks what runs ask for; data, splits and tables are looked at once for all runs that have them in common."""

    def __init__(self) -> None:
        self._datasets: dict[str, MultiDomainDataset] = {}
        self._rows: dict[str, np.ndarray] = {}
        self._there: dict[tuple[str, str], bool] = {}

    def ask(self, data: str, config: TrainConfig) -> Asked | None:
        """What a run asks for; nothing where it is of another algorithm than DomainFusion or one made of it."""
        kind = ALGORITHMS.load(config.algorithm)
        if not (isinstance(kind, type) and issubclass(kind, DomainFusion)):
            return None
        read = hash_of([data, plain_values(config.data)])
        if read not in self._datasets:
            self._datasets[read] = load_dataset(data, config.data)
        dataset = self._datasets[read]
        split = build_split(dataset, config.data, config.target, config.trial, config.second_target)
        rows = np.sort(np.concatenate([split.train[domain] for domain in split.sources]))
        of = hash_of([read, rows.tolist()])
        rows = self._rows.setdefault(of, rows)
        options, generate = plain_values(config.distill), config.generate
        shaping = [{name: options[name] for name in SHAPING}, generate.plain_template, generate.image_size]
        table = hash_of([read, config.ldm_source, config.precision, shaping])
        if config.distill_weight > 0 and (table, of) not in self._there:
            self._there[table, of] = has_table(config, dataset, rows)
        return Asked(
            data, with_steps(config, split), dataset, rows, config.batch_size * len(split.sources),
            steps_per_epoch(split, config.batch_size), table, self._there.get((table, of), False),
        )  # fmt: skip


def tables_worth_making(runs: Iterable[Asked]) -> list[Asked]:
    """Tables that take no more passes of the U-Net than the runs that share them would, were slopes computed in steps.

    Of each the first run that would read it, with the rows of all of them.
    """
    found: dict[str, Asked] = {}
    passes: dict[str, int] = {}
    for run in runs:
        if run.automatic and not run.there:
            first = found.setdefault(run.table, dataclasses.replace(run))
            if first.rows is not run.rows:
                first.rows = np.union1d(first.rows, run.rows)
            passes[run.table] = passes.get(run.table, 0) + training_passes(run.config, run.batch)
    return [run for key, run in found.items() if table_passes(len(run.rows), run.config.distill) <= passes[key]]


def make_shared_tables(data: str, runs: Sequence[tuple[TrainConfig, Path]], *, progress: bool = True) -> None:
    """Tabulate what is worth it for runs with these options in these folders; several processes share the work.

    No table is made for runs of which one was begun without: what is compared finds its slopes in one way.

    Raises what the runs themselves would raise for options that do not fit, before any table is made.
    """
    inquiry, asked, otherwise = Inquiry(), [], set()
    for config, folder in runs:
        run = inquiry.ask(data, config)
        if run is None or not run.automatic:
            continue
        if (folder / "data.json").exists() and recorded_data(folder).get("slopes") != "curve":
            otherwise.add(run.table)
        elif not (folder / "result.json").exists():
            asked.append(run)
    tables = tables_worth_making(run for run in asked if run.table not in otherwise)
    if not tables:
        return
    for config, folder in runs:
        refuse_other_options(folder, data, config)
        refuse_seen_target(config.ldm_source, tables[0].dataset, (config.target, config.second_target), config.trial)
    for table in tables:
        config = table.config
        try:
            store = store_of(config, table.dataset)
            if len(missing := store.take_over(table.rows)):
                ldm = LatentDiffusion.load(
                    config.ldm_source, device=choose_device(config.device), precision=config.precision
                )
                show_note(
                    f"tabulating slopes of {number(len(missing), 'image')}, which takes less than computing them in "
                    "the steps of all these runs (--distill.estimator score does that)"
                )
                with stoppable():
                    store.fill(ldm, missing, progress=progress)
        except LDMError:  # the runs that need it say so, and others go on
            continue
