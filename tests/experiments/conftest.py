from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from searching import DOMAINS


@pytest.fixture(scope="module")
def four_domains(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with the domains `DOMAINS`."""
    return write_images(tmp_path_factory.mktemp("data") / "images", domains=DOMAINS, count=6)
