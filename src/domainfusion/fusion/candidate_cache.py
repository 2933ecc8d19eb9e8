"""The cache of candidates that runs share: one file for all images of a data set under one recipe.

The candidates of a *stored* image depend on the image, its label, the LDM and the options, and on nothing that a
classifier learns: every run of a benchmark (targets, trials, algorithms) can use the same ones. They are kept in one
memory-mapped array per (data set, LDM, options, generation, style words), a row per image, filled as rows are asked
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from domainfusion.config import GenerateConfig
from domainfusion.config_files import plain_values
from domainfusion.data.decoded import checksum
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import show_note
from domainfusion.files import cache_folder, hash_of, make_folder
from domainfusion.fusion.image_cache import open_array
from domainfusion.locks import locked

# Raised when the sampler itself changes, so that candidates of an older one are not taken for its own.
CACHE_FORMAT = 5
# Options that decide what candidates look like; the others decide what is done with them.
SHAPING = ("seed", "candidates", "strength", "steps", "guidance", "guidance_interval", "solver", "spacing",
           "style_words", "template", "plain_template", "image_size")  # fmt: skip


def cache_path(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, config: GenerateConfig, number: int, styles: tuple[str, ...]
) -> Path:
    """The file for the candidates of all images of a data set under one recipe."""
    return cache_paths(ldm, dataset, config, [number], styles)[0]


def cache_paths(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, config: GenerateConfig, numbers: Sequence[int],
    styles: tuple[str, ...],
) -> list[Path]:  # fmt: skip
    """`cache_path` of several generations; the LDM's weights are read once for all of them."""
    fingerprint = ldm.fingerprint() if numbers else ""
    return [cache_file(dataset, config, number, styles, fingerprint) for number in numbers]


def cache_file(
    dataset: MultiDomainDataset, config: GenerateConfig, number: int, styles: tuple[str, ...], fingerprint: str
) -> Path:
    """`cache_path` for an LDM of which the fingerprint is known."""
    values = plain_values(config)
    shaping = {k: values[k] for k in SHAPING}
    key = hash_of([CACHE_FORMAT, dataset.fingerprint, dataset.words(), fingerprint, shaping, number, styles])
    return cache_folder() / "candidates" / f"{key}.npy"


def cached_rows(path: Path, count: int) -> np.ndarray:
    """(count,) bool: which images of a data set have their candidates in the cache file `path` (read, never made)."""
    done = path.with_suffix(".done.npy")
    none = np.zeros(count, dtype=bool)
    try:
        found = np.load(done, allow_pickle=False) if path.exists() and done.exists() else none
    except Exception:  # damaged; whoever fills it says so
        return none
    return found if found.shape == (count,) and found.dtype == bool else none


class CandidateCache:
    """Candidates of all images of a data set under one recipe; `done[row]` says which are there.

    `sums[row]` is their CRC-32, and 2^32 more to tell it from none (of candidates that an older version kept).

    Args:
        path: what `cache_path` says for the recipe.
    """

    def __init__(self, path: Path, dataset: MultiDomainDataset, config: GenerateConfig) -> None:
        self.path = path
        folder, key = make_folder(self.path.parent), self.path.stem
        shape = (len(dataset), config.candidates, dataset.size, dataset.size, 3)
        with locked(folder / f".{key}.lock"):  # one process makes the two files, the others open them
            existed = self.path.exists() and self.path.stat().st_ino
            self.images = open_array(self.path, np.dtype(np.uint8), shape)
            if self.path.stat().st_ino != existed:  # deleted to free space, or damaged: nothing is done any more
                for suffix in (".done.npy", ".sums.npy"):
                    self.path.with_suffix(suffix).unlink(missing_ok=True)
            self.done = open_array(self.path.with_suffix(".done.npy"), np.dtype(np.bool_), shape[:1])
            self.sums = open_array(self.path.with_suffix(".sums.npy"), np.dtype(np.uint64), shape[:1])

    def intact(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: which of rows (n,) are there, and as they were kept; damaged ones are named and taken out."""
        found = np.array(self.done[rows])
        for i in np.flatnonzero(found):
            row = rows[i]
            kept, now = int(self.sums[row]), checksum(self.images[row])
            if not kept:
                self.sums[row] = now
            elif kept != now:
                found[i] = self.done[row] = False
                show_note(f"{self.path}: the candidates of image {row} are damaged; made again")
        return found

    def store(self, rows: np.ndarray, candidates: np.ndarray) -> None:
        """Keep candidates (b, N, S, S, 3) of rows (b,); a row counts as done only after its pixels are on disk."""
        self.images[rows] = candidates
        self.images.flush()
        self.sums[rows] = [checksum(item) for item in candidates]
        self.sums.flush()
        self.done[rows] = True
        self.done.flush()
