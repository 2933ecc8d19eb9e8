"""The most suspicious labels of a study's data set, as an audit (`domainfusion audit`) ranked them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.errors import FileError, UsageError
from domainfusion.files import read_json_object
from domainfusion.report.pictures import png_uri
from domainfusion.report.study import Study

SHOWN = 10
SIDE = 96  # pixels of a picture
TEXTS = ("image", "domain", "given", "suggested")
NUMBERS = ("row", "score", "standard_error")

Audit = dict[str, Any]  # an `audit.json`, and the `path` that it was read from


def read_audits(paths: Iterable[Path]) -> list[Audit]:
    """The audits at `paths`: folders that `domainfusion audit` wrote, or a file in one.

    Raises `UsageError` where there is none, `FileError` where one was altered.
    """
    found = []
    for path in paths:
        inside = path.is_file() or path.suffix in (".json", ".html")  # a file that it wrote stands for its folder
        file = (path.parent if inside and not path.is_dir() else path) / "audit.json"
        file = path if path.suffix == ".json" and not path.is_dir() else file
        if not file.is_file():
            raise UsageError(
                f"--audit {path}: there is no {file}; write one first: domainfusion audit DATA --output DIR"
            )
        audit = read_json_object(file, data=str, ldm=str, ranking=str, images=int, of=int, labels=list)
        for entry in audit["labels"][:SHOWN]:
            _check_entry(entry, file)
        found.append(audit | {"path": file})
    return found


def _check_entry(entry: Any, file: Path) -> None:
    known = isinstance(entry, dict)
    known = known and all(isinstance(entry.get(name), str) for name in TEXTS)
    known = known and all(isinstance(entry.get(name), (int, float)) for name in NUMBERS)
    if known and "classifier_loss" in entry:
        known = isinstance(entry["classifier_loss"], (int, float)) and isinstance(entry.get("classifier_rank"), int)
        known = known and isinstance(entry.get("classifier_suggested"), str) and "trained_on" in entry
    if not known or not isinstance(entry["row"], int):
        raise FileError(f"{file}: an entry of labels lacks image, labels or score; it was altered or damaged")


def share_audits(
    audits: Sequence[Audit], studies: Sequence[Study], datasets: Sequence[MultiDomainDataset | None]
) -> list[list[Audit]]:
    """For each study the audits of its data set; of studies on one data set the first has them.

    Raises `UsageError` where an audit is of none of these data sets.
    """
    shares: list[list[Audit]] = [[] for _ in studies]
    for audit in audits:
        places = [
            i for i, (study, dataset) in enumerate(zip(studies, datasets, strict=True)) if _fits(audit, study, dataset)
        ]
        if not places:
            names = list(dict.fromkeys(str(study.data["data"]) for study in studies))
            commands = " or ".join(shlex.join(["domainfusion", "audit", name]) for name in names)
            raise UsageError(
                f"--audit {audit['path']} is of other images ({audit['data']}, {audit['of']:,} of them) than the runs "
                f"({', '.join(names)}); give the audit of the same data set, as it is now: {commands}"
            )
        shares[places[0]].append(audit)
    return shares


def _fits(audit: Audit, study: Study, dataset: MultiDomainDataset | None) -> bool:
    """Whether an audit is of a study's images: by their fingerprint, which is another for another `--data.size`.

    Of another size, or where an older audit has no fingerprint, the place has to be the same, and every label that is
    shown.
    """
    data = study.data
    same = audit.get("fingerprint") == data["fingerprint"]
    if not same:
        if "fingerprint" in audit and audit.get("size") == data["size"]:
            return False
        place = audit["data"]
        if data["data"] not in (place, str(Path(place).resolve())) or audit["of"] != data["images"]:
            return False
    return dataset is None or all(_names(dataset, entry) for entry in audit["labels"][:SHOWN])


def _names(dataset: MultiDomainDataset, entry: dict[str, Any]) -> bool:
    """Whether a data set has the entry's image in its row, in the same domain and with the same label."""
    row = entry["row"]
    return 0 <= row < len(dataset) and (
        dataset.keys[row], dataset.domains[dataset.domain_of[row]], dataset.classes[dataset.labels[row]]
    ) == (entry["image"], entry["domain"], entry["given"])  # fmt: skip


def build_suspicious(audits: Sequence[Audit], dataset: MultiDomainDataset | None) -> list[dict[str, Any]]:
    """What the page shows of each audit: its `facts`, its `page`, and `entries` with `uri` and `why`."""
    return [
        {
            "facts": audit, "page": str(audit["path"].parent / "audit.html"),
            "entries": [
                entry | {
                    "uri": None if dataset is None else png_uri(dataset.images[entry["row"]], SIDE),
                    "why": describe_entry(entry),
                }
                for entry in audit["labels"][:SHOWN]
            ],
        }
        for audit in audits
    ]  # fmt: skip


def describe_entry(entry: dict[str, Any]) -> str:
    """Why a label is suspicious, in words."""
    score, error = float(entry["score"]), float(entry["standard_error"])
    ahead = f"by {abs(score):.3g} ± {error:.2g}"
    text = f"the rival fits better {ahead}" if score > 0 else f"no rival fits better; the nearest is behind {ahead}"
    if "classifier_loss" not in entry:
        return text
    given = 100 * math.exp(-max(0.0, float(entry["classifier_loss"])))
    return (
        f"{text}; classifiers give the label {given:.0f} %, of the others they prefer "
        f"{entry['classifier_suggested']} (rank {entry['classifier_rank']} by them"
        f"{', trained on the image' if entry['trained_on'] else ''})"
    )
