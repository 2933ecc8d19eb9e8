from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domainfusion.data import folders
from domainfusion.data.images import read_image


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths of the images decoded so far."""
    paths: list[Path] = []

    def recording(path: Path, size: int) -> np.ndarray:
        paths.append(path)
        return read_image(path, size)

    monkeypatch.setattr(folders, "read_image", recording)
    return paths
