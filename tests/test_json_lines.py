"""Files of records: what a kill cut short is left out, what is broken is named, and no line is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainfusion import json_lines
from domainfusion.errors import FileError
from domainfusion.json_lines import append_json_line, append_whole_lines, read_json_lines


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers(), max_size=3), max_size=4), st.data())
def test_a_last_line_cut_short_anywhere_is_left_out(
    tmp_path: Path, records: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path / "records.jsonl"
    path.unlink(missing_ok=True)
    for record in records:
        append_json_line(path, record)
    assert read_json_lines(path) == records
    if records:
        whole = path.read_bytes()
        start = whole[:-1].rfind(b"\n") + 1  # of the last line
        path.write_bytes(whole[: data.draw(st.integers(start, len(whole) - 2))])
        assert read_json_lines(path) == records[:-1]


def test_lines_have_sorted_keys(tmp_path: Path) -> None:
    append_json_line(tmp_path / "records.jsonl", {"step": 1, "loss": 0.5})
    assert (tmp_path / "records.jsonl").read_text() == '{"loss": 0.5, "step": 1}\n'


def test_a_broken_middle_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(FileError, match=r"records\.jsonl, line 2, is not JSON"):
        read_json_lines(path)


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "absent.jsonl") == []


def test_writers_at_the_same_time_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"cut')

    def write(writer: int) -> None:
        for number in range(25):
            append_whole_lines(path, [{"writer": writer, "number": number, "long": "x" * 5000}])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    records = read_json_lines(path)
    assert records[0] == {"a": 1}
    assert {(r["writer"], r["number"]) for r in records[1:]} == {(w, n) for w in range(4) for n in range(25)}
    assert len(records) == 101
    assert path.read_text().endswith("\n")


def test_whole_lines_are_on_disk_before_another_writer_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "lines.jsonl", []
    locked, fsync = json_lines.locked, os.fsync

    @contextlib.contextmanager
    def watched(lock: Path) -> Iterator[None]:
        with locked(lock):
            seen.append(("locked", path.exists() and path.read_text()))
            yield
            seen.append(("free", path.read_text()))

    def flush(descriptor: int) -> None:
        seen.append(("flushed", path.read_text()))
        fsync(descriptor)

    monkeypatch.setattr(json_lines, "locked", watched)
    monkeypatch.setattr(os, "fsync", flush)
    append_whole_lines(path, [{"a": 1}, {"a": 2}])
    whole = '{"a": 1}\n{"a": 2}\n'
    assert seen == [("locked", False), ("flushed", whole), ("free", whole)]
