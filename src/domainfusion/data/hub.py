"""Data sets of the Hugging Face hub, written out as a folder `domain/class/image` in the cache."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from domainfusion.data.imagefolder import LABEL_COLUMNS
from domainfusion.data.images import SUFFIXES
from domainfusion.errors import DataError, UsageError, show_note
from domainfusion.files import cache_folder, hash_of
from domainfusion.interruption import check
from domainfusion.locks import make_once

HUB_PREFIX = "hf://"
FORMAT = 2  # raised when what is written of a data set changes


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
    address = hash_of([FORMAT, short, {split: part._fingerprint for split, part in splits.items()}])
    folder = cache_folder() / "hub" / address / short

    def write(work: Path) -> None:
        spelled: dict[tuple[str, str], str] = {}
        for split, part in splits.items():
            _write_split(name, split, part, work, spelled)

    make_once(folder, folder.exists, write)
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
