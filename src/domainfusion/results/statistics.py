"""Means, standard errors, and paired comparison of algorithms over targets and trials."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

# {algorithm: {target: [one figure per trial]}}, in percent.
Accuracies = Mapping[str, Mapping[str, Sequence[float]]]
# A standard error, in per cent, that rounding figures to three decimals may leave of equal pairs; one image of 50,000.
EQUAL = 0.002


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its standard error (NaN where one figure is all there is)."""

    mean: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if math.isnan(self.error) else f"{self.mean:.1f} ± {self.error:.1f}"


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two algorithms on the same targets and trials, with its standard error and two-sided p."""

    mean: float
    error: float
    p_value: float
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (sample deviation / √n) of independent figures.

    >>> str(estimate([1.0, 2.0, 3.0]))
    '2.0 ± 0.6'
    """
    count = len(values)
    if not count:
        return Estimate(math.nan, math.nan, 0)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, count)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count), count)


def trial_means(by_target: Mapping[str, Sequence[float]]) -> list[float]:
    """The mean over targets of each trial that every target has: the unit that errors are taken over."""
    trials = min((len(values) for values in by_target.values()), default=0)
    return [sum(values[t] for values in by_target.values()) / len(by_target) for t in range(trials)]


def paired_difference(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> PairedDifference:
    """first - second, each trial's mean over the common targets being one pair (Student's t, n - 1 degrees).

    Args:
        first, second: accuracies in per cent, by target and trial.

    Targets of a trial share training images, so the trial, not the cell, is the unit. Trials are not independent
    either: their training parts overlap, and runs share the LDM's candidates of a raw image. Read p as a lower bound.
    """
    targets = [target for target in first if target in second]
    counts = [min(len(first[target]), len(second[target])) for target in targets]
    trials = min(counts, default=0)
    pairs = [sum(first[target][t] - second[target][t] for target in targets) / len(targets) for t in range(trials)]
    found = estimate(pairs)
    if found.count < 2 or math.isnan(found.error):
        return PairedDifference(found.mean, found.error, math.nan, found.count)
    if found.error <= EQUAL:
        return PairedDifference(found.mean, found.error, math.nan, found.count)  # equal pairs say nothing about chance
    from scipy import stats

    p_value = 2 * float(stats.t.sf(abs(found.mean / found.error), found.count - 1))
    return PairedDifference(found.mean, found.error, p_value, found.count)
