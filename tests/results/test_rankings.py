"""Figures of rankings, counted by hand and against areas of precision-recall steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.results.rankings import average_precision, order_of, precision_at, recall_at

SCORES = np.array([0.2, 0.9, 0.5, 0.4, 0.7])
WANTED = np.array([False, True, False, True, True])


def test_counted_by_hand() -> None:
    assert order_of(SCORES).tolist() == [1, 4, 2, 3, 0]
    assert precision_at(SCORES, WANTED, 3) == pytest.approx(2 / 3)
    assert recall_at(SCORES, WANTED, 3) == pytest.approx(2 / 3)
    assert average_precision(SCORES, WANTED) == pytest.approx((1 + 1 + 3 / 4) / 3)


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any), st.integers(0, 99))
def test_average_precision_is_the_area_under_the_steps(wanted: list[bool], seed: int) -> None:
    scores, hits = np.random.default_rng(seed).permutation(len(wanted)).astype(float), np.array(wanted)
    area, before = 0.0, 0.0
    for count in range(1, len(wanted) + 1):
        recall = recall_at(scores, hits, count)
        area += (recall - before) * precision_at(scores, hits, count)
        before = recall
    assert average_precision(scores, hits) == pytest.approx(area)
