"""The synthetic dataset: one image for each training image, refreshed generation by generation, every one kept.

On disk a generation is a folder people can open, itself a data set `domain/class/image`:

    synthetic/generation-00/
        DOMAIN/CLASS/000123.png     the fused image of row 123
        lineage.csv                 source, chosen candidates, scores, prompts, strengths, seed
        images.npy                  (n, S, S, 3) uint8, what training reads (unless it recombines candidates)
        sheet.png                   a few images: before, candidates, after
A generation appears under its name only when it is complete, so a killed run leaves none half made.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.errors import FileError, show_note
from domainfusion.files import make_folder, reserve, write_json


@dataclasses.dataclass(frozen=True)
class Generation:
    """One refresh of the synthetic dataset: image i replaces row `rows[i]` of the data set."""

    number: int
    rows: np.ndarray  # (n,) int64
    images: np.ndarray  # (n, S, S, 3) uint8, memory-mapped where it was read from disk
    lineage: list[dict[str, Any]]  # n records
    sheet: np.ndarray | None = None  # (H, W, 3) uint8


class SyntheticDataset:
    """The generations of a run, kept in `folder`; the newest is what training uses without recombination."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latest: Generation | None = None
        numbers = [int(path.name.partition("-")[2]) for path in folder.glob("generation-*[0-9]") if is_complete(path)]
        for number in sorted(numbers, reverse=True):
            if self._take(number):
                break

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
            self.latest = None
            while count and not self._take(count - 1):
                count -= 1

    def advance(self) -> bool:
        """Take up the next generation where it is on disk already; False where it has yet to be made."""
        return is_complete(self.path(self.count)) and self._take(self.count)

    def _take(self, number: int) -> bool:
        """Let a generation be the newest; one that is damaged is set aside, said so, and counts as not there."""
        folder = self.path(number)
        try:
            self.latest = load_generation(folder)
        except FileError as error:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)
            show_note(f"{error}; it was set aside, and is made again from the classifier as it is")
            return False
        return True

    def _work(self, number: int) -> Path:
        """The folder of a generation before it is complete."""
        return self.folder / f".{self.path(number).name}.tmp"

    @contextlib.contextmanager
    def room(self, number: int, count: int, size: int) -> Iterator[np.ndarray]:
        """(count, size, size, 3) uint8 on disk, memory-mapped, for the images of a generation that `add` is to have.

        Nothing is left of it where the block ends in an error. Raises `FileError` where there is no room.
        """
        work = self._work(number)
        shutil.rmtree(work, ignore_errors=True)
        make_folder(work)
        try:
            try:
                images = np.lib.format.open_memmap(work / "images.npy", "w+", np.uint8, (count, size, size, 3))
                reserve(work / "images.npy", images.offset + images.nbytes)
            except (OSError, FileError) as error:
                reason = getattr(error if isinstance(error, OSError) else error.__cause__, "strerror", error)
                raise FileError(f"cannot write the synthetic images to {self.path(number)}: {reason}") from error
            yield images
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def add(self, generation: Generation, dataset: MultiDomainDataset) -> None:
        """Write a generation, then let it be the newest. Raises `FileError` where it cannot be written."""
        target, work = self.path(generation.number), self._work(generation.number)
        images = generation.images
        there = isinstance(images, np.memmap) and Path(images.filename or "") == (work / "images.npy").resolve()
        if not there:
            shutil.rmtree(work, ignore_errors=True)
            make_folder(work)
        try:
            for row, image in zip(generation.rows, images, strict=True):
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
            if isinstance(images, np.memmap) and there:
                images.flush()
            else:
                np.save(work / "images.npy", images)
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
            images = np.load(target / "images.npy", mmap_mode="c")
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise FileError(f"cannot write the synthetic images to {target}: {error.strerror}") from error
        self.latest = dataclasses.replace(generation, images=images)


def is_complete(folder: Path) -> bool:
    """Whether a generation was written to `folder` to its end."""
    return re.fullmatch(r"generation-\d+", folder.name) is not None and (folder / "images.npy").exists()


def load_generation(folder: Path) -> Generation:
    """The generation in `folder`, its images as their checksums in the lineage say.

    Damaged images are taken from their PNG files. Raises `FileError` where those are damaged too, or the rest is.
    """
    try:
        described = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
        with open(folder / "lineage.csv", newline="", encoding="utf-8") as file:
            lineage = list(csv.DictReader(file))
        number, rows = int(described["number"]), np.array(described["rows"], dtype=np.int64)
        images = _checked_images(folder, rows, lineage)
        if not len(rows) == len(images) == len(lineage):
            raise ValueError(f"{len(rows)} rows, {len(images)} images and {len(lineage)} records")
    except (OSError, ValueError, EOFError, KeyError, TypeError, csv.Error, RecursionError) as error:
        raise FileError(
            f"the generation in {folder} is damaged ({error}); delete the folder to make it again"
        ) from error
    return Generation(number, rows, images, lineage)


def _checked_images(folder: Path, rows: np.ndarray, lineage: list[dict[str, Any]]) -> np.ndarray:
    """(n, S, S, 3) uint8: `images.npy`, memory-mapped, what is damaged of it from the PNG files; ValueError where that
    fails."""
    sums = [record.get("sha256") for record in lineage]
    try:
        images, trouble = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False), ""
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images.npy holds {images.dtype} {images.shape}")
    except Exception as error:  # a header that is none makes numpy raise whatever it makes of it
        if not all(sums) or not len(sums) == len(rows):
            raise ValueError(f"images.npy: {error}") from error
        images, trouble = _pictures(folder, rows), str(error)
    if len(images) != len(sums):
        return images
    bad = [i for i, kept in enumerate(sums) if kept and kept != hash_of_pixels(images[i])]
    if bad:
        trouble = f"{len(bad)} images do not fit their checksums"
        images[bad] = _pictures(folder, rows[bad])
        if any(sums[i] != hash_of_pixels(images[i]) for i in bad):
            raise ValueError(f"{trouble}, nor do their PNG files")
    if trouble:
        show_note(f"{folder / 'images.npy'} was damaged ({trouble}); its PNG files were used")
    return images


def hash_of_pixels(image: np.ndarray) -> str:
    """A checksum (16 hex digits of SHA-256) of an image (S, S, 3) uint8."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def _pictures(folder: Path, rows: np.ndarray) -> np.ndarray:
    """(n, S, S, 3) uint8: the PNG files of rows (n,); ValueError where one is missing or no image."""
    places = {path.name: path for path in folder.rglob("*.png")}
    found = []
    for row in rows:
        if (place := places.get(f"{row:06d}.png")) is None:
            raise ValueError(f"{row:06d}.png is missing")
        with Image.open(place) as image:
            found.append(np.asarray(image.convert("RGB")))
    return np.stack(found)


def safe_name(name: str) -> str:
    """A class or domain name as a folder name: path separators, control characters and a dot in front replaced."""
    return re.sub(r"[/\\\x00-\x1f]|^\.", "_", name) or "_"
