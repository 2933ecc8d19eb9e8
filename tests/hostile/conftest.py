"""The real commands on bad input: what they say, how they end, and that what was there before is still there."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from domainfusion.cli import run

OPTIONS = ("--algorithm", "erm", "--steps", "2", "--evaluations", "1", "--batch-size", "2", "--backbone",
           "test_resnet", "--precision", "float32", "--device", "cpu", "--data.size", "32")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Said:
    """Exit code, output and messages of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`command(word, ...)`: run `domainfusion` in this process; a failure is told in the last line, by no traceback."""

    def call(*words: object) -> Said:
        capfd.readouterr()
        code = run([str(word) for word in words])
        captured = capfd.readouterr()
        lines = [
            line for line in captured.err.replace("\r", "\n").splitlines() if line.strip() and "step/s" not in line
        ]
        assert "Traceback" not in captured.err
        if code and lines:
            assert lines[-1].startswith(("domainfusion: ", "note: ")), captured.err
        return Said(code, captured.out, "\n".join(lines))

    return call


@pytest.fixture
def train(command: Callable[..., Said], tmp_path: Path) -> Callable[..., Said]:
    """`train(data, ...)`: a very short run with `sketch` held out, in `tmp_path / "run"`."""

    def call(data: Path, *words: object, output: str = "run", target: str = "sketch") -> Said:
        pairs = [pair for pair in zip(OPTIONS[::2], OPTIONS[1::2], strict=True) if pair[0] not in words]
        options = [word for pair in pairs for word in pair]
        return command("train", data, *options, "--target", target, "--output", tmp_path / output, *words)

    return call


@pytest.fixture
def untouched() -> Callable[[Path], object]:
    """`before = untouched(folder)`, and later `untouched(folder) == before`: no file has changed."""

    def look(folder: Path) -> object:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]

    return look
