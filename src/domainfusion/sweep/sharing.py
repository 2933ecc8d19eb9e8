"""What runs of a sweep share, computed ahead of them in parts on all machines: candidates and curves.

Both depend on images, labels, the LDM and the options, on nothing that a classifier learns: see
`domainfusion.fusion.candidates` and `domainfusion.distillation.curves`, whose caches they fill. The cache's folder and
the data are to be the same on all machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from domainfusion.config import TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm_folder import embedded_folder, read_styles
from domainfusion.diffusion.prompts import allowed_styles
from domainfusion.distillation.shards import SHARD
from domainfusion.errors import DomainFusionError
from domainfusion.experiments.generating import candidates_address, candidates_part
from domainfusion.experiments.shared_tables import Asked, Inquiry, tables_worth_making
from domainfusion.experiments.tabulating import curve_store, tabulate_part
from domainfusion.files import cache_folder, hash_of
from domainfusion.fusion.candidate_cache import SHAPING, CandidateCache, cached_rows, candidate_keys
from domainfusion.fusion.schedule import generations_due
from domainfusion.interruption import check
from domainfusion.sweep.plan import Plan, Run

PART = 64  # images in a task, at most
PART_BYTES = 32_000_000  # of candidates that a task returns, about


@dataclasses.dataclass
class Job:
    """Something that runs share: `candidates` of one generation, or `curves`, of rows of a data set."""

    kind: str
    data: str
    config: TrainConfig  # of one of the runs
    number: int  # of the generation
    rows: np.ndarray


def find_jobs(plan: Plan, runs: Iterable[tuple[Run, TrainConfig]]) -> list[Job]:
    """What the runs will ask the caches for, each once, with the rows that any of them uses."""
    jobs: dict[str, Job] = {}
    asked: list[Asked] = []

    def ask(run: Asked, kind: str, number: int, key: list[Any]) -> None:
        config = run.config
        named = [run.data, plain_values(config.data), config.ldm_source, config.precision, kind, number, *key]
        job = jobs.setdefault(hash_of(named), Job(kind, run.data, config, number, run.rows))
        job.rows = np.union1d(job.rows, run.rows)

    inquiry = Inquiry()
    for run, config in runs:
        mine = inquiry.ask(run.place.data, config)
        if mine is None:
            continue
        asked.append(mine)
        if mine.reads:
            ask(mine, "curves", 0, [mine.table])
        for number, key in _generations(mine.config, mine.epoch):
            ask(mine, "candidates", number, key)
    for table in tables_worth_making(asked):
        ask(table, "curves", 0, [table.table])
    return list(jobs.values())


def _generations(config: TrainConfig, epoch: int) -> Iterator[tuple[int, list[Any]]]:
    """(generation, what else its candidates depend on) of every generation that a run reads from the cache."""
    generate = plain_values(config.generate.needed())
    if config.synthetic_weight > 0:
        due = generations_due(config.steps - 1, config.steps, epoch, config.generate)
        folder = embedded_folder() if config.ldm_source == "embedded" else Path(config.ldm_source)
        styles = allowed_styles(read_styles(folder), config.target, config.second_target)
        for number in range(min(due, 1) if config.generate.updating else due):  # later ones start from a run's own
            yield number, [{name: generate[name] for name in SHAPING}, styles]


@dataclasses.dataclass(frozen=True)
class Part:
    """A task of a job, and what to do with what it returns."""

    work: Callable[..., Any]
    given: tuple[Any, ...]
    keep: Callable[[Any], None]


def candidate_parts(job: Job, dataset: MultiDomainDataset, address: str) -> list[Part]:
    """The tasks for the candidates that the cache lacks. What they return is kept by this process, and by it alone."""
    path = cache_folder() / "candidates" / address
    missing = job.rows[~cached_rows(path, len(dataset))[job.rows]]
    if not len(missing):
        return []
    cache = CandidateCache(path, dataset, job.config.generate.needed())
    cache.take_over(missing)
    missing = missing[~cache.done[missing]]
    each = int(np.prod(cache.images.shape[1:]))
    size = max(1, min(PART, PART_BYTES // each))

    def keep(rows: np.ndarray) -> Callable[[Any], None]:
        return lambda found: cache.store(rows, found, candidate_keys(dataset, rows))

    return [
        Part(candidates_part, (job.data, job.config, job.number, rows), keep(rows))
        for rows in np.split(missing, range(size, len(missing), size))
        if len(rows)
    ]


def curve_parts(job: Job) -> list[Part]:
    """The tasks for the curves that the store lacks, a file of the store each."""
    missing = curve_store(job.data, job.config).missing(job.rows)
    return [
        Part(tabulate_part, (job.data, job.config, missing[missing // SHARD == number]), lambda _: None)
        for number in np.unique(missing // SHARD)
    ]


def there(folder: str, threads: int, gpus: float, work: Callable[..., Any], *given: Any) -> Any:
    """`work(*given)` on another machine, in the folder that the sweep was started in, where there is such a folder."""
    torch.set_num_threads(threads)
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with contextlib.chdir(folder) if Path(folder).is_dir() else contextlib.nullcontext():
        return work(*given)


def compute_shared(
    jobs: list[Job], plan: Plan, *, cpus: float, gpus: float, slots: int, say: Callable[[str], None]
) -> None:
    """Fill the caches by Ray tasks, `slots` of them at a time and as many waiting.

    A part that fails is left to the runs, which compute what they miss and say what is wrong.
    """
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=plan.options.retries)(there)

    def submit(work: Callable[..., Any], *given: Any) -> Any:
        return task.remote(os.getcwd(), max(1, int(cpus)), gpus, work, *given)

    for job in jobs:
        name = f"candidates of generation {job.number}" if job.kind == "candidates" else "curves"
        name = f"{name} of {Path(job.data).name}"
        try:
            if job.kind == "candidates":
                address = ray.get(submit(candidates_address, job.data, job.config, job.number))
                parts = candidate_parts(job, plan.datasets[job.data], address)
            else:
                parts = curve_parts(job)
            if parts:
                say(f"shared by the runs: {name}, in {len(parts)} parts")
            _compute(parts, submit, slots)
        except (ray.exceptions.RayError, DomainFusionError) as error:
            cause = getattr(error, "cause", None) or error
            first = str(cause).splitlines()[0]
            say(f"note: {name} were not all made ahead ({first}); the runs do without, or make what they lack")


def _compute(parts: list[Part], submit: Callable[..., Any], slots: int) -> None:
    waiting, pending = list(parts), dict[Any, Part]()
    while waiting or pending:
        check()
        while waiting and len(pending) < 2 * slots:
            part = waiting.pop(0)
            pending[submit(part.work, *part.given)] = part
        ready, _ = ray.wait(list(pending), timeout=1.0)
        for reference in ready:
            pending.pop(reference).keep(ray.get(reference))
