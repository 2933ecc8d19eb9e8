"""Output to a terminal or a file whose encoding lacks characters: nothing is lost, and nothing ends in a traceback."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from domainfusion import cli
from domainfusion.streams import take_any_text


def narrow(monkeypatch: pytest.MonkeyPatch, name: str, encoding: str, errors: str = "strict") -> io.BytesIO:
    """What is written to `sys.stdout` or `sys.stderr` from now on, in another encoding."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding, errors=errors, write_through=True))
    return written


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_tables_are_drawn_in_any_encoding(encoding: str, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = narrow(monkeypatch, "stdout", encoding)
    assert cli.run(["evaluate", str(trained_run)]) == 0
    lines = written.getvalue().decode(encoding).splitlines()
    assert lines[0].split() == ["domain", "images", "accuracy"]
    assert set(lines[1]) - {" "} == {"─" if encoding == "utf-8" else "-"}
    assert len(lines[1]) == len(lines[0])


@pytest.mark.parametrize("form", ["csv", "json"])
def test_any_name_of_a_file_is_told(
    form: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "Фото 📷.png"
    Image.new("RGB", (20, 20)).save(path)
    written = narrow(monkeypatch, "stdout", "latin-1")
    assert cli.run(["predict", str(trained_run), str(path), "--format", form]) == 0
    text = written.getvalue().decode("latin-1")
    if form == "json":
        assert json.loads(text)[0]["file"] == str(path)
    else:
        assert text.splitlines()[1].startswith(f"{tmp_path}/\\u0424\\u043e\\u0442\\u043e \\U0001f4f7.png,")


def test_errors_are_told_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    written = narrow(monkeypatch, "stderr", "ascii", "backslashreplace")
    assert cli.run(["list", "√ 📷 …"]) == 2
    assert written.getvalue().decode("ascii").startswith("domainfusion: unknown list 'sqrt \\U0001f4f7 ...'")


@pytest.mark.parametrize(
    ("encoding", "errors", "text", "written"),
    [
        ("ascii", "strict", "87.5 ± 0.3 ──", b"87.5 +/- 0.3 --"),
        ("ascii", "surrogateescape", "─\udcff", b"-\\udcff"),  # LC_ALL=C
        ("utf-8", "surrogateescape", "─\udcff", b"\xe2\x94\x80\xff"),
        ("utf-8", "strict", "─\udcff", b"\xe2\x94\x80\\udcff"),
        ("ascii", "replace", "±", b"?"),  # as the user wants it
    ],
)
def test_what_an_encoding_lacks_is_ascii(
    encoding: str, errors: str, text: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = narrow(monkeypatch, "stdout", encoding, errors)
    take_any_text()
    print(text, end="")
    assert stream.getvalue() == written
