"""The cache of candidates that runs share: one file for all images of a data set under one recipe.

The candidates of a *stored* image depend on the image, its label, the LDM and the options, and on nothing that a
classifier learns: every run of a benchmark (targets, trials, algorithms) can use the same ones. They are kept in one
memory-mapped array per (data set, LDM, options, generation, style words), a row per image, filled as rows are asked
for. Each row has a key of what it shows and how it is called, by which other data sets (one that has grown, a part, one
with some labels mended) take over what this one has of their images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from domainfusion.claims import claimed
from domainfusion.config import GenerateConfig
from domainfusion.config_files import plain_values
from domainfusion.data.content import image_keys, row_keys
from domainfusion.data.decoded import checksum
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import show_note
from domainfusion.files import cache_folder, hash_of, make_folder
from domainfusion.fusion.image_cache import open_array
from domainfusion.interruption import check
from domainfusion.locks import locked, open_lock

AT_ONCE = 256  # images in memory while they are taken over
# Raised when the sampler itself changes, so that candidates of an older one are not taken for its own.
CACHE_FORMAT = 6
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
    recipe = hash_of([CACHE_FORMAT, fingerprint, shaping, number, styles, dataset.size])
    return cache_folder() / "candidates" / f"{recipe}-{hash_of([dataset.fingerprint, dataset.words()])}.npy"


def candidate_keys(dataset: MultiDomainDataset, rows: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
    """(n,) int64 keys of rows (n,): equal where an image and its class in words are, whatever the data set.

    Args:
        images: (n, S, S, 3), those of `rows`, where they have been read.
    """
    words = [dataset.words()[label] for label in dataset.labels[rows]]
    return row_keys(dataset.images, rows, words) if images is None else image_keys(images, words)


def cached_rows(path: Path, count: int) -> np.ndarray:
    """(count,) bool: which images of a data set have their candidates in the cache file `path` (read, never made)."""
    done = path.with_suffix(".done.npy")
    none = np.zeros(count, dtype=bool)
    try:
        found = np.load(done, allow_pickle=False) if path.exists() and done.exists() else none
    except Exception:  # damaged; whoever fills it says so
        return none
    return found if found.shape == (count,) and found.dtype == bool else none


def cached_elsewhere(
    path: Path, dataset: MultiDomainDataset, rows: np.ndarray
) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """Files of other data sets that have, by the recipe of `path`, candidates of `rows` (n,): file, its rows, ours."""
    recipe, keys = path.stem.split("-")[0], np.zeros(0, dtype=np.int64)
    for other in sorted(path.parent.glob(f"{recipe}-*.keys.npy")) if len(rows) else ():
        file = other.with_name(other.name.replace(".keys", ""))
        if file == path:
            continue
        try:
            known = np.load(other, mmap_mode="r", allow_pickle=False)
        except Exception:  # damaged; whoever fills it says so
            continue
        there = np.flatnonzero(cached_rows(file, len(known)))
        if not len(there):
            continue
        if not len(keys):
            keys = candidate_keys(dataset, rows)
        found, first = np.unique(known[there], return_index=True)
        at = np.searchsorted(found, keys).clip(max=len(found) - 1)
        fitting = found[at] == keys
        if fitting.any():
            yield file, there[first[at[fitting]]], rows[fitting]
            rows, keys = rows[~fitting], keys[~fitting]
            if not len(rows):
                return


def cached_anywhere(path: Path, dataset: MultiDomainDataset, rows: np.ndarray) -> np.ndarray:
    """(n,) bool: which of rows (n,) need no making, being in the cache file `path` or in another data set's."""
    found = cached_rows(path, len(dataset))[rows]
    others = [ours for _, _, ours in cached_elsewhere(path, dataset, rows[~found])]
    return found | np.isin(rows, np.concatenate(others)) if others else found


class CandidateCache:
    """Candidates of all images of a data set under one recipe; `done[row]` says which are there.

    `sums[row]` is their CRC-32, and 2^32 more to tell it from none (of candidates that an older version kept);
    `keys[row]` says what they are of (`candidate_keys`).

    Args:
        path: what `cache_path` says for the recipe.
    """

    def __init__(self, path: Path, dataset: MultiDomainDataset, config: GenerateConfig) -> None:
        self.path, self.dataset = path, dataset
        folder, key = make_folder(self.path.parent), self.path.stem
        shape = (len(dataset), config.candidates, dataset.size, dataset.size, 3)
        with locked(folder / f".{key}.lock"):  # one process makes the two files, the others open them
            existed = self.path.exists() and self.path.stat().st_ino
            self.images = open_array(self.path, np.dtype(np.uint8), shape)
            if self.path.stat().st_ino != existed:  # deleted to free space, or damaged: nothing is done any more
                for suffix in (".done.npy", ".sums.npy", ".keys.npy"):
                    self.path.with_suffix(suffix).unlink(missing_ok=True)
            self.done = open_array(self.path.with_suffix(".done.npy"), np.dtype(np.bool_), shape[:1])
            self.sums = open_array(self.path.with_suffix(".sums.npy"), np.dtype(np.uint64), shape[:1])
            self.keys = open_array(self.path.with_suffix(".keys.npy"), np.dtype(np.int64), shape[:1])

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
        nameless = rows[found & (self.keys[rows] == 0)]  # their file was damaged or cleared away
        if len(nameless):
            self.keys[nameless] = candidate_keys(self.dataset, nameless)
        return found

    def store(self, rows: np.ndarray, candidates: np.ndarray, keys: np.ndarray) -> None:
        """Keep candidates (b, N, S, S, 3) of rows (b,) with their `candidate_keys`; a row counts as done only after its
        pixels are on disk."""
        self.images[rows] = candidates
        self.images.flush()
        self.sums[rows] = [checksum(item) for item in candidates]
        self.sums.flush()
        self.keys[rows] = keys
        self.keys.flush()
        self.done[rows] = True
        self.done.flush()

    def take_over(self, rows: np.ndarray) -> int:
        """Copy what other data sets have of `rows` that are missing here; how many images that were.

        What is damaged there, and what another process is making of them here, is left. Not to be called while this
        process has claims in the file of this cache: they would end with these.
        """
        taken = 0
        for file, theirs, ours in cached_elsewhere(self.path, self.dataset, rows[~self.done[rows]]):
            try:
                images = np.load(file, mmap_mode="r", allow_pickle=False)
                sums, keys = (
                    np.load(file.with_suffix(f".{name}.npy"), allow_pickle=False) for name in ("sums", "keys")
                )
            except (OSError, ValueError):  # cleared away a moment ago, or damaged
                continue
            if images.shape[1:] != self.images.shape[1:] or {sums.shape, keys.shape} != {images.shape[:1]}:
                continue
            with open_lock(self.path.with_suffix(".claims")) as descriptor:
                for start in range(0, len(ours), AT_ONCE):
                    check()
                    here, there = ours[start : start + AT_ONCE], theirs[start : start + AT_ONCE]
                    found = np.array(images[there])
                    whole = np.array([checksum(item) for item in found], dtype=np.uint64) == sums[there]
                    with claimed(descriptor, here) as free:
                        free &= whole & ~self.done[here]  # not stored by another a moment ago
                        if free.any():
                            self.store(here[free], found[free], keys[there][free])
                            taken += int(free.sum())
        return taken
