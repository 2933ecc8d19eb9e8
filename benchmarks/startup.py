"""Rows about starting: the help text and the import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.timing import row, seconds_of


def startup() -> list[dict[str, Any]]:
    """Seconds until the help text is there, and until the package is imported."""
    rows = []
    for what, words in (
        ("domainfusion --help", ["-m", "domainfusion", "--help"]),
        ("import domainfusion", ["-c", "import domainfusion"]),
    ):

        def call(words: list[str] = words) -> None:
            subprocess.run([sys.executable, *words], check=True, capture_output=True)

        call()
        mine = min(seconds_of(call) for _ in range(5))
        rows.append(
            row("startup", what, "-", ratio=mine, target="< 0.3 s", reached=mine < 0.3, ours=mine, theirs=0.0, unit="s")
        )
    return rows
