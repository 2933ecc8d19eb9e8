"""Data sets in the Hugging Face *imagefolder* form: images, and `metadata.csv` or `metadata.jsonl` with their domains.

The metadata has a row for each image: `file_name` (relative to the metadata file), `label` or `class`, and `domain`.
Metadata files may lie in the folder itself and in the folders directly below it (the splits `train`, `test`, ...),
whose images are taken together.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from domainfusion.data.findings import number as counted
from domainfusion.data.findings import some
from domainfusion.data.images import OTHER_PICTURES, SUFFIXES
from domainfusion.data.listing import NUMBERS, is_file, is_listed, list_files, list_folders
from domainfusion.errors import DataError, shortened

METADATA = ("metadata.csv", "metadata.jsonl")
LABEL_COLUMNS = ("label", "class")
COLUMNS = ("file_name", "domain", *LABEL_COLUMNS)
SEPARATORS = (",", ";", "\t")  # spreadsheets write what their country's decimal sign leaves free


def find_metadata(root: Path) -> list[Path]:
    """The metadata files at and directly below `root` that tell labels and domains; none where it is another form."""
    return [path for path in _metadata_files(root) if _tells_domains(_first_row(path) or {})]


def unused_metadata(root: Path, *, captions: bool = False) -> list[str]:
    """Which metadata files at and directly below `root` are not used, and why: a line for each.

    Args:
        captions: also those for `pretrain`, which come in the same form, without domains.
    """
    lines = []
    for path in _metadata_files(root):
        row = _first_row(path)
        if not _tells_domains(row or {}) and (captions or "text" not in (row or {})):
            has = "has no row" if row is None else f"has {shortened(', '.join(map(str, row)) or 'none')}"
            apart = ", separated by commas, semicolons or tabs," if path.suffix == ".csv" else ""
            lines.append(
                f"{path.relative_to(root).as_posix()} is not used: it needs the columns file_name, label (or class) "
                f"and domain{apart} and {has}"
            )
    return lines


def why_no_metadata(root: Path) -> str:
    """What the metadata of `root` lacks to tell labels and domains, to be put after what is wrong; empty if none."""
    return "".join(f"; {line}" for line in unused_metadata(root, captions=True)[:1])


def _metadata_files(root: Path) -> list[Path]:
    return [folder / name for folder in [root, *list_folders(root)] for name in METADATA if is_file(folder / name)]


def _first_row(path: Path) -> dict[str, Any] | None:
    return next((row for _, row in _rows(path)), None)


def _tells_domains(columns: Container[str]) -> bool:
    """Whether a row of these columns names a domain and a label."""
    return "domain" in columns and any(name in columns for name in LABEL_COLUMNS)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the line, and columns, of every row. Raises `DataError` naming the line.

    The columns that are needed are found in any case, with blanks around them, and apart by any of `SEPARATORS`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for separator in SEPARATORS:
                header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
                if _tells_domains(_named_plainly(dict.fromkeys(header))):
                    blanks = any(name.startswith(" ") for name in header)  # "file_name, label, domain"
                    source = io.StringIO(text, newline="")
                    reader = csv.DictReader(source, delimiter=separator, skipinitialspace=blanks)
                    break
            for row in reader:
                yield reader.line_num, _named_plainly(row)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num + 1}, is not CSV: {error}") from error
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}, is no JSON object")
            yield number, _named_plainly(row)


def _named_plainly(row: dict[Any, Any]) -> dict[Any, Any]:
    """`row` with the columns that are needed under their own names, where none has it already.

    >>> _named_plainly({"File_Name ": "1.png", "Label": "dog", "label": "cat"})
    {'file_name': '1.png', 'Label': 'dog', 'label': 'cat'}
    """
    names = {name: name.strip().casefold() for name in row if isinstance(name, str)}
    return {
        plain if (plain := names.get(name, name)) in COLUMNS and plain not in row else name: value
        for name, value in row.items()
    }


def _is_there(image: Path) -> bool:
    """Whether a file is there, or a link to nothing, under a name that may be none that the file system can have."""
    try:
        return is_listed(image)
    except OSError:  # too long a name
        return False


@dataclasses.dataclass(frozen=True)
class Listed:
    """What the metadata of a folder names, and what it does not."""

    listing: dict[str, dict[str, list[Path]]]  # {domain: {class: [paths]}}, the lists sorted
    missing: tuple[tuple[str, str], ...]  # (file and line, image) of each row whose image is not there
    unlisted: tuple[str, ...]  # pictures that no row names, relative to the folder

    def unlisted_in_words(self) -> str:
        """That some pictures are not used, for people."""
        count = counted(len(self.unlisted), "picture")
        return f"{count} that the metadata does not list, not used: {some(self.unlisted)}"


def list_metadata(root: Path, metadata: list[Path]) -> tuple[dict[str, dict[str, list[Path]]], list[str]]:
    """The image files that `metadata` names, as {domain: {class: [paths]}} with sorted lists, and notes.

    Raises `DataError`, naming file and line, for what `read_metadata` refuses, and for a missing image.
    """
    listed = read_metadata(root, metadata)
    if listed.missing:
        where, name = listed.missing[0]
        more = len(listed.missing) - 1
        raise DataError(
            f"{where}: the image {name} is missing; restore it or remove the row"
            + (f"; {more} more: `domainfusion data verify {root} --quick` names them all" if more else "")
        )
    notes = [listed.unlisted_in_words()] if listed.unlisted else []
    if all(label.isdigit() for classes in listed.listing.values() for label in classes):
        notes.append(NUMBERS)
    return listed.listing, notes


def read_metadata(root: Path, metadata: list[Path]) -> Listed:
    """What `metadata` names of the files of `root`, and which of these are missing or not named.

    Raises `DataError`, naming file and line, for a row without a value, a path out of the folder, and an image with two
    labels or two domains.
    """
    seen: dict[Path, tuple[str, str]] = {}
    missing = []
    for path in metadata:
        for number, row in _rows(path):
            where = f"{path}, line {number}"
            name, domain = row.get("file_name"), row.get("domain")
            label = next((row[column] for column in LABEL_COLUMNS if row.get(column) not in (None, "")), None)
            for column, value in (("file_name", name), ("domain", domain), ("label", label)):
                if value in (None, ""):
                    raise DataError(f"{where}: no {column}; every row needs file_name, label and domain")
            parts = Path(str(name)).parts
            if Path(str(name)).is_absolute() or ".." in parts:
                raise DataError(
                    f"{where}: {shortened(name)} lies outside of {path.parent}; name files relative to the metadata"
                )
            image = path.parent / str(name)
            if not _is_there(image):
                missing.append((where, shortened(name)))
                continue
            pair = (str(domain), str(label))
            if seen.setdefault(image, pair) != pair:
                here, before = (shortened("/".join(labels)) for labels in (pair, seen[image]))
                raise DataError(f"{where}: {shortened(name)} is {here} here and {before} elsewhere")
    listing: dict[str, dict[str, list[Path]]] = {}
    for image, (domain, label) in seen.items():
        listing.setdefault(domain, {}).setdefault(label, []).append(image)
    for classes in listing.values():
        for images in classes.values():
            images.sort(key=lambda path: (str(path.parent), path.name))
    unlisted = tuple(
        path.relative_to(root).as_posix()
        for path in list_files(root)
        if path.suffix.lower() in (*SUFFIXES, *OTHER_PICTURES) and path not in seen
    )
    return Listed(listing, tuple(missing), unlisted)
