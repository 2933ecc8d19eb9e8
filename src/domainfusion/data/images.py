"""Image files as pixels: whatever the format, (size, size, 3) uint8, first frame, upright, transparency on white."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from domainfusion.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# Pictures that no data set counts among its images; whether Pillow reads them depends on its plugins.
OTHER_PICTURES = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg")


def read_image(path: Path, size: int) -> np.ndarray:
    """The image at `path` as (size, size, 3) uint8: first frame, upright, transparency on white, RGB.

    Raises `DataError` naming the file where it cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks about odd tags, which name no file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.format == "JPEG":  # decode at a fraction of the size: much faster for photographs
                    image.draft("RGB", (2 * size, 2 * size))
                return prepare_image(image, size)
    except Exception as error:  # Pillow's plugins raise whatever their formats make them
        raise DataError(f"{path} cannot be read as an image ({why_unreadable(path, error)})") from error


def why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with the image at `path`, which raised `error`."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist"
    return f"{type(error).__name__}: {error}"


def prepare_image(image: Image.Image, size: int) -> np.ndarray:
    """An opened image as training sees it: (size, size, 3) uint8, upright, transparency on white, RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits of grey: scale, not clip
        image = Image.fromarray(_eight_bits(np.asarray(image, dtype=np.float64), image.mode))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values (H, W) as uint8: integers up to 255 and floats in [0, 1] by their own range, others scaled to it.

    Raises ValueError for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    least = min(values.min(), 0.0)
    top = 1.0 if mode == "F" and values.max() <= 1 else 255.0
    return ((values - least) / max(values.max() - least, top) * 255).round().astype(np.uint8)
