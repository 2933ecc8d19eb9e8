"""Images made from others by an LDM, in one memory-mapped array that runs and processes share.

An image is there when the seconds that making it took are: they are written after its pixels. Processes share out what
is missing in blocks (`domainfusion.claims`); a killed one loses the block under way and no more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from domainfusion.claims import claim_each
from domainfusion.errors import show_note
from domainfusion.files import make_folder, reserve
from domainfusion.locks import locked

BLOCK = 64  # places


class ImageCache:
    """N images of size x size pixels for each of `count` places, in `path` (.npy) and beside it.

    Args:
        path: the array's file; its name is a hash of all that the images depend on.
        count, candidates, size: the array has the shape (count, candidates, size, size, 3).
    """

    def __init__(self, path: Path, count: int, candidates: int, size: int) -> None:
        self.path = path
        make_folder(path.parent)
        with locked(path.with_suffix(".lock")):  # one process makes the files, the others open them
            existed = path.exists() and path.stat().st_ino
            self.images = open_array(path, np.dtype(np.uint8), (count, candidates, size, size, 3))
            if path.stat().st_ino != existed:  # deleted to free space, or damaged: what was there is there no more
                path.with_suffix(".seconds.npy").unlink(missing_ok=True)
            self.seconds = open_array(path.with_suffix(".seconds.npy"), np.dtype(np.float32), (count,))

    def missing(self, places: np.ndarray) -> np.ndarray:
        """Those of `places` that have no images yet."""
        return places[self.seconds[places] == 0]

    def store(self, places: np.ndarray, images: np.ndarray, seconds: float) -> None:
        """Keep images (b, N, S, S, 3) of places (b,), which took `seconds` in all."""
        self.images[places] = images
        self.images.flush()
        self.seconds[places] = max(seconds / len(places), 1e-6)
        self.seconds.flush()

    def claim(self, places: np.ndarray) -> Iterator[np.ndarray]:
        """What is missing of `places`, part by part, each kept from other processes until the next is asked for.

        Ends when all are there, also those that other processes make. A signal to stop is honoured between denoising
        steps; the part that was begun is lost.
        """
        blocks = sorted(set((self.missing(places) // BLOCK).tolist()))
        with contextlib.closing(claim_each(self.path.with_suffix(".claims"), blocks)) as claims:
            for block in claims:
                part = self.missing(places[places // BLOCK == block])
                if len(part):
                    yield part


def open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """The array in `path`, memory-mapped to be written to; a new one of zeros where there is none of that form.

    What is damaged is set aside, and said so.
    """
    if path.exists():
        try:
            found = np.load(path, mmap_mode="r+", allow_pickle=False)
            if found.shape == shape and found.dtype == dtype:
                return found
            reason = f"it holds {found.dtype} {found.shape}, not {dtype} {shape}"
        except Exception as error:  # a header that is none makes numpy raise whatever it makes of it
            reason = f"{type(error).__name__}: {error}"
        path.replace(path.with_suffix(".damaged"))
        show_note(f"{path} is damaged ({reason}); it was set aside, and is made anew")
    work = path.with_name(f".{path.name}.new")  # under its own name only when it is complete; the caller has the lock
    array = np.lib.format.open_memmap(work, "w+", dtype, shape)
    reserve(work, array.offset + array.nbytes)
    array.flush()
    work.replace(path)
    return array
