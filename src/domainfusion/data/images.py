"""Image files as pixels: whatever the format, (size, size, 3) uint8, first frame, upright, transparency on white."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from domainfusion.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# Pictures that no data set counts among its images; whether Pillow reads them depends on its plugins.
OTHER_PICTURES = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg")
DECODER = 2  # raised where a file comes out with other pixels: decoded images in caches are then made again
PASSING = {
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT,
    errno.EBUSY, errno.EAGAIN, errno.ENODEV, errno.ENXIO,
}  # fmt: skip
DEPTHS = (8, 10, 12, 14, 16)  # bits of a grey value that cameras and detectors have


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


def may_pass(error: BaseException | None) -> bool:
    """Whether what kept an image from being read says nothing of the image: no memory, no rights, a disk's error."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in PASSING)


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
    """Grey values (H, W) as uint8: black is 0 (or the least, if negative), white the end of their range.

    The range of floats up to 1 is [0, 1]. That of others is the smallest of `DEPTHS` bits that holds them: a file of 16
    bits does not say how many of them its camera used. By its format's range 12 bits would come out almost black; by
    the largest value of each image, two exposures of one camera would look alike. Beyond 16 bits the largest is white.

    Raises ValueError for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    least = min(values.min(), 0.0)
    largest = values.max() - least
    if mode == "F" and values.max() <= 1:
        top = max(largest, 1.0)
    else:
        top = next((white for bits in DEPTHS if largest <= (white := 2.0**bits - 1)), largest)
    return ((values - least) / top * 255).round().astype(np.uint8)
