"""Candidates of images, made by the LDM or taken from the cache that runs share.

The candidates of a *stored* image depend on the image, its label, the LDM and the options, and on nothing that a
classifier learns: every run of a benchmark (targets, trials, algorithms) can use the same ones. They are kept in one
memory-mapped array per (data set, LDM, options, generation, style words), a row per image, filled as rows are asked
for. Candidates of a synthetic image (`updating`, from the second generation on) belong to their run and are not kept.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from domainfusion.config import GenerateConfig
from domainfusion.config_files import plain_values
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize, to_uint8
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import compose_prompts
from domainfusion.errors import show_note
from domainfusion.files import cache_folder, hash_of, locked, make_folder, reserve
from domainfusion.interruption import check
from domainfusion.memory import halve_until_it_fits
from domainfusion.seeding import derive_numpy_rng, seed_hash

# Raised when the sampler itself changes, so that candidates of an older one are not taken for its own.
CACHE_FORMAT = 4
# Options that decide what candidates look like; the others decide what is done with them.
SHAPING = ("seed", "candidates", "strength", "steps", "guidance", "guidance_interval", "solver", "spacing",
           "style_words", "template", "plain_template", "image_size")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the candidates of one image are made: a function of (seed, generation, row), however rows are batched."""

    prompts: list[str]  # N
    strengths: torch.Tensor  # (N,)
    seed: int  # of the noise


def recipe(
    dataset: MultiDomainDataset, row: int, config: GenerateConfig, number: int, styles: tuple[str, ...]
) -> Recipe:
    """The recipe of row `row` in generation `number`.

    All candidates of an image share one strength: with a strength each, the sampling strategy would compare near copies
    with far ones, and take the copies.
    """
    rng = derive_numpy_rng("prompts", config.seed, number, int(row))
    labels = np.repeat(dataset.labels[row], config.candidates)
    low, high = config.strength
    strengths = torch.full((config.candidates,), round(rng.uniform(low, high), 4))  # as the lineage records it
    prompts = compose_prompts(dataset.words(), labels, config, styles, rng)
    return Recipe(prompts, strengths, seed_hash("candidates", config.seed, number, int(row)))


def make_candidates(
    ldm: LatentDiffusion, pixels: torch.Tensor, recipes: list[Recipe], config: GenerateConfig
) -> torch.Tensor:
    """Candidates (B, N, 3, S, S) in [-1, 1] of images (B, 3, S, S) in [-1, 1], one recipe each."""
    size, wanted = config.image_size or ldm.image_size, config.candidates
    shape = (ldm.unet.config.in_channels, size // ldm.latent_factor, size // ldm.latent_factor)
    noise = torch.cat(
        [torch.randn(wanted, *shape, generator=torch.Generator().manual_seed(item.seed)) for item in recipes]
    )
    made = image_to_image(
        ldm, resize(pixels, size), [prompt for item in recipes for prompt in item.prompts],
        torch.stack([item.strengths for item in recipes]), noise=noise.to(ldm.device), candidates=wanted,
        steps=config.steps, guidance_scale=config.guidance, guidance_interval=config.guidance_interval,
        solver=config.solver, spacing=config.spacing, batch_size=config.batch_size,
    )  # fmt: skip
    return resize(made.flatten(0, 1), pixels.shape[-1]).view(len(pixels), wanted, *pixels.shape[1:])


def candidates_of(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, rows: np.ndarray, current: np.ndarray, config: GenerateConfig,
    *, number: int, styles: tuple[str, ...], stored: bool, progress: bool = True,
) -> Iterator[tuple[slice, list[Recipe], np.ndarray]]:  # fmt: skip
    """Part by part: positions in `rows`, their recipes, and their candidates (b, N, S, S, 3) uint8.

    Args:
        current: (n, S, S, 3) uint8, what each row's image has become.
        stored: whether `current` is the stored images, whose candidates the cache shares.
    """
    cache = CandidateCache(ldm, dataset, config, number, styles) if stored else None
    per_call = max(1, 4 * config.batch_size // config.candidates)
    at_once = config.batch_size
    bar = tqdm(total=len(rows), desc=f"generation {number}", unit="image", disable=not progress)
    for start in range(0, len(rows), per_call):
        part = slice(start, min(start + per_call, len(rows)))
        recipes = [recipe(dataset, int(row), config, number, styles) for row in rows[part]]
        missing = np.ones(len(recipes), dtype=bool) if cache is None else ~cache.intact(rows[part])
        found = np.empty((len(recipes), config.candidates, *current.shape[1:]), dtype=np.uint8)
        if missing.any():
            wanted = np.flatnonzero(missing)
            pixels = from_uint8(current[part][wanted])
            chosen = [recipes[i] for i in wanted]

            def make(size: int, pixels: torch.Tensor = pixels, chosen: list[Recipe] = chosen) -> torch.Tensor:
                return make_candidates(ldm, pixels, chosen, dataclasses.replace(config, batch_size=size))

            made, at_once = halve_until_it_fits(make, at_once, "the making of candidates (--generate.batch-size)")
            found[wanted] = to_uint8(made)
            if cache is not None:
                cache.store(rows[part][wanted], found[wanted])
        if cache is not None and not missing.all():
            found[~missing] = cache.images[rows[part][~missing]]
        bar.update(len(recipes))
        check()
        yield part, recipes, found
    bar.close()


def cache_path(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, config: GenerateConfig, number: int, styles: tuple[str, ...]
) -> Path:
    """The file for the candidates of all images of a data set under one recipe."""
    values = plain_values(config)
    key = hash_of(
        [
            CACHE_FORMAT,
            dataset.fingerprint,
            dataset.words(),
            ldm.fingerprint(),
            {k: values[k] for k in SHAPING},
            number,
            styles,
        ]
    )
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
    """

    def __init__(
        self, ldm: LatentDiffusion, dataset: MultiDomainDataset, config: GenerateConfig, number: int,
        styles: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.path = cache_path(ldm, dataset, config, number, styles)
        folder, key = make_folder(self.path.parent), self.path.stem
        shape = (len(dataset), config.candidates, dataset.size, dataset.size, 3)
        with locked(folder / f".{key}.lock"):  # one process makes the two files, the others open them
            existed = self.path.exists() and self.path.stat().st_ino
            self.images = _open(self.path, np.dtype(np.uint8), shape)
            if self.path.stat().st_ino != existed:  # deleted to free space, or damaged: nothing is done any more
                for suffix in (".done.npy", ".sums.npy"):
                    self.path.with_suffix(suffix).unlink(missing_ok=True)
            self.done = _open(self.path.with_suffix(".done.npy"), np.dtype(np.bool_), shape[:1])
            self.sums = _open(self.path.with_suffix(".sums.npy"), np.dtype(np.uint64), shape[:1])

    def intact(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: which of rows (n,) are there, and as they were kept; of damaged ones it is said."""
        found = np.array(self.done[rows])
        for i in np.flatnonzero(found):
            row = rows[i]
            kept, now = int(self.sums[row]), _sum(self.images[row])
            if not kept:
                self.sums[row] = now
            elif kept != now:
                found[i] = False
                show_note(f"{self.path}: the candidates of image {row} are damaged; made again")
        return found

    def store(self, rows: np.ndarray, candidates: np.ndarray) -> None:
        """Keep candidates (b, N, S, S, 3) of rows (b,); a row counts as done only after its pixels are on disk."""
        self.images[rows] = candidates
        self.images.flush()
        self.sums[rows] = [_sum(item) for item in candidates]
        self.sums.flush()
        self.done[rows] = True
        self.done.flush()


def _sum(candidates: np.ndarray) -> int:
    """The checksum of an image's candidates (N, S, S, 3)."""
    return zlib.crc32(np.ascontiguousarray(candidates).data) | 1 << 32


def _open(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
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
