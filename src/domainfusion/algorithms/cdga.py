"""CDGA: cross domain generative augmentation (Hemati et al., arXiv 2312.05387).

Before training, each source training image x_i of class y is translated towards each source domain d by image-to-image
under a prompt that names y and d; then ERM on the union of raw and translated images:

    min_θ  mean over d of mean over (x, y) in D_d ∪ {translations towards d} of CE(logits(x), y).

The held-out domain takes no part: neither its images nor its name.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch

from domainfusion.algorithms.base import Batch, Context
from domainfusion.algorithms.erm import ERM
from domainfusion.devices import choose_dtype
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.files import write_text
from domainfusion.fusion.translations import Translations, refuse_target, write_sheet
from domainfusion.seeding import derive_numpy_rng, seed_hash

SHEET_ROWS = 12


class CDGA(ERM):
    """ERM whose batches are drawn from raw and translated images alike."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.sources = context.split.sources
        self.rows = np.sort(np.concatenate([context.split.train[domain] for domain in self.sources]))
        self._ldm: LatentDiffusion | None = None
        dtype = choose_dtype(self.config.precision, context.device)
        self.translations = Translations(context.dataset, self.config, self.load_ldm, dtype)
        for held_out in context.split.held_out:
            refuse_target(self.translations.words, self.sources, held_out, self.config.cdga.template)
        self.ready = False
        self.spent = {"generated_images": 0, "generation_seconds": 0.0}

    def load_ldm(self) -> LatentDiffusion:
        """The frozen LDM, loaded when it is first asked for."""
        if self._ldm is None:
            config = self.config
            self._ldm = LatentDiffusion.load(config.ldm_source, device=self.context.device, precision=config.precision)
        return self._ldm

    def prepare(self) -> None:
        """Make the translations of all training images that are missing, then let the LDM go."""
        if self.ready:
            return
        started = time.monotonic()
        self.translations.make(self.rows, self.sources, progress=self.context.progress)
        self._ldm, self.ready = None, True
        self.spent["generation_seconds"] += time.monotonic() - started
        self.spent["generated_images"] = len(self.rows) * len(self.sources) * self.config.cdga.candidates

    def before_step(self, step: int, epoch: int) -> None:
        """Translate, before the first step of the process."""
        self.prepare()

    def compose(self, batch: Batch) -> Batch:
        """The batch drawn from the union: some of its raw images give way to translations towards their domain.

        An image of domain d's part of the batch was drawn evenly from D_d. It stays with probability
        |D_d| / (|D_d| + translations towards d), and else a translation drawn evenly takes its place: so the part is
        drawn evenly from the union. `rows` then names the image that was translated.
        """
        self.prepare()
        rng = derive_numpy_rng("cdga batch", self.config.seed, batch.step)
        rows, images = batch.rows.copy(), batch.images.clone()
        candidates = self.config.cdga.candidates
        made, places = [], []
        for domain, part in zip(self.sources, self.rows_by_domain(batch), strict=True):
            raw, translated = len(self.context.split.train[domain]), len(self.rows) * candidates
            chosen = part[rng.random(len(part)) >= raw / (raw + translated)]
            drawn = rng.integers(0, translated, len(chosen))
            rows[chosen] = self.rows[drawn // candidates]
            made.append(self.translations.cache(domain).images[rows[chosen], drawn % candidates])
            places.append(chosen)
        replaced = np.concatenate(places)
        if len(replaced):
            generator = torch.Generator().manual_seed(seed_hash("cdga views", self.config.seed, batch.step))
            images[torch.from_numpy(replaced)] = self.augmented(np.concatenate(made), generator)
        labels = torch.from_numpy(self.context.dataset.labels[rows]).to(batch.labels.device)
        return dataclasses.replace(batch, rows=rows, images=images, labels=labels)

    def finish(self) -> None:
        """Write `translations.png`: training images, each with its translations towards the source domains."""
        dataset, rng = self.context.dataset, derive_numpy_rng("translation sheet", self.config.seed)
        some = np.sort(rng.choice(self.rows, min(SHEET_ROWS, len(self.rows)), replace=False))
        caches = [self.translations.cache(domain) for domain in self.sources]
        write_sheet(
            self.context.folder / "translations.png",
            [[dataset.images[row], *(cache.images[row, 0] for cache in caches)] for row in some],
        )
        lines = [f"from left to right: raw image; towards {', '.join(self.sources)}", ""]
        for row in some:
            prompts = "; ".join(self.translations.recipe(int(row), domain).prompts[0] for domain in self.sources)
            lines.append(f"{dataset.keys[row]} ({dataset.domains[dataset.domain_of[row]]}): {prompts}")
        pictures = self.translations.folder / "pictures"
        where = pictures if pictures.exists() else self.translations.folder
        write_text(self.context.folder / "translations.txt", "\n".join([*lines, "", f"all of them: {where}"]) + "\n")

    def costs(self) -> dict[str, Any]:
        """Images translated, and the seconds that this run waited for them (none where they were there already).

        `making_seconds` is what making all of them took, whichever run did.
        """
        made = {"making_seconds": self.translations.seconds(self.rows, self.sources)} if self.ready else {}
        return self.spent | made

    def restore(self, costs: dict[str, Any]) -> None:
        """Go on from a checkpoint with its counts."""
        self.spent.update({name: costs[name] for name in self.spent if name in costs})
