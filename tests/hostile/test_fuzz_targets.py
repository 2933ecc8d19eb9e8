"""The targets of `python -m fuzz`: their seeds are all right, and a reader that is not is reported."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz import properties
from fuzz.__main__ import text
from fuzz.minimising import main as minimise_file
from fuzz.minimising import minimise
from fuzz.running import _figures, _quoted, fuzz, memory_limit
from fuzz.targets import TARGETS, Target
from fuzz.worker import attempt, keep, resolve

from domainfusion.errors import DomainFusionError, FileError

ROOT = Path(__file__).parents[2]

# A reader with a bug that a plain file does not show, and its property.
PLANTED = """
import contextlib
import json
from domainfusion.errors import FileError

def read(path):
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is no JSON") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} is no object")
    return found["name"]

def check(content, folder):
    (folder / "x").write_bytes(content)
    with contextlib.suppress(FileError):
        read(folder / "x")

def seeds():
    return [b'{"name": 1, "other": [1, 2, 3]}', b"[]", b"{"]

def words():
    return ["name", "nam"]
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    return Target("planted:check", "planted:seeds", "planted:words", ("planted",))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_do_what_is_permitted(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    found = resolve(target.seeds)()
    assert len(found) > 3
    assert max(map(len, found)) <= 2 * target.longest
    for number, content in enumerate(found):
        folder = tmp_path / str(number)
        folder.mkdir()
        resolve(target.check)(content, folder)


@pytest.mark.parametrize(
    ("name", "reader", "content"),
    [("options", "load_toml", b"steps = 3"), ("records", "read_json_lines", b"{}\n"), ("image", "read_image", b""),
     ("state", "load_state", b"x"), ("model", "load", b"\1{}"), ("archive", "list_members", b"PK")],
)  # fmt: skip
def test_a_property_lets_out_what_no_reader_may_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reader: str, content: bytes
) -> None:
    def broken(*words: object, **options: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(properties, reader, broken)
    with pytest.raises(KeyError, match="planted"):
        getattr(properties, name)(content, tmp_path)


@pytest.mark.parametrize("message", ["", " ", "damaged", "a/b " + "x" * 2000])
def test_a_message_is_a_short_line_that_names_the_file(message: str) -> None:
    with pytest.raises(AssertionError), properties.permitted(FileError, naming="a/b"):
        raise FileError(message)
    with properties.permitted(DomainFusionError, naming="a" * 2000):
        raise FileError(f"{'a' * 2000} is damaged")


def test_what_fails_is_kept_once_for_each_place(tmp_path: Path) -> None:
    def check(content: bytes, folder: Path) -> None:
        if content == b"a":
            raise KeyError("first")
        if content:
            raise KeyError(content)

    assert attempt(check, b"") is None
    kept = []
    for content in (b"a", b"b", b"c"):
        error = attempt(check, content)
        assert error is not None
        kept.append(keep(tmp_path, content, error))
    assert kept[0] is not None
    assert kept[1] is not None
    assert kept[2] is None
    assert kept[1].read_bytes() == b"b"
    about = kept[1].with_suffix(".txt").read_text()
    assert about.startswith("KeyError at test_fuzz_targets.py:")
    assert "raise KeyError(content)" in about


def test_a_file_that_fails_is_minimised(tmp_path: Path, planted: Target) -> None:
    assert minimise(b"12ab34cd56", lambda part: b"a" in part and b"d" in part) == b"ad"
    assert minimise(b"xyz", lambda part: True) == b""
    (tmp_path / "crash").write_bytes(b'  {"nam": 1, "other": [1, 2, 3]}\n')
    assert minimise_file([planted.check, str(tmp_path / "crash"), "20"]) == 0
    assert (tmp_path / "crash").read_bytes() == b"{}"
    (tmp_path / "crash").write_bytes(b"[]")
    assert minimise_file([planted.check, str(tmp_path / "crash"), "20"]) == 1


def test_figures_and_words_are_in_libfuzzers_form() -> None:
    log = "#2\tINITED cov: 10 ft: 20 corp: 1\n#99\tDONE   cov: 12 ft: 34 corp: 2\n"
    assert _figures(log) == (99, 12, 34)
    assert _figures(log + "stat::number_of_executed_units: 101\n") == (101, 12, 34)
    assert _figures("") == (0, 0, 0)
    assert _quoted('a"b') == 'a\\"b'
    assert _quoted("\\x01\\u") == "\\x01\\\\u"


def test_a_planted_bug_is_found_minimised_and_reported(tmp_path: Path, planted: Target) -> None:
    pytest.importorskip("atheris")
    found = fuzz(planted, tmp_path / "out", 4)
    assert found.executions > 100
    assert found.edges > 0
    assert found.problem == ""
    (crash,) = found.crashes
    assert crash.name.startswith("KeyError-")
    assert crash.read_bytes() == b"{}"
    table = text({"planted": found})
    assert str(crash) in table
    assert "KeyError at planted.py:" in table


def test_a_large_process_fuzzes_within_the_targets_own_memory(tmp_path: Path, planted: Target) -> None:
    """A child's peak begins at its parent's."""
    pytest.importorskip("atheris")
    ballast = np.ones(600 << 20, np.uint8)
    assert memory_limit(dataclasses.replace(planted, megabytes=400)) >= 800
    assert memory_limit(dataclasses.replace(planted, megabytes=2**20)) == 2**20
    found = fuzz(dataclasses.replace(planted, megabytes=400), tmp_path / "out", 2)
    del ballast
    assert found.problem == ""
    assert len(found.crashes) == 1


def test_an_unknown_target_is_refused_with_the_targets_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "images"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown target 'images'" in done.stderr
    assert "archive" in done.stderr
