"""Synthetic images drawn anew in each step, from all candidates of a run's generations so far.

The sampling strategy (`selection`) takes one content, mostly the one that the classifier trusts most, and one style of
N candidates, and training then sees that one image until the next generation. Here each step takes the content of any
candidate of any generation so far and the style of any, the same one included: g generations of N candidates are (gN)²
images of a row, for the same work of the LDM.

The candidates are those of the stored images, which the shared cache keeps (so there is none of this with `updating`).
"""

from __future__ import annotations

import numpy as np
import torch

from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.fusion.candidate_cache import CandidateCache, cache_paths
from domainfusion.fusion.candidates import Making
from domainfusion.fusion.style import recombine


class CandidatePool:
    """The candidates of some rows of a data set, of every generation that has been made.

    Args:
        rows: (n,) rows of the data set that have candidates.
        config: of the generations, with as many candidates as they have (`GenerateConfig.needed`).
        styles: style words that prompts may use.
    """

    def __init__(
        self, ldm: LatentDiffusion, dataset: MultiDomainDataset, rows: np.ndarray, config: GenerateConfig,
        styles: tuple[str, ...], *, progress: bool = True,
    ) -> None:  # fmt: skip
        self.ldm, self.dataset, self.rows, self.config, self.styles = ldm, dataset, rows, config, styles
        self.progress = progress
        self._caches: dict[int, CandidateCache] = {}

    def open(self, count: int, *, complete: bool = False) -> None:
        """Open the candidates of the first `count` generations; what of them is missing or damaged is made again.

        Args:
            complete: whether the newest is known to be there and undamaged.
        """
        numbers = [number for number in range(count) if number not in self._caches]
        paths = cache_paths(self.ldm, self.dataset, self.config, numbers, self.styles)
        for number, path in zip(numbers, paths, strict=True):
            cache = CandidateCache(path, self.dataset, self.config)
            if not (complete and number == count - 1):
                making = Making(self.ldm, self.dataset, self.rows, self.config, number=number, styles=self.styles)
                making.fill(cache, progress=self.progress and not cache.done[self.rows].all())
            self._caches[number] = cache

    def recombined(self, rows: np.ndarray, count: int, rng: np.random.Generator, device: torch.device) -> torch.Tensor:
        """(b, S, S, 3) uint8 on `device`: an image for each of rows (b,), drawn by `rng` from the first `count`
        generations."""
        numbers = rng.integers(0, count, (2, len(rows)))
        candidates = rng.integers(0, self.config.candidates, (2, len(rows)))
        content, style = (
            np.stack([self._caches[int(g)].images[row, j] for g, row, j in zip(of, rows, chosen, strict=True)])
            for of, chosen in zip(numbers, candidates, strict=True)
        )
        return recombine(torch.from_numpy(content).to(device), torch.from_numpy(style).to(device))
