"""Candidates of images, made by the LDM or taken from the cache that runs share (`candidate_cache`).

Processes that ask for the same rows at the same time share the making of them. What other data sets have of the same
images is taken over, and runs with fewer candidates take theirs from those of runs with more, which begin with the same
ones. Candidates of a synthetic image (`updating`, from
the second generation on) belong to their run and are not kept.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from domainfusion.claims import claimed
from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize, to_uint8
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.prompts import compose_prompts
from domainfusion.fusion.candidate_cache import CandidateCache, cache_file, cache_path, cached_rows, candidate_keys
from domainfusion.interruption import check
from domainfusion.locks import open_lock
from domainfusion.memory import halve_until_it_fits
from domainfusion.seeding import derive_numpy_rng, seed_hash

LENDERS = 8  # most candidates that a run may have for another with fewer to look for its own among them
PAUSE = 0.2  # seconds between two looks at what another process is at


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the candidates of one image are made: a function of (seed, generation, image, class), however batched."""

    prompts: list[str]  # N
    strengths: torch.Tensor  # (N,)
    seed: int  # of the noise


def recipes_of(
    dataset: MultiDomainDataset, rows: np.ndarray, config: GenerateConfig, number: int, styles: tuple[str, ...],
    keys: np.ndarray | None = None,
) -> list[Recipe]:  # fmt: skip
    """The recipes of rows (n,) in generation `number`; an image has the same one in every data set.

    All candidates of an image share one strength: with a strength each, the sampling strategy would compare near copies
    with far ones, and take the copies.

    Args:
        keys: (n,) the `candidate_keys` of `rows`, where they are known.
    """
    recipes = []
    for row, key in zip(rows, (candidate_keys(dataset, rows) if keys is None else keys).tolist(), strict=True):
        rng = derive_numpy_rng("prompts", config.seed, number, key)
        labels = np.repeat(dataset.labels[row], config.candidates)
        strength = round(rng.uniform(*config.strength), 4)  # as the lineage records it
        prompts = compose_prompts(dataset.words(), labels, config, styles, rng)
        noise = seed_hash("candidates", config.seed, number, key)
        recipes.append(Recipe(prompts, torch.full((config.candidates,), strength), noise))
    return recipes


def noise_of(ldm: LatentDiffusion, item: Recipe, config: GenerateConfig) -> torch.Tensor:
    """(N, C, h, w) the noise that candidates of a recipe start from."""
    side = (config.image_size or ldm.image_size) // ldm.latent_factor
    generator = torch.Generator().manual_seed(item.seed)
    return torch.randn(config.candidates, ldm.unet.config.in_channels, side, side, generator=generator)


def make_candidates(
    ldm: LatentDiffusion, pixels: torch.Tensor, recipes: list[Recipe], config: GenerateConfig
) -> torch.Tensor:
    """Candidates (B, N, 3, S, S) in [-1, 1] of images (B, 3, S, S) in [-1, 1], one recipe each."""
    size = config.image_size or ldm.image_size
    noise = torch.cat([noise_of(ldm, item, config) for item in recipes])
    return image_to_image(
        ldm, resize(pixels, size), [prompt for item in recipes for prompt in item.prompts],
        torch.stack([item.strengths for item in recipes]), noise=noise.to(ldm.device), candidates=config.candidates,
        steps=config.steps, guidance_scale=config.guidance, guidance_interval=config.guidance_interval,
        solver=config.solver, spacing=config.spacing, batch_size=config.batch_size,
        side=pixels.shape[-1],
    )  # fmt: skip


class Making:
    """The making of candidates of some rows of a data set in one generation, part by part.

    Parts are the same whoever makes them, so that candidates are too: what is batched together decides their rounding.

    Args:
        rows: (n,) rows of the data set; positions below are places in it.
        current: (n, S, S, 3) uint8, what each row's image has become; None for the stored images.
    """

    def __init__(
        self, ldm: LatentDiffusion, dataset: MultiDomainDataset, rows: np.ndarray, config: GenerateConfig, *,
        number: int, styles: tuple[str, ...], current: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.ldm, self.dataset, self.rows, self.config = ldm, dataset, rows, config
        self.number, self.styles, self.current = number, styles, current
        self.batch = ldm.at_once(config.batch_size, config.image_size or ldm.image_size)
        self.at_once = self.batch  # fewer when memory has run out
        self._keys, self._known = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=bool)

    def parts(self) -> list[slice]:
        """Positions that are made in one call, a few full batches each."""
        count, per_call = len(self.rows), max(1, 4 * self.batch // self.config.candidates)
        return [slice(start, min(start + per_call, count)) for start in range(0, count, per_call)]

    def recipes(self, positions: np.ndarray) -> list[Recipe]:
        """The recipe of each of `positions` (b,)."""
        rows = self.rows[positions]
        return recipes_of(self.dataset, rows, self.config, self.number, self.styles, self.keys_of(positions))

    def keys_of(self, positions: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
        """(b,) the keys of `positions` (b,); their stored `images`, read if not given, are looked at once."""
        if not self._known[positions].all():
            self._keys[positions] = candidate_keys(self.dataset, self.rows[positions], images)
            self._known[positions] = True
        return self._keys[positions]

    def make(self, positions: np.ndarray) -> np.ndarray:
        """Candidates (b, N, S, S, 3) uint8 of `positions` (b,)."""
        if self.current is None:
            images = self.dataset.images[self.rows[positions]]
            self.keys_of(positions, images)
        else:
            images = self.current[positions]
        pixels, recipes = from_uint8(images), self.recipes(positions)

        def make(size: int) -> torch.Tensor:
            return make_candidates(self.ldm, pixels, recipes, dataclasses.replace(self.config, batch_size=size))

        made, self.at_once = halve_until_it_fits(make, self.at_once, "the making of candidates (--generate.batch-size)")
        return to_uint8(made)

    def fill(self, cache: CandidateCache, *, wait: bool = True, progress: bool = True) -> None:
        """Make what `cache` lacks of stored images and no other process is making; then `wait` for what others make.

        Should one of those end before it is done, its part is made here. A signal to stop is honoured between denoising
        steps; the part that was begun is lost.
        """
        bar = tqdm(total=len(self.rows), desc=f"generation {self.number}", unit="image", disable=not progress)
        waiting = [np.arange(part.start, part.stop) for part in self.parts()]
        looked_through = False  # whether what was there at first has been compared with its checksums
        cache.take_over(self.rows)
        with open_lock(cache.path.with_suffix(".claims")) as descriptor, bar:
            self.borrow(cache, descriptor)
            while waiting:
                busy = []
                for positions in waiting:
                    check()
                    rows = self.rows[positions]
                    missing = positions[~(cache.done[rows] if looked_through else cache.intact(rows))]
                    with claimed(descriptor, self.rows[missing]) as ours:
                        wanted = missing[ours]
                        wanted = wanted[~cache.done[self.rows[wanted]]]  # not stored by another a moment ago
                        if len(wanted):
                            cache.store(self.rows[wanted], self.make(wanted), self.keys_of(wanted))
                    left = missing[~ours]
                    bar.update(len(positions) - len(left))
                    if len(left):
                        busy.append(left)
                if not wait:
                    return
                if busy and len(busy) == len(waiting):
                    bar.set_postfix_str("waiting for another process")
                    time.sleep(PAUSE)
                waiting, looked_through = busy, True
        self._keys[:], self._known[:] = cache.keys[self.rows], True

    def borrow(self, cache: CandidateCache, descriptor: int) -> None:
        """Copy into `cache` what it lacks and a cache of more candidates has: an image's candidates are drawn in turn,
        so that those of a run with fewer are the first of them (up to rounding, as with any other batch)."""
        missing = self.rows[~cache.done[self.rows]]
        if not len(missing) or self.config.candidates >= LENDERS:
            return
        fingerprint = self.ldm.fingerprint()
        for count in range(self.config.candidates + 1, LENDERS + 1):
            larger = dataclasses.replace(self.config, candidates=count)
            path = cache_file(self.dataset, larger, self.number, self.styles, fingerprint)
            there = missing[cached_rows(path, len(self.dataset))[missing]]
            if not len(there) or not self._begins_alike(int(there[0]), larger):
                continue
            lender = CandidateCache(path, self.dataset, larger)
            for start in range(0, len(there), 256):
                check()
                part = there[start : start + 256]
                part = part[lender.intact(part)]
                with claimed(descriptor, part) as ours:
                    part = part[ours]
                    part = part[~cache.done[part]]  # not stored by another a moment ago
                    cache.store(part, np.array(lender.images[part, : self.config.candidates]), lender.keys[part])
            missing = missing[~cache.done[missing]]

    def _begins_alike(self, row: int, larger: GenerateConfig) -> bool:
        """Whether the first candidates of `larger` have the prompts and the noise of this making's."""
        rows = np.array([row])
        ours, theirs = (
            recipes_of(self.dataset, rows, config, self.number, self.styles)[0] for config in (self.config, larger)
        )
        count = self.config.candidates
        noise, more = noise_of(self.ldm, ours, self.config), noise_of(self.ldm, theirs, larger)
        return ours.prompts == theirs.prompts[:count] and torch.equal(noise, more[:count])


def candidates_of(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, rows: np.ndarray, current: np.ndarray | None,
    config: GenerateConfig, *, number: int, styles: tuple[str, ...], stored: bool, progress: bool = True,
) -> Iterator[tuple[slice, list[Recipe], np.ndarray]]:  # fmt: skip
    """Part by part: positions in `rows`, their recipes, and their candidates (b, N, S, S, 3) uint8.

    Args:
        current: (n, S, S, 3) uint8, what each row's image has become; None for the stored images.
        stored: whether it is the stored images, whose candidates the cache shares.
    """
    making = Making(
        ldm, dataset, rows, config, number=number, styles=styles, current=None if stored else current
    )  # fmt: skip
    cache = None
    if stored:
        cache = CandidateCache(cache_path(ldm, dataset, config, number, styles), dataset, config)
        making.fill(cache, progress=progress)
    bar = tqdm(total=len(rows), desc=f"generation {number}", unit="image", disable=stored or not progress)
    for part in making.parts():
        positions = np.arange(part.start, part.stop)
        found = making.make(positions) if cache is None else np.array(cache.images[rows[part]])
        bar.update(len(positions))
        check()
        yield part, making.recipes(positions), found
    bar.close()
