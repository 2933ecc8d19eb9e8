"""Pictures on disk, as tests look at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of the picture at `path`."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
