"""Pictures that the runs of these tests were made on."""

from __future__ import annotations

from pathlib import Path

import pytest

from report.written_runs import write_pictures


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder data set of three domains, three classes and 90 images."""
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "cache"))
    return write_pictures(tmp_path / "pictures")
