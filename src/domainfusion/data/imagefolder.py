"""Data sets in the Hugging Face *imagefolder* form: images, and `metadata.csv` or `metadata.jsonl` with their domains.

The metadata has a row for each image: `file_name` (relative to the metadata file), `label` or `class`, and `domain`.
Metadata files may lie in the folder itself and in the folders directly below it (the splits `train`, `test`, ...),
whose images are taken together. Data sets of the Hugging Face hub are written out as a folder `domain/class/image`
in the cache first.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from domainfusion.data.findings import number as counted
from domainfusion.data.findings import some
from domainfusion.data.images import OTHER_PICTURES, SUFFIXES
from domainfusion.data.listing import NUMBERS, is_file, is_listed, list_files, list_folders
from domainfusion.errors import DataError, Interrupted, UsageError, shortened, show_note
from domainfusion.files import BEGINS_ANEW, cache_folder, hash_of, make_folder, open_to_all, remove_leftovers
from domainfusion.interruption import check, stoppable
from domainfusion.locks import locked

METADATA = ("metadata.csv", "metadata.jsonl")
LABEL_COLUMNS = ("label", "class")
COLUMNS = ("file_name", "domain", *LABEL_COLUMNS)
SEPARATORS = (",", ";", "\t")  # spreadsheets write what their country's decimal sign leaves free
HUB_PREFIX = "hf://"

HUB_FORMAT = 2  # raised when what is written of a data set of the hub changes


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


def materialise_hub(name: str) -> Path:
    """The data set `hf://OWNER/NAME[@REVISION]` as a folder `domain/class/image` in the cache, loaded once.

    It needs a column of images, one called `label` or `class`, and one called `domain`; all splits are taken together.

    Raises:
        UsageError: the package `datasets` is missing (extra `hub`), or `name` is malformed.
        DataError: the data set cannot be loaded, or lacks a column.
    """
    found = re.fullmatch(r"hf://([\w.-]+/)?([\w.-]+)(@[\w./-]+)?", name)
    if not found:
        raise UsageError(f"{name} is no data set of the hub: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{name} needs the package datasets: pip install 'domainfusion[hub]' (or give a folder on disk)"
        ) from error
    owner, short, revision = found[1] or "", found[2], (found[3] or "@")[1:] or None
    try:
        splits = datasets.load_dataset(owner + short, revision=revision)
    except Exception as error:  # network, permissions, unknown names, formats: the library raises whatever they make it
        raise DataError(f"{name} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    address = hash_of([HUB_FORMAT, short, {split: part._fingerprint for split, part in splits.items()}])
    folder = cache_folder() / "hub" / address / short
    with locked(folder.parent.parent / f".{address}.lock"):
        if not folder.exists():
            make_folder(folder.parent)
            remove_leftovers(folder.parent, f".{short}.")
            work = Path(tempfile.mkdtemp(prefix=f".{short}.", dir=folder.parent))
            try:
                spelled: dict[tuple[str, str], str] = {}
                with stoppable():
                    for split, part in splits.items():
                        _write_split(name, split, part, work, spelled)
                open_to_all(work)
                work.rename(folder)
            except Interrupted as error:
                raise Interrupted(error.number, BEGINS_ANEW) from None
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return folder


def _write_split(name: str, split: str, part: Any, folder: Path, spelled: dict[tuple[str, str], str]) -> None:
    """Write the images of one split below `folder`, each with the bytes that the data set has where its form is read.

    Args:
        spelled: {(column, name of a folder): what it is called in the data set}, of all splits so far.
    """
    import datasets

    images = [column for column, kind in part.features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column in LABEL_COLUMNS if column in part.features]
    for what, columns in (("images", images), ("label or class", labels)):
        if not columns:
            raise DataError(f"{name}, split {split}, has no column of {what}; it has: {', '.join(part.features)}")
    if "domain" not in part.features:
        raise DataError(f"{name}, split {split}, has no column domain; it has: {', '.join(part.features)}")
    part = part.cast_column(images[0], datasets.Image(decode=False))
    unlabelled = 0
    for number, row in enumerate(tqdm(part, desc=f"writing {split}", unit="image", disable=len(part) < 500)):
        check()
        cell = row[images[0]]
        if row[labels[0]] in (None, -1) or cell is None:  # -1: the hub's way to say so
            unlabelled += 1
            continue
        names = []
        for column in ("domain", labels[0]):
            value, name_of_value = _value_name(
                part.features[column], row[column], f"{name}, split {split}, row {number}"
            )
            if spelled.setdefault((column, name_of_value), value) != value:
                raise DataError(
                    f"{name}: {spelled[column, name_of_value]!r} and {value!r} of the column {column} would be one "
                    f"folder, {name_of_value!r}; rename one of them"
                )
            names.append(name_of_value)
        data = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        suffix = _suffix(data)
        if suffix not in SUFFIXES:
            try:
                data, suffix = _as_png(data), ".png"
            except Exception as error:  # as above
                raise DataError(f"{name}, split {split}, row {number}: no image that can be read ({error})") from error
        target = folder / names[0] / names[1]
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{split}-{number:07d}{suffix}").write_bytes(data)
    if unlabelled:
        show_note(f"{name}, split {split}: {unlabelled} of {len(part)} rows have no label or no image; left out")


def _value_name(kind: Any, value: Any, where: str) -> tuple[str, str]:
    """A label or domain in words, and as the name of a folder."""
    if hasattr(kind, "int2str") and isinstance(value, int):
        try:
            value = kind.int2str(value)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
    name = str(value).replace("/", "_").strip(". ")
    if not name or value is None:
        raise DataError(f"{where} has no label or no domain")
    return str(value), name


def _suffix(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            # A second frame (phones, cameras) makes a JPEG an MPO to Pillow.
            return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(image.format or "", f".{image.format}".lower())
    except Exception:  # Pillow's plugins raise whatever their formats make them
        return ".png"  # whoever decodes it will say what is wrong


def _as_png(data: bytes) -> bytes:
    """An image in a form that image folders do not have, as a PNG of its first frame."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        whole = upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else upright.convert("RGB")
        whole.save(buffer, "PNG")
    return buffer.getvalue()
