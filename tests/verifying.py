"""A folder verified in full, and the findings of it."""

from __future__ import annotations

from pathlib import Path

from domainfusion.data.benchmarks import Benchmark
from domainfusion.data.findings import Finding, Verification
from domainfusion.data.verification import verify_folder


def check(root: Path, benchmark: Benchmark | None = None, *, quick: bool = False) -> Verification:
    return verify_folder(root, benchmark, quick=quick, workers=2, progress=False)


def kinds(state: Verification) -> set[str]:
    return {finding.kind for finding in state.problems}


def only(state: Verification, kind: str) -> Finding:
    (found,) = [finding for finding in [*state.problems, *state.notes] if finding.kind == kind]
    return found
