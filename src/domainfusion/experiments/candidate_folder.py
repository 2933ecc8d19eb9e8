"""Candidates as a folder of pictures that say what they were made of, itself a data set.

    DOMAIN/CLASS/NAME-gG-cC.png     NAME is that of the source image, G the generation, C the candidate, both from 0
    metadata.csv                    a row for each picture, with columns of the imagefolder form (`file_name`, `label`,
                                    `domain`), by which the folder is read, and `source`, `generation`, `candidate`,
                                    `prompt`, `strength`, `seed`

Names are safe on any file system. Those that had to be changed for it, and those that would be the same (`1.jpg` and
`1.png`, `a/1.png` and `b/1.png`, `Cat` and `cat`), carry a hash of what they stand for; `metadata.csv` has them as they
are.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.images import OTHER_PICTURES, SUFFIXES
from domainfusion.errors import FileError, UsageError
from domainfusion.files import hash_of, make_folder, write_text
from domainfusion.fusion.candidates import Recipe
from domainfusion.locks import locked

COLUMNS = ("file_name", "label", "domain", "source", "generation", "candidate", "prompt", "strength", "seed")
MOST_BYTES = 120  # of a name; file systems have room for 255, of which the rest of the file's name needs some
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # on Windows


def portable_name(name: str) -> str:
    """`name` as any file system takes it: letters, digits and plain punctuation, of no more than `MOST_BYTES`.

    Where that is another than it was, a hash of `name` is put behind it, so that different names stay different.

    >>> portable_name("IMG_0012 (2)"), portable_name("../.."), portable_name("a:b")
    ('IMG_0012 (2)', 'image-e5ab1c21', 'a_b-8cc85723')
    """
    plain = unicodedata.normalize("NFC", name)
    plain = "".join(c if c.isalnum() or c in "-_.,+()[] " else "_" for c in plain).strip("._ ")
    if plain.startswith("-"):  # a program would take it for an option
        plain = f"_{plain[1:]}"
    while len(plain.encode()) > MOST_BYTES:
        plain = plain[:-1]
    plain = plain.rstrip("._ ") or "image"
    if plain == name and plain.split(".")[0].casefold() not in RESERVED:
        return plain
    return f"{plain}-{hash_of(name)[:8]}"


def picture_names(dataset: MultiDomainDataset) -> list[str]:
    """(N,) `DOMAIN/CLASS/NAME` of every image, all different, whether or not a file system tells a from A."""
    folders = {text: portable_name(text) for text in (*dataset.domains, *dataset.classes)}
    names = []
    for row, key in enumerate(dataset.keys):
        source = PurePosixPath(key)
        stem = source.stem if source.suffix.lower() in (*SUFFIXES, *OTHER_PICTURES) else source.name
        place = folders[dataset.domains[dataset.domain_of[row]]], folders[dataset.classes[dataset.labels[row]]]
        names.append("/".join((*place, portable_name(stem))))
    count = Counter(name.casefold() for name in names)
    return [
        name if count[name.casefold()] == 1 else f"{name}-{hash_of(key)[:8]}"
        for name, key in zip(names, dataset.keys, strict=True)
    ]


class CandidateFolder:
    """The folder that candidates of a data set are written to; several processes may write to it, each its share.

    Raises `UsageError` where `metadata.csv` is there already and tells of something else.
    """

    def __init__(self, folder: Path, dataset: MultiDomainDataset) -> None:
        self.folder, self.dataset = folder, dataset
        self.names = picture_names(dataset)
        self.rows: list[dict[str, Any]] = []  # of metadata.csv
        self._read()

    def write(self, rows: np.ndarray, recipes: list[Recipe], candidates: np.ndarray, number: int) -> int:
        """Write candidates (b, N, S, S, 3) of rows (b,) in generation `number`; returns how many pictures."""
        for row, item, images in zip(rows, recipes, candidates, strict=True):
            make_folder((self.folder / self.names[row]).parent)
            for c, image in enumerate(images):
                name = f"{self.names[row]}-g{number}-c{c}.png"
                try:
                    Image.fromarray(image).save(self.folder / name)
                except OSError as error:
                    raise FileError(f"cannot write {self.folder / name}: {error.strerror or error}") from error
                self.rows.append({
                    "file_name": name, "label": self.dataset.classes[self.dataset.labels[row]],
                    "domain": self.dataset.domains[self.dataset.domain_of[row]], "source": self.dataset.keys[row],
                    "generation": number, "candidate": c, "prompt": item.prompts[c],
                    "strength": round(float(item.strengths[c]), 4), "seed": item.seed,
                })  # fmt: skip
        return candidates.shape[0] * candidates.shape[1]

    def finish(self) -> None:
        """Write `metadata.csv`: what this process has written, beside what it tells already."""
        make_folder(self.folder)
        with locked(self.folder / ".metadata.lock"):
            told = {row["file_name"]: row for row in (*self._read(), *self.rows)}
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(told[name] for name in sorted(told))
            write_text(self.folder / "metadata.csv", text.getvalue())

    def _read(self) -> list[dict[str, Any]]:
        path = self.folder / "metadata.csv"
        if not path.exists():
            return []
        try:
            reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
            rows = list(reader)
        except (OSError, ValueError, csv.Error) as error:
            raise FileError(f"{path} cannot be read ({error}); choose another --output") from error
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UsageError(f"{path} tells of something else than candidates; choose another --output")
        for number, row in enumerate(rows, start=1):
            if None in row or None in row.values():  # more values than columns, or fewer
                raise FileError(f"{path} is damaged (row {number}); delete it, or choose another --output")
        return rows
