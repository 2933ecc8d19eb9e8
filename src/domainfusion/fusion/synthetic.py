"""The synthetic dataset: one image for each training image, refreshed generation by generation, every one kept.

On disk a generation is a folder people can open, itself a data set `domain/class/image`:

    synthetic/generation-00/
        DOMAIN/CLASS/000123.png     the fused image of row 123
        lineage.csv                 source, chosen candidates, scores, prompts, strengths, seed
        images.npy                  (n, S, S, 3) uint8, what training reads
        sheet.png                   a few images: before, candidates, after
A generation appears under its name only when it is complete, so a killed run leaves none half made.
"""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.errors import FileError
from domainfusion.files import make_folder, write_json


@dataclasses.dataclass(frozen=True)
class Generation:
    """One refresh of the synthetic dataset: image i replaces row `rows[i]` of the data set."""

    number: int
    rows: np.ndarray  # (n,) int64
    images: np.ndarray  # (n, S, S, 3) uint8
    lineage: list[dict[str, Any]]  # n records
    sheet: np.ndarray | None = None  # (H, W, 3) uint8


class SyntheticDataset:
    """The generations of a run, kept in `folder`; the newest is what training uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latest: Generation | None = None
        numbers = [int(path.name.partition("-")[2]) for path in folder.glob("generation-*[0-9]") if is_complete(path)]
        if numbers:
            self.latest = load_generation(self.path(max(numbers)))

    @property
    def count(self) -> int:
        """How many generations there are."""
        return 0 if self.latest is None else self.latest.number + 1

    def path(self, number: int) -> Path:
        """The folder of a generation."""
        return self.folder / f"generation-{number:02d}"

    def rewind(self, count: int) -> None:
        """Let generation `count` - 1 be the newest where there are later ones (a run resumed from before them)."""
        if count < self.count:
            self.latest = load_generation(self.path(count - 1)) if count else None

    def advance(self) -> bool:
        """Take up the next generation where it is on disk already; False where it has yet to be made."""
        following = self.path(self.count)
        if not is_complete(following):
            return False
        self.latest = load_generation(following)
        return True

    def add(self, generation: Generation, dataset: MultiDomainDataset) -> None:
        """Write a generation, then let it be the newest. Raises `FileError` where it cannot be written."""
        target = self.path(generation.number)
        work = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(work, ignore_errors=True)
        make_folder(work)
        try:
            for row, image in zip(generation.rows, generation.images, strict=True):
                domain = dataset.domains[dataset.domain_of[row]]
                folder = work / safe_name(domain) / safe_name(dataset.classes[dataset.labels[row]])
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{row:06d}.png", compress_level=1)
            with open(work / "lineage.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(generation.lineage[0]))
                writer.writeheader()
                writer.writerows(generation.lineage)
            if generation.sheet is not None:
                Image.fromarray(generation.sheet).save(work / "sheet.png")
            write_json(work / "generation.json", {"number": generation.number, "rows": generation.rows.tolist()})
            np.save(work / "images.npy", generation.images)
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise FileError(f"cannot write the synthetic images to {target}: {error.strerror}") from error
        self.latest = generation


def is_complete(folder: Path) -> bool:
    """Whether a generation was written to `folder` to its end."""
    return re.fullmatch(r"generation-\d+", folder.name) is not None and (folder / "images.npy").exists()


def load_generation(folder: Path) -> Generation:
    """The generation in `folder`. Raises `FileError` where it is damaged."""
    import json

    try:
        described = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", allow_pickle=False)
        with open(folder / "lineage.csv", newline="", encoding="utf-8") as file:
            lineage = list(csv.DictReader(file))
        number, rows = int(described["number"]), np.array(described["rows"], dtype=np.int64)
        if not len(rows) == len(images) == len(lineage):
            raise ValueError(f"{len(rows)} rows, {len(images)} images and {len(lineage)} records")
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise FileError(
            f"the generation in {folder} is damaged ({error}); delete the folder to make it again"
        ) from error
    return Generation(number, rows, images, lineage)


def safe_name(name: str) -> str:
    """A class or domain name as a folder name: path separators, control characters and a dot in front replaced."""
    return re.sub(r"[/\\\x00-\x1f]|^\.", "_", name) or "_"
