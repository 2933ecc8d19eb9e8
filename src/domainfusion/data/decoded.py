"""Decoded images in the cache, each with a checksum: what is damaged there is named and decoded again, never used.

Checking all of a large cache when a run opens it would read all of it. So each image is compared with its checksum when
the process reads it for the first time: that is about to be in memory anyway, and costs a fraction of an augmentation,
once. It does not depend on when a background check would have come to it what a step is trained on.
"""

from __future__ import annotations

import errno
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.errors import FileError, show_note
from domainfusion.files import atomic_path, read_json
from domainfusion.locks import locked, make_once

CACHE_FORMAT = 1  # of decoded images; it is part of their addresses and of data sets' fingerprints
Index = dict[str, Any]


def checksum(pixels: np.ndarray) -> int:
    """The CRC-32 of an array's bytes, and 2^32 more to tell it from the 0 that stands for none."""
    return zlib.crc32(np.ascontiguousarray(pixels).data) | 1 << 32


class DecodedImages(np.memmap):
    """(N, S, S, 3) uint8, memory-mapped and read-only; `images[key]` checks the images it reads for the first time.

    What comes back is a plain array. Views and copies made in another way than by `[key]` are not checked.
    """

    checks: Checks | None

    def __array_finalize__(self, obj: Any) -> None:
        super().__array_finalize__(obj)
        self.checks = None

    def __getitem__(self, key: Any) -> Any:
        if self.checks is not None:
            self.checks.look(key)
        found = super().__getitem__(key)
        return found.view(np.ndarray) if isinstance(found, np.ndarray) else found


class Checks:
    """The checksums of the images in `folder`, and which of them have been compared in this process.

    Args:
        images: (N, S, S, 3), the cache as it is on disk.
        decode: gives image `row` (S, S, 3) from where it came from.
        keys: (N,) names of the images, for messages.
    """

    def __init__(
        self, folder: Path, images: np.ndarray, sums: np.ndarray, decode: Callable[[int], np.ndarray], keys: list[str]
    ) -> None:
        self.folder, self.images, self.sums, self.decode, self.keys = folder, images, sums, decode, keys
        self.numbers = np.arange(len(images))
        self.unread = np.ones(len(images), dtype=bool)

    def look(self, key: Any) -> None:
        """Compare what `images[key]` reads and nobody has compared; decode again what differs.

        An image without a checksum, of a cache that an older version made, gets the one that it has now.

        Raises `FileError` where the cache cannot be mended, and `DataError` where the image cannot be decoded any more.
        """
        first = key[0] if isinstance(key, tuple) and key else key
        try:
            rows = self.numbers if first is None or first is Ellipsis else np.atleast_1d(self.numbers[first]).ravel()
        except IndexError:  # a mask of pixels; or no index at all, of which the array says what is wrong
            rows = self.numbers
        for row in np.unique(rows[self.unread[rows]]):
            now, kept = checksum(self.images[row]), int(self.sums[row])
            if not kept:
                self.sums[row] = now
            elif now != kept:
                self._mend(int(row))
            self.unread[row] = False

    def _mend(self, row: int) -> None:
        path = self.folder / "images.npy"
        show_note(f"{path}: image {row} ({self.keys[row]}) is damaged in the cache; decoded again")
        pixels = self.decode(row)
        try:
            array = np.load(path, mmap_mode="r+", allow_pickle=False)
            array[row] = pixels
            array.flush()
        except (OSError, ValueError) as error:
            raise FileError(
                f"{path}: image {row} ({self.keys[row]}) is damaged and cannot be written anew ({error}); delete that "
                "folder"
            ) from error
        self.sums[row] = checksum(pixels)
        if not np.array_equal(self.images[row], pixels):  # another file by now, or a disk that does not keep it
            raise FileError(f"{path}: image {row} ({self.keys[row]}) is damaged and stays so; delete that folder")


def open_decoded(
    folder: Path, build: Callable[[Path], None], decode: Callable[[Index, int], np.ndarray]
) -> tuple[Index, np.ndarray]:
    """Index and memory-mapped images of `folder`, built first where missing (one process builds, others wait).

    Args:
        build: writes `index.json`, `images.npy` (N, S, S, 3) and their checksums, `sums.npy` (N,), to a folder.
        decode: what `images[row]` is, by the index.

    Raises `FileError` where the cache cannot be written or read.
    """
    try:
        make_once(folder, (folder / "index.json").exists, build)
    except OSError as error:
        raise FileError(
            f"cannot write the decoded images to {folder.parent}: {error.strerror or error}; free some space, or put "
            "the cache elsewhere with $DOMAINFUSION_CACHE"
        ) from error
    try:
        index, plain = read_json(folder / "index.json"), np.load(folder / "images.npy", mmap_mode="r")
    except (ValueError, OSError) as error:
        raise FileError(f"the decoded images in {folder} are damaged ({error}); delete that folder") from error
    sums = _open_sums(folder, len(plain))
    if sums is None:
        return index, plain
    images = plain.view(DecodedImages)
    images.checks = Checks(folder, plain, sums, lambda row: decode(index, row), index["keys"])
    return index, images


def shorten_array(path: Path, count: int) -> None:
    """Cut the array (N, ...) in `path` (.npy) to its first `count` rows, in its place: it may be larger than memory."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": array.dtype.str, "fortran_order": False, "shape": (count, *array.shape[1:])}
    )
    begin, size = int(array.offset), int(array[0].nbytes) if len(array) else 0
    if len(header.getvalue()) != begin:  # it is padded, so that this hardly ever is
        shorter = np.array(array[:count])
        np.save(path, shorter)
        return
    del array
    with open(path, "r+b") as file:
        file.write(header.getvalue())
        file.truncate(begin + count * size)


def _open_sums(folder: Path, count: int) -> np.ndarray | None:
    """(count,) uint64 checksums, 0 where there is none yet; None where there are none and none can be kept."""
    path = folder / "sums.npy"
    for mode in ("r+", "c"):  # a cache that others own is read, and what would be written to it is not kept
        try:
            found = np.load(path, mmap_mode=mode, allow_pickle=False)
        except FileNotFoundError:  # of an older version
            break
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                continue
            show_note(f"{path} is damaged ({type(error).__name__}: {error}); the images get new checksums")
            break
        except Exception as error:  # a header that is none makes numpy raise whatever it makes of it
            show_note(f"{path} is damaged ({type(error).__name__}: {error}); the images get new checksums")
            break
        if found.shape == (count,) and found.dtype == np.uint64:
            return found
        show_note(f"{path} is damaged (it holds {found.dtype} {found.shape}); the images get new checksums")
        break
    try:
        with locked(folder.parent / f".{folder.name}.lock"), atomic_path(path) as temporary, temporary.open("wb") as to:
            np.save(to, np.zeros(count, dtype=np.uint64))
        return np.load(path, mmap_mode="r+", allow_pickle=False)
    except (FileError, OSError):
        return None
