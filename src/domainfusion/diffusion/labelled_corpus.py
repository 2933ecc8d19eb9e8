"""A labelled data set as a corpus for pretraining an LDM: captions name class and domain, held-out domains stay out.

What an LDM was trained on is kept beside it, so that a run that holds out one of its domains can refuse it.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.config import DataConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset, words_of
from domainfusion.data.splits import build_split
from domainfusion.diffusion.corpus import Corpus
from domainfusion.errors import UsageError
from domainfusion.files import read_json_object

SEEN = "seen.json"  # in the folder of a pipeline


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an LDM was trained on: by data set the domains, and the trials whose training images alone were taken."""

    domains: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    trials: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # of a data set that is not here, all images


def is_captioned(path: Path) -> bool:
    """Whether `path` is a corpus with captions of its own: an .npz file, or a folder whose metadata.csv has `text`."""
    if path.suffix == ".npz":
        return True
    table = path / "metadata.csv"
    if not table.is_file():
        return False
    with open(table, newline="", encoding="utf-8", errors="replace") as handle:
        return "text" in next(csv.reader(handle), [])


def labelled_corpus(data: str, size: int, target: str | None = None, trial: int | None = None) -> tuple[Corpus, Seen]:
    """The images of a data set that an LDM may see, at `size` pixels, and which domains they are of.

    Captions are "CLASS, DOMAIN" in words, either part dropped at random in training; the domains are the LDM's styles.

    Args:
        target: domain left out; None takes all.
        trial: take only what this trial trains on; None takes the sources' validation images too.

    Raises `UsageError` for a target of a data set with folds and no trial: its test drawings would be seen in the
    sources' styles.
    """
    if trial is not None and trial < 0:
        raise UsageError(f"--trial {trial}: trials are counted from 0")
    dataset = load_dataset(data, DataConfig(size=size))
    if dataset.folds is not None and target is not None and trial is None:
        raise UsageError(
            f"{dataset.name} has folds: what trial T tests in {target}, other domains draw too, and its runs train "
            "without; give --trial T, and take the LDM for that trial's runs"
        )
    split = build_split(dataset, DataConfig(), target, trial or 0)
    if trial is None:
        rows = np.concatenate([dataset.rows(dataset.index_of(domain)) for domain in split.sources])
    else:
        rows = np.concatenate([split.train[domain] for domain in split.sources])
    trials = {} if trial is None else {dataset.name: [trial]}
    return _captioned(dataset, np.sort(rows)), Seen({dataset.name: sorted(split.sources)}, trials)


def _captioned(dataset: MultiDomainDataset, rows: np.ndarray) -> Corpus:
    classes, domains = dataset.words(), [words_of(domain) for domain in dataset.domains]
    return Corpus(
        images=np.ascontiguousarray(dataset.images[rows]),
        text=[""] * len(rows),
        category=[classes[label] for label in dataset.labels[rows]],
        style=[domains[domain] for domain in dataset.domain_of[rows]],
        weight=np.ones(len(rows)),
    )


def read_seen(pipeline: Path) -> Seen:
    """What the LDM in this folder was trained on, as far as it says so: one of another origin says nothing."""
    path = pipeline / SEEN
    if not path.is_file():
        return Seen()
    found = read_json_object(path)
    if set(found) != {"domains", "trials"}:  # of former versions, which did not keep trials
        found = {"domains": found, "trials": {}}
    return Seen(
        {str(data): [str(domain) for domain in domains] for data, domains in found["domains"].items()},
        {str(data): [int(trial) for trial in trials] for data, trials in found["trials"].items()},
    )


def merge_seen(first: Seen, second: Seen) -> Seen:
    """What an LDM has seen that was trained on both.

    >>> merge_seen(Seen({"a": ["x"]}, {"a": [0]}), Seen({"a": ["y", "x"], "b": ["z"]}, {"a": [1]}))
    Seen(domains={'a': ['x', 'y'], 'b': ['z']}, trials={'a': [0, 1]})
    """

    def merged(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {data: sorted({*one.get(data, ()), *other.get(data, ())}) for data in sorted({*one, *other})}

    return Seen(merged(first.domains, second.domains), merged(first.trials, second.trials))


def refuse_seen_target(ldm: str, dataset: MultiDomainDataset, held_out: Sequence[str | None], trial: int) -> None:
    """Raise `UsageError` where the LDM in the folder `ldm` was trained on what a run on a data set tests.

    That is images of a domain that is held out, and in a data set with folds what the target draws in other domains:
    each trial tests other drawings, and its training images alone are without them.
    """
    whole = read_seen(Path(ldm))
    seen, trials = whole.domains.get(dataset.name, []), whole.trials.get(dataset.name, [])
    others = sorted(set(trials) - {trial})
    if dataset.folds is not None and others:
        raise UsageError(
            f"--ldm {ldm}: it was trained for trial {', '.join(map(str, others))}, on drawings that trial {trial} "
            f"tests; train one for it (domainfusion pretrain DATA --target TARGET --trial {trial}), and name them by "
            "{trial} in --ldm"
        )
    for domain in held_out:
        if domain in seen:
            raise UsageError(
                f"--ldm {ldm}: it was trained on images of {domain}, which is held out; train one without them: "
                f"domainfusion pretrain DATA --target {domain}"
            )
