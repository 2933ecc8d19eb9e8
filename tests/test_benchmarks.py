"""The benchmarks' table and their quick rows; what they measure is nothing a test may depend on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_row_can_be_measured_and_names_its_target() -> None:
    done = run("sweep_share", "--json")
    assert done.returncode == 0, done.stderr

    found = json.loads(done.stdout)
    (row,) = found["rows"]
    assert row["row"] == "sweep_share"
    assert row["ours"] == 3525  # three trials of five targets use every image of Pictograms
    assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"])
    assert found["machine"]["matmul_gflops"] > 0


def test_an_unknown_row_is_refused_with_the_rows_there_are() -> None:
    done = run("speed")
    assert done.returncode == 2
    assert "unknown row 'speed'" in done.stderr
    assert "training_step" in done.stderr
