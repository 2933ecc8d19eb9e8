"""Images of a data set redrawn towards other domains, by prompts that name class and domain (CDGA).

What the translation of an image towards a domain looks like depends on the image, its label, the domain's words, the
LDM and the options, and on nothing else: all targets, trials and runs of a benchmark share them. They lie in

    cache/translations/KEY/
        about.json                                the data set, LDM and options they were made with
        pictures/DOMAIN/CLASS/ORIGIN-000123-0.png to look at; itself a data set, its domains those aimed at
        arrays/...npy                             what training reads
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from domainfusion.config import CDGAConfig, GenerateConfig, TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, to_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.errors import UsageError
from domainfusion.files import atomic_path, cache_folder, hash_of, make_folder, write_json
from domainfusion.fusion.candidates import Recipe, make_candidates
from domainfusion.fusion.image_cache import ImageCache
from domainfusion.fusion.synthetic import safe_name
from domainfusion.memory import halve_until_it_fits
from domainfusion.seeding import derive_numpy_rng, seed_hash

FORMAT = 1  # raised when the computation changes, so that older translations are not taken for new ones
# Options that decide what translations look like.
SHAPING = ("seed", "candidates", "strength", "steps", "guidance", "template")
SHAPING_OF_ENGINE = ("guidance_interval", "solver", "spacing", "image_size")


def domain_words(domains: Sequence[str], config: CDGAConfig) -> dict[str, str]:
    """{domain: its words in prompts}.

    >>> domain_words(["art_painting", "photo"], CDGAConfig(domain_words=("photo=a photograph",)))
    {'art_painting': 'art painting', 'photo': 'a photograph'}

    Raises `UsageError` for words of a domain that there is not.
    """
    given = dict(entry.split("=", 1) for entry in config.domain_words)
    strangers = sorted(set(given) - set(domains))
    if strangers:
        raise UsageError(
            f"--cdga.domain-words {strangers[0]}=...: there is no such domain; domains: {', '.join(domains)}"
        )
    return {domain: given.get(domain, re.sub(r"[_-]+", " ", domain).strip()) for domain in domains}


def refuse_target(words: dict[str, str], sources: Sequence[str], target: str | None, template: str) -> None:
    """Raise `UsageError` where a prompt would name the target: by its name or by its words, as whole words.

    Args:
        words: of all domains.
    """
    if target is None:
        return
    for source in sources:
        prompt = f" {' '.join(_split(template.format(label=' ', domain=words[source])))} "
        for name in (target, words[target]):
            if _split(name) and f" {' '.join(_split(name))} " in prompt:
                raise UsageError(
                    f"--cdga: prompts towards {source} ({words[source]!r} in {template!r}) would name the held-out "
                    f"domain {target!r}; give other words by --cdga.domain-words {source}=... or --cdga.template"
                )


def _split(text: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", text.casefold()) if word]


def engine_options(config: TrainConfig) -> GenerateConfig:
    """How the candidate engine is asked for translations: CDGA's options, and of `generate` what they leave open."""
    own = config.cdga
    return dataclasses.replace(
        config.generate, candidates=own.candidates, strength=own.strength, steps=own.steps, guidance=own.guidance
    )


class Translations:
    """Translations of a data set's images towards domains, made where they are missing.

    Args:
        ldm: called for the LDM when it is first needed; not at all where everything is there.
        dtype: the LDM's precision.
    """

    def __init__(
        self, dataset: MultiDomainDataset, config: TrainConfig, ldm: Callable[[], LatentDiffusion], dtype: torch.dtype
    ) -> None:
        self.dataset, self.config, self.ldm = dataset, config, ldm
        self.words = domain_words(dataset.domains, config.cdga)
        self.options = engine_options(config)
        self.at_once = 0  # candidates denoised together, once the LDM is known; fewer when memory has run out
        about = {
            "format": FORMAT, "data": dataset.name, "fingerprint": dataset.fingerprint, "classes": dataset.words(),
            "ldm": source_fingerprint(config.ldm_source), "dtype": str(dtype),
            "cdga": {name: plain_values(config.cdga)[name] for name in SHAPING},
            "generate": {name: plain_values(config.generate)[name] for name in SHAPING_OF_ENGINE},
        }  # fmt: skip
        self.folder = cache_folder() / "translations" / hash_of(about)
        if not (self.folder / "about.json").exists():
            write_json(self.folder / "about.json", about | {"ldm_source": config.ldm_source})
        self._caches: dict[str, ImageCache] = {}

    def cache(self, domain: str) -> ImageCache:
        """The translations towards a domain; place i is row i of the data set."""
        words = self.words[domain]
        if words not in self._caches:
            path = self.folder / "arrays" / f"{hash_of(words)}.npy"
            self._caches[words] = ImageCache(
                path, len(self.dataset), self.config.cdga.candidates, self.dataset.size
            )  # fmt: skip
        return self._caches[words]

    def recipe(self, row: int, domain: str) -> Recipe:
        """How the image of `row` is translated towards `domain`: a function of (seed, row, the domain's words)."""
        own, words = self.config.cdga, self.words[domain]
        rng = derive_numpy_rng("translation strengths", own.seed, words, int(row))
        strengths = torch.tensor(rng.uniform(*own.strength, own.candidates).round(4), dtype=torch.float32)
        prompt = own.template.format(label=self.dataset.words()[self.dataset.labels[row]], domain=words)
        return Recipe([prompt] * own.candidates, strengths, seed_hash("translations", own.seed, words, int(row)))

    def make(self, rows: np.ndarray, domains: Sequence[str], *, progress: bool = True) -> int:
        """Make what is missing of the translations of `rows` towards `domains`; how many images that were.

        Raises `Interrupted` where a signal asks to stop; what is made by then is kept.
        """
        made = 0
        lacking = {domain: self.cache(domain).missing(rows) for domain in domains}
        bar = tqdm(
            total=sum(map(len, lacking.values())), desc="translating", unit="image",
            disable=not progress or not any(map(len, lacking.values())),
        )  # fmt: skip
        for domain, missing in lacking.items():
            cache = self.cache(domain)
            for part in cache.claim(missing):
                started = time.monotonic()
                recipes = [self.recipe(int(row), domain) for row in part]
                pixels = from_uint8(self.dataset.images[part])
                images = to_uint8(self._made(pixels, recipes))
                if self.config.cdga.pictures:
                    self._write_pictures(part, domain, images)
                cache.store(part, images, time.monotonic() - started)
                made += images.shape[0] * images.shape[1]
                bar.update(len(part))
        bar.close()
        return made

    def _made(self, pixels: torch.Tensor, recipes: list[Recipe]) -> torch.Tensor:
        """(b, N, 3, S, S) translations of images (b, 3, S, S), fewer at once where memory runs out."""
        ldm = self.ldm()

        def make(size: int) -> torch.Tensor:
            return make_candidates(ldm, pixels, recipes, dataclasses.replace(self.options, batch_size=size))

        self.at_once = self.at_once or ldm.at_once(self.options.batch_size, self.options.image_size or ldm.image_size)
        made, self.at_once = halve_until_it_fits(make, self.at_once, "translating (--generate.batch-size)")
        return made

    def _write_pictures(self, rows: np.ndarray, domain: str, images: np.ndarray) -> None:
        """Write translations (b, N, S, S, 3) of rows (b,) as PNG files."""
        dataset = self.dataset
        for row, candidates in zip(rows, images, strict=True):
            origin = dataset.domains[dataset.domain_of[row]]
            place = (
                self.folder
                / "pictures"
                / safe_name(self.words[domain])
                / safe_name(dataset.classes[dataset.labels[row]])
            )
            make_folder(place)
            for number, image in enumerate(candidates):
                # One that a kill cut short is written again: its row counts as made only after this.
                path = place / f"{safe_name(origin)}-{row:06d}-{number}.png"
                Image.fromarray(image).save(path, compress_level=1)

    def seconds(self, rows: np.ndarray, domains: Sequence[str]) -> float:
        """What the translations of `rows` towards `domains` took, whichever run made them."""
        return float(sum(self.cache(domain).seconds[rows].sum(dtype=np.float64) for domain in domains))


def sheet(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Images (S, S, 3) uint8 in rows and columns, white between them: (H, W, 3) uint8."""
    size = rows[0][0].shape[0]
    wide = max(map(len, rows))
    whole = np.full((len(rows) * (size + gap) - gap, wide * (size + gap) - gap, 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            whole[i * (size + gap) : i * (size + gap) + size, j * (size + gap) : j * (size + gap) + size] = image
    return whole


def write_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]]) -> None:
    """Write a sheet of images as a PNG file, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(sheet(rows)).save(temporary, format="PNG")
