"""Test images carried over to a source domain by its LDM (distribution shift inversion, Yu et al., CVPR 2023).

    z_s = √ᾱ_s E(x) + √(1-ᾱ_s) ε,   then DDIM (η = 0) from timestep s down, with the empty prompt and no guidance.

The noise of an image is a function of (seed, start step, pixels): the same image is translated to the same wherever it
lies. Translations of a data set's images are kept, by domain, LDM, start step and options, for all runs.
"""

from __future__ import annotations

import hashlib
import time

import numpy as np
import torch
from tqdm import tqdm

from domainfusion.config import DSIConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize, to_uint8
from domainfusion.devices import choose_dtype
from domainfusion.diffusion.finetuning import FineTuned, load_source
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.files import cache_folder, hash_of
from domainfusion.fusion.image_cache import ImageCache
from domainfusion.memory import halve_until_it_fits
from domainfusion.seeding import seed_hash

FORMAT = 1  # raised when the computation changes, so that older translations are not taken for new ones


def denoising_steps(start: float, steps: int) -> int:
    """Steps from start step `start` (a share of the schedule) on a grid that has `steps` from pure noise.

    >>> [denoising_steps(start, 50) for start in (0.001, 0.2, 0.5, 1.0)]
    [1, 10, 25, 50]
    """
    return max(1, round(start * steps))


def noise_of(image: np.ndarray, seed: int, start: float, shape: tuple[int, ...]) -> torch.Tensor:
    """The noise, of `shape`, that an image (S, S, 3) uint8 is given at a start step."""
    digest = hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
    generator = torch.Generator().manual_seed(seed_hash("inversion", seed, f"{start:.6f}", digest))
    return torch.randn(*shape, generator=generator)


def translate(
    ldm: LatentDiffusion, images: np.ndarray, start: float, config: DSIConfig, image_size: int = 0
) -> np.ndarray:
    """(B, S, S, 3) uint8: images (B, S, S, 3) uint8 noised to a start step and denoised by a domain's LDM.

    Args:
        start: share of the noise schedule, in (0, 1].
        image_size: pixels at the LDM (0: the size it was trained at).
    """
    size = image_size or ldm.image_size
    side = size // ldm.latent_factor
    shape = (ldm.unet.config.in_channels, side, side)
    noise = torch.stack([noise_of(image, config.seed, start, shape) for image in images])

    def make(at_once: int) -> torch.Tensor:
        return image_to_image(
            ldm, resize(from_uint8(images), size), [""] * len(images), torch.full((len(images), 1), start),
            noise=noise.to(ldm.device), steps=denoising_steps(start, config.steps), guidance_scale=1.0, solver="ddim",
            spacing="uniform", batch_size=at_once,
        )  # fmt: skip

    at_once = min(len(images), ldm.at_once(config.batch_size, size))
    made, _ = halve_until_it_fits(make, at_once, "translating (--dsi.batch-size)")
    return to_uint8(resize(made[:, 0], images.shape[1]))


class Inverter:
    """Translations by the LDMs of the source domains, one of them in memory at a time.

    Args:
        sources: the finished LDMs.
    """

    def __init__(
        self, sources: list[FineTuned], config: TrainConfig, device: torch.device, progress: bool = True
    ) -> None:
        self.sources, self.config, self.device, self.progress = sources, config, device, progress
        self._loaded: tuple[str, LatentDiffusion] | None = None

    def load(self, source: FineTuned) -> LatentDiffusion:
        """The LDM of a source; the one loaded before goes."""
        if self._loaded is None or self._loaded[0] != source.key:
            self._loaded = None
            ldm = load_source(source, device=self.device, precision=self.config.precision)
            self._loaded = source.key, ldm
        return self._loaded[1]

    def release(self) -> None:
        """Let the loaded LDM go."""
        self._loaded = None

    def images(self, source: FineTuned, images: np.ndarray, start: float) -> np.ndarray:
        """Translations (B, S, S, 3) uint8 of images (B, S, S, 3) uint8, not kept."""
        return translate(self.load(source), images, start, self.config.dsi, self.config.generate.image_size)

    def rows(
        self, source: FineTuned, dataset: MultiDomainDataset, rows: np.ndarray, start: float
    ) -> tuple[np.ndarray, float]:
        """Translations (n, S, S, 3) uint8 of rows (n,) of a data set, made where missing, and the seconds they took.

        The seconds are those of making them, also where an earlier run did. Raises `Interrupted` where a signal asks
        to stop; what is made by then is kept.
        """
        found = np.empty((len(rows), dataset.size, dataset.size, 3), dtype=np.uint8)
        seconds = 0.0
        for domain in np.unique(dataset.domain_of[rows]):
            chosen = np.flatnonzero(dataset.domain_of[rows] == domain)
            places = np.searchsorted(dataset.rows(int(domain)), rows[chosen])
            cache = self.cache(source, dataset, int(domain), start)
            self._fill(cache, source, dataset, int(domain), places, start)
            found[chosen] = cache.images[places, 0]
            seconds += float(cache.seconds[places].sum(dtype=np.float64))
        return found, seconds

    def _fill(
        self, cache: ImageCache, source: FineTuned, dataset: MultiDomainDataset, domain: int, places: np.ndarray,
        start: float,
    ) -> None:  # fmt: skip
        missing = cache.missing(places)
        title = f"{dataset.domains[domain]} to {source.domain}, from {start:g}"
        bar = tqdm(total=len(missing), desc=title, unit="image", disable=not self.progress or not len(missing))
        for part in cache.claim(missing):
            self.load(source)
            started = time.monotonic()
            made = self.images(source, dataset.images[dataset.rows(domain)[part]], start)
            cache.store(part, made[:, None], time.monotonic() - started)
            bar.update(len(part))
        bar.close()

    def cache(self, source: FineTuned, dataset: MultiDomainDataset, domain: int, start: float) -> ImageCache:
        """The translations of a domain of a data set; place i is the domain's i-th image."""
        own = self.config.dsi
        key = hash_of(
            [FORMAT, dataset.fingerprint, domain, source.key, str(choose_dtype(self.config.precision, self.device)),
             own.seed, own.steps, f"{start:.6f}", self.config.generate.image_size]
        )  # fmt: skip
        path = cache_folder() / "inversions" / f"{key}.npy"
        return ImageCache(path, len(dataset.rows(domain)), 1, dataset.size)
