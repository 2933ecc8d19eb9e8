"""A labelled data set as a corpus for pretraining an LDM: captions name class and domain, held-out domains stay out.

What an LDM was trained on is kept beside it, so that a run that holds out one of its domains can refuse it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from domainfusion.config import DataConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset, words_of
from domainfusion.data.splits import build_split
from domainfusion.diffusion.corpus import Corpus
from domainfusion.errors import UsageError
from domainfusion.files import read_json_object

SEEN = "seen.json"  # in the folder of a pipeline
Seen: TypeAlias = dict[str, list[str]]  # {data set: domains that an LDM was trained on}


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
    return _captioned(dataset, np.sort(rows)), {dataset.name: sorted(split.sources)}


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
        return {}
    return {str(data): [str(domain) for domain in domains] for data, domains in read_json_object(path).items()}


def merge_seen(first: Seen, second: Seen) -> Seen:
    """What an LDM has seen that was trained on both.

    >>> merge_seen({"a": ["x"]}, {"a": ["y", "x"], "b": ["z"]})
    {'a': ['x', 'y'], 'b': ['z']}
    """
    return {data: sorted({*first.get(data, ()), *second.get(data, ())}) for data in sorted({*first, *second})}


def refuse_seen_target(ldm: str, data_name: str, held_out: Sequence[str | None]) -> None:
    """Raise `UsageError` where the LDM in the folder `ldm` was trained on images of a domain that is held out."""
    seen = read_seen(Path(ldm)).get(data_name, [])
    for domain in held_out:
        if domain in seen:
            raise UsageError(
                f"--ldm {ldm}: it was trained on images of {domain}, which is held out; train one without them: "
                f"domainfusion pretrain DATA --target {domain}"
            )
