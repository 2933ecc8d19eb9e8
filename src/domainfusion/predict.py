"""Predictions for files, folders and patterns, as CSV, JSON or Parquet; a bad file is a row with an error."""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from domainfusion.data.images import OTHER_PICTURES, SUFFIXES
from domainfusion.errors import DataError, UsageError
from domainfusion.files import atomic_path
from domainfusion.model import Model, note
from domainfusion.streams import is_unicode

FORMATS = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found out about one file: its most probable classes with their probabilities, or an error."""

    file: str
    best: tuple[tuple[str, float], ...] = ()
    error: str = ""


def list_images(words: Sequence[str]) -> tuple[list[Path], list[Row]]:
    """The image files that files, folders (with their subfolders) and patterns name, and rows for what names none."""
    found: dict[Path, None] = {}
    bad: list[Row] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            inside = sorted(_files_below(path, bad))
            if not inside:
                bad.append(Row(printable(word), error="holds no image"))
            found.update(dict.fromkeys(inside))
        elif path.exists() or not glob.has_magic(word):
            found[path] = None
        else:
            matches = sorted(glob.glob(word, recursive=True))
            if not matches:
                bad.append(Row(printable(word), error="matches no file"))
            found.update(dict.fromkeys(Path(match) for match in matches if not Path(match).is_dir()))
    return list(found), bad


def _files_below(folder: Path, bad: list[Row]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        bad.append(Row(printable(str(error.filename)), error=f"cannot be listed ({error.strerror})"))

    for where, folders, names in os.walk(folder, onerror=refused):  # links to folders are not followed
        folders[:] = [name for name in folders if not name.startswith(".")]
        # A picture in a form that Pillow may not read is tried: a row with an error, rather than none.
        pictures = (*SUFFIXES, *OTHER_PICTURES)
        yield from (Path(where, n) for n in names if n.lower().endswith(pictures) and not n.startswith("."))


def printable(name: str) -> str:
    r"""A file name that every format can hold: bytes that are not UTF-8 as escapes.

    >>> printable("caf\udce9.png")
    'caf\\udce9.png'
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def predict_files(model: Model, paths: Sequence[Path], *, top_k: int = 1, batch_size: int = 64) -> Iterator[Row]:
    """A row for each file, in order; one that cannot be read gets a row with an error."""
    for start in range(0, len(paths), batch_size):
        part = paths[start : start + batch_size]
        rows: list[Row | None] = []
        readable: list[np.ndarray] = []
        for path in part:
            try:
                if not path.exists():
                    raise DataError(f"{path} does not exist")
                readable.append(model.pixels(path))
                rows.append(None)
            except (DataError, OSError) as error:
                rows.append(Row(printable(str(path)), error=printable(str(error))))
        found = iter(model.probabilities(readable, batch_size=batch_size) if readable else ())
        for path, row in zip(part, rows, strict=True):
            if row is not None:
                yield row
                continue
            p = next(found)
            best = np.argsort(-p, kind="stable")[:top_k]
            yield Row(printable(str(path)), tuple((model.classes[i], float(p[i])) for i in best))


def columns(top_k: int) -> list[str]:
    """The columns of a table of rows.

    >>> columns(2)
    ['file', 'label', 'confidence', 'label_2', 'confidence_2', 'error']
    """
    ranks = [
        f"{name}{f'_{rank}' if rank > 1 else ''}" for rank in range(1, top_k + 1) for name in ("label", "confidence")
    ]
    return ["file", *ranks, "error"]


def values(row: Row, top_k: int) -> list[Any]:
    """A row's values by `columns`; what is not there is None."""
    flat: list[Any] = [item for pair in row.best for item in pair]
    return [row.file, *flat, *[None] * (2 * top_k - len(flat)), row.error or None]


def choose_format(given: str | None, output: Path | None) -> str:
    """csv, json or parquet: as given, or by the ending of the output file; CSV to the terminal."""
    if given is None and output is not None and output.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {output}: the ending is not one of {', '.join(FORMATS)}; name the form by --format")
    chosen = given or (FORMATS[output.suffix.lower()] if output is not None else "csv")
    if chosen == "parquet" and output is None:
        raise UsageError("--format parquet writes a file; name it by --output")
    return chosen


def write_rows(rows: Iterator[Row], top_k: int, form: str, output: Path | None) -> None:
    """Write rows as CSV, JSON or Parquet, to a file (atomically) or to stdout (CSV row by row)."""
    if output is None:
        _write_text(rows, top_k, form, sys.stdout)
        return
    with atomic_path(output) as temporary:
        if form == "parquet":
            _write_parquet(rows, top_k, temporary)
        else:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                _write_text(rows, top_k, form, file)


def _write_text(rows: Iterator[Row], top_k: int, form: str, file: IO[str]) -> None:
    if form == "json":
        entries = [
            {"file": row.file, "predictions": [{"label": name, "confidence": round(p, 6)} for name, p in row.best]}
            | ({"error": row.error} if row.error else {})
            for row in rows
        ]
        file.write(json.dumps(entries, indent=2, ensure_ascii=not is_unicode(file)) + "\n")
        return
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns(top_k))
    for row in rows:
        writer.writerow([f"{value:.6f}" if isinstance(value, float) else value for value in values(row, top_k)])


def _write_parquet(rows: Iterator[Row], top_k: int, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = [pa.float64() if name.startswith("confidence") else pa.string() for name in columns(top_k)]
    table = list(rows)
    by_column = [[values(row, top_k)[i] for row in table] for i in range(len(types))]
    arrays = [pa.array(column, kind) for column, kind in zip(by_column, types, strict=True)]
    parquet.write_table(pa.table(dict(zip(columns(top_k), arrays, strict=True))), path)


def run_predictions(
    model: Model, words: Sequence[str], *, top_k: int, batch_size: int, form: str, output: Path | None
) -> int:
    """Predict what `words` name and write the table; the number of files that could be read."""
    paths, bad = list_images(words)
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for row in bad:
            note(f"{row.file} {row.error}")
            yield row
        bar = tqdm(total=len(paths), desc="predicting", unit="image", disable=output is None or len(paths) < 500)
        for row in predict_files(model, paths, top_k=top_k, batch_size=batch_size):
            bar.update()
            if row.error:
                note(row.error)
            read += not row.error
            yield row
        bar.close()

    write_rows(rows(), top_k, form, output)
    return read
