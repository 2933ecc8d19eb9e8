"""DiffusionNet: Clark & Jaini, "Text-to-Image Diffusion Models are Zero-Shot Classifiers", NeurIPS 2023.

    y(x) = argmin_c E_{t,ε} e^{-7t}·‖z - z_φ(z_t, t, c)‖²,     t uniform on [0, 1],

z_φ = (z_t - √(1-ᾱ_t) ε_φ)/√ᾱ_t being the predicted clean latents, with draws shared by the classes. Implausible
classes are pruned as draws come in (their Algorithm 1): after `min_scores` draws and each one that follows, a class
leaves when a paired t-test of its scores against those of the best class so far has p < `cutoff`. The search ends with
one class, or after `max_scores` draws with the best.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import stdtr

from domainfusion.algorithms.zero_shot import Search, ZeroShot

# How many draws are made at once, as a share of those made: a class that is pruned meanwhile has cost some in vain.
AHEAD = 16


def paired_p_values(first: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(k,) two-sided p-values of Student's paired t-tests of scores (n,) against scores (n, k), n at least 2.

    NaN where a column is equal to `first` (no difference and no spread).
    """
    difference = others - first[:, None]
    count = len(first)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference.mean(0) / (difference.std(0, ddof=1) / np.sqrt(count))
    return 2 * stdtr(count - 1, -np.abs(t))


class PairedSearch(Search):
    """One draw after the other for all classes that no t-test has ruled out."""

    def __init__(self, classes: int, min_scores: int, max_scores: int, cutoff: float) -> None:
        super().__init__(classes)
        self.min_scores, self.max_scores, self.cutoff = min_scores, max_scores, cutoff
        self.count = 0
        self.scores = np.full((min_scores, classes), np.nan)  # grows by doubling

    def wanted(self) -> list[int]:
        """Up to the first test, then a few at a time, so that the U-Net has more to do at once."""
        if len(self.remaining) == 1 or self.count >= self.max_scores:
            return []
        ahead = self.min_scores - self.count if self.count < self.min_scores else max(1, self.count // AHEAD)
        return list(range(self.count, min(self.count + ahead, self.max_scores)))

    def take(self, errors: np.ndarray) -> None:
        """Go through the draws one by one, as if each had been made after the test of the one before."""
        given = list(self.remaining)
        for row in errors:
            if self.count == len(self.scores):
                self.scores = np.concatenate([self.scores, np.full_like(self.scores, np.nan)])
            self.scores[self.count, self.remaining] = row[[given.index(c) for c in self.remaining]]
            self.add(self.scores[self.count : self.count + 1, self.remaining])
            self.count += 1
            if self.count >= self.min_scores:
                self.prune()
            if len(self.remaining) == 1:
                break

    def prune(self) -> None:
        """Remove the classes whose scores differ from the best's with p < `cutoff`."""
        best = self.remaining[int(np.argmin(self.means()[self.remaining]))]
        scores = self.scores[: self.count]
        p_values = paired_p_values(scores[:, best], scores[:, self.remaining])
        self.remaining = [c for c, p in zip(self.remaining, p_values, strict=True) if c == best or not p < self.cutoff]


class DiffusionNet(ZeroShot):
    """Weighted squared error of the predicted clean latents, pruned by paired t-tests."""

    shaping = ("seed", "min_scores", "max_scores", "cutoff")

    def search(self) -> PairedSearch:
        """The pruning of `min_scores`, `max_scores` and `cutoff`."""
        config = self.config
        return PairedSearch(len(self.embeds), config.min_scores, config.max_scores, config.cutoff)

    def time_of(self, number: int, generator: torch.Generator) -> float:
        """Uniform on [0, 1)."""
        return float(torch.rand(1, generator=generator, dtype=torch.float64))

    def weights(self, times: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """e^{-7t}·(1-ᾱ_t)/ᾱ_t, because ‖z - z_φ‖² = (1-ᾱ_t)/ᾱ_t·‖ε - ε_φ‖²."""
        alpha = self.ldm.alphas_cumprod[timesteps]
        return torch.exp(-7 * times) * (1 - alpha) / alpha
