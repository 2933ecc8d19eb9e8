"""Which classes an image is tried on next: stages written out, SciPy's p-values, the paper's loop of pruning."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from domainfusion.algorithms import diffusion_net
from domainfusion.algorithms.diffusion_classifier import StagedSearch, stage_draws
from domainfusion.algorithms.diffusion_net import PairedSearch, paired_p_values


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4, unique=True).map(sorted))
def test_stages_use_every_draw_once_and_spread_over_the_schedule(samples: list[int]) -> None:
    stages = stage_draws(tuple(samples))
    assert np.cumsum([len(stage) for stage in stages]).tolist() == samples
    assert sorted(number for stage in stages for number in stage) == list(range(samples[-1]))
    # The first stage's timesteps are the middles of equal parts of the schedule, to half a step of the grid.
    middles = (np.arange(samples[0]) + 0.5) * samples[-1] / samples[0] - 0.5
    assert np.abs(np.array(stages[0]) - middles).max() <= 0.5


def test_stages_written_out() -> None:
    assert stage_draws((2, 4, 8)) == [[2, 6], [1, 5], [0, 3, 4, 7]]
    assert stage_draws((3, 9))[0] == [1, 4, 7]


def test_a_search_keeps_the_best_and_between_equals_the_first() -> None:
    search = StagedSearch(4, (1, 2), (2, 1))
    search.take(np.array([[3.0, 1.0, 1.0, 1.0]]))
    assert search.remaining == [1, 2]
    search.take(np.array([[5.0, 2.0]]))
    assert (search.remaining, search.wanted()) == ([2], [])
    assert search.draws.tolist() == [1, 2, 2, 1]
    np.testing.assert_allclose(search.means(), [3, 3, 1.5, 1])


def test_a_search_that_has_its_answer_ends_early() -> None:
    search = StagedSearch(3, (2, 5, 9), (3, 1, 1))
    search.take(np.ones((2, 3)))
    search.take(np.array([[3.0, 1.0, 2.0]] * 3))
    assert (search.remaining, search.wanted()) == ([1], [])


@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 1000))
def test_p_values_are_scipys(count: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=count)
    others = first[:, None] + rng.normal(size=(count, classes)) * rng.uniform(0.1, 2) + rng.normal(size=classes)
    wanted = [stats.ttest_rel(first, others[:, k]).pvalue for k in range(classes)]
    np.testing.assert_allclose(paired_p_values(first, others), wanted, rtol=1e-9, atol=1e-300)


def test_p_values_where_there_is_no_spread() -> None:
    first = np.array([0.5, 2.0, 8.0])
    same, shifted = paired_p_values(first, np.stack([first, first + 1], axis=1))
    assert np.isnan(same)
    assert shifted == 0


def pruned_one_by_one(scores: np.ndarray, least: int, most: int, cutoff: float) -> list[int]:
    """How many draws each class gets by the paper's loop."""
    remaining, n = list(range(scores.shape[1])), 0
    draws = [0] * scores.shape[1]
    while len(remaining) > 1 and n < most:
        n += 1
        for c in remaining:
            draws[c] = n
        best = min(remaining, key=lambda c: scores[:n, c].mean())
        if n >= least:
            p_values = {c: stats.ttest_rel(scores[:n, best], scores[:n, c]).pvalue for c in remaining if c != best}
            remaining = [c for c in remaining if c == best or p_values[c] >= cutoff]
    return draws


@settings(max_examples=16)
@given(st.integers(2, 30), st.integers(0, 1000), st.sampled_from([1e-3, 0.02, 0.2]), st.sampled_from([1, 16]))
def test_pruning_is_that_of_the_paper_however_many_draws_come_at_once(
    least: int, seed: int, cutoff: float, ahead: int
) -> None:
    with mock.patch.object(diffusion_net, "AHEAD", ahead):  # at 1, as many draws again as there were
        check_pruning(8, least, seed, cutoff)


def check_pruning(classes: int, least: int, seed: int, cutoff: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(120, 1)) + rng.normal(size=(120, classes)) + rng.normal(size=classes) * 0.3
    search = PairedSearch(classes, least, 120, cutoff)
    asked = 0
    while numbers := search.wanted():
        assert numbers[0] == asked
        given_classes = list(search.remaining)
        search.take(scores[np.ix_(numbers, given_classes)])
        asked = numbers[-1] + 1
    assert search.draws.tolist() == pruned_one_by_one(scores, least, 120, cutoff)
    for c, n in enumerate(search.draws):
        assert search.means()[c] == pytest.approx(scores[:n, c].mean())
