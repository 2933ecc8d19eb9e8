"""Files of records, one line of JSON each, which grow while a run goes on and may end in half a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainfusion.errors import FileError
from domainfusion.files import make_folder, write_text
from domainfusion.locks import locked


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append `record` to `path` as one line of JSON with sorted keys."""
    make_folder(path.parent)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")
        file.flush()


def append_whole_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Append `records` to `path` as lines of JSON, flushed to disk, while no other process does.

    A last line that a kill cut short is removed first: what is appended never joins it.
    """
    with locked(path.with_name(f".{path.name}.lock")), open(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode())
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of `path`; a last line cut short by a kill is left out, a broken earlier one is an error."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read as lines of JSON: {error}") from error
    if not lines[-1]:
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"{line[:40]!r} is no record")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise FileError(f"{path}, line {number}, is not JSON: {error}") from error
        records.append(record)
    return records


def keep_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite `path`, atomically, with the records that `keep` wants: a resumed job writes the others again."""
    if path.exists():
        kept = [record for record in read_json_lines(path) if keep(record)]
        write_text(path, "".join(json.dumps(record, sort_keys=True) + "\n" for record in kept))
