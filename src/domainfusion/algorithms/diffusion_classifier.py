"""Diffusion Classifier (Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023).

    y(x) = argmin_c E_{t,ε} ‖ε - ε_φ(z_t, t, c)‖²

with timesteps spaced evenly, draws shared by the classes, and in stages (their Algorithm 2): by the end of stage i each
class still there has had `samples[i]` draws, and the `keep[i]` with the smallest mean error stay.
"""

from __future__ import annotations

import numpy as np
import torch

from domainfusion.algorithms.zero_shot import Search, ZeroShot


def stage_draws(samples: tuple[int, ...]) -> list[list[int]]:
    """The draws that each stage adds, as numbers from 0 to samples[-1] - 1 in order of time.

    Each stage takes what it adds evenly from what is left, so after every stage the timesteps spread over the schedule.

    >>> stage_draws((2, 4, 8))
    [[2, 6], [1, 5], [0, 3, 4, 7]]
    """
    left = list(range(samples[-1]))
    stages = []
    for before, upto in zip((0, *samples), samples, strict=False):
        added = upto - before
        chosen = [left[(2 * j + 1) * len(left) // (2 * added)] for j in range(added)]
        stages.append(chosen)
        left = [number for number in left if number not in set(chosen)]
    return stages


class StagedSearch(Search):
    """Many classes with few draws, the best of them with more."""

    def __init__(self, classes: int, samples: tuple[int, ...], keep: tuple[int, ...]) -> None:
        super().__init__(classes)
        self.stages = stage_draws(samples)
        self.keep = keep
        self.stage = 0

    def wanted(self) -> list[int]:
        """The next stage's draws."""
        return self.stages[self.stage] if self.stage < len(self.stages) and len(self.remaining) > 1 else []

    def take(self, errors: np.ndarray) -> None:
        """Count a stage, and keep its best; between equal classes the first stays."""
        self.add(errors)
        best = np.argsort(self.means()[self.remaining], kind="stable")[: self.keep[self.stage]]
        self.remaining = sorted(self.remaining[i] for i in best)
        self.stage += 1


class DiffusionClassifier(ZeroShot):
    """Mean squared error of the predicted noise over an even grid of timesteps, staged."""

    shaping = ("seed", "samples", "keep")

    def search(self) -> StagedSearch:
        """The stages of `samples` and `keep`."""
        return StagedSearch(len(self.embeds), self.config.samples, self.config.keep)

    def time_of(self, number: int, generator: torch.Generator) -> float:
        """The middle of the `number`-th of as many equal parts of [0, 1) as there are draws in all."""
        return (number + 0.5) / self.config.samples[-1]

    def weights(self, times: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """1: the plain noise-prediction loss."""
        return torch.ones_like(times)
