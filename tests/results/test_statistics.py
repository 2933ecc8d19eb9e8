from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from domainfusion.results.statistics import Estimate, estimate, paired_difference, trial_means

percents = st.floats(0, 100)
# {target: figures by trial} of two algorithms on the same cells
pairs = st.integers(1, 4).flatmap(
    lambda targets: st.integers(2, 6).flatmap(
        lambda trials: st.tuples(
            *[st.lists(st.lists(percents, min_size=trials, max_size=trials), min_size=targets, max_size=targets)] * 2
        )
    )
)


def by_target(table: list[list[float]]) -> dict[str, list[float]]:
    return {f"t{i}": row for i, row in enumerate(table)}


@given(st.lists(percents, min_size=2, max_size=20))
def test_estimate_is_mean_and_standard_error(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.error == pytest.approx(stats.sem(values), abs=1e-9)
    assert found.count == len(values)


def test_few_figures_have_no_error() -> None:
    assert (estimate([50.0]).mean, estimate([50.0]).count) == (50.0, 1)
    assert math.isnan(estimate([50.0]).error)
    assert math.isnan(estimate([]).mean)
    assert estimate([]).count == 0


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(50.04, 1.26, 3), "50.0 ± 1.3"),
        (Estimate(50.06, math.nan, 1), "50.1"),
        (Estimate(7, 0, 2), "7.0 ± 0.0"),
    ],
)
def test_estimates_in_words(found: Estimate, text: str) -> None:
    assert str(found) == text


@given(pairs)
def test_paired_difference_is_scipys_paired_test_of_trial_means(tables: tuple[list[list[float]], ...]) -> None:
    first, second = (np.array(table) for table in tables)
    differences = (first - second).mean(0)
    assume(differences.std() > 1e-6)
    found = paired_difference(by_target(tables[0]), by_target(tables[1]))
    reference = stats.ttest_rel(first.mean(0), second.mean(0))
    assert found.mean == pytest.approx(differences.mean(), abs=1e-9)
    assert found.error == pytest.approx(stats.sem(differences), rel=1e-6)
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-5, abs=1e-12)
    assert found.count == first.shape[1]


@given(pairs)
def test_the_difference_turns_its_sign_with_the_order(tables: tuple[list[list[float]], ...]) -> None:
    there = paired_difference(by_target(tables[0]), by_target(tables[1]))
    back = paired_difference(by_target(tables[1]), by_target(tables[0]))
    assert back.mean == pytest.approx(-there.mean)
    assert back.p_value == pytest.approx(there.p_value, rel=1e-6, nan_ok=True)


def test_the_trial_is_the_unit_not_the_cell() -> None:
    # Targets that differ much from each other, and trials that hardly do: four cells, but two pairs.
    first = {"easy": [90.0, 91.0], "hard": [30.0, 31.5]}
    second = {"easy": [88.0, 89.0], "hard": [29.0, 30.0]}
    found = paired_difference(first, second)
    assert found.count == 2
    assert found.mean == pytest.approx(1.625)  # of 1.5 and 1.75
    assert found.error == pytest.approx(0.125)
    assert found.p_value == pytest.approx(stats.ttest_1samp([1.5, 1.75], 0).pvalue)


def test_targets_and_trials_that_one_lacks_are_left_out() -> None:
    first = {"a": [10.0, 20.0, 30.0], "b": [1.0, 2.0], "only": [99.0, 99.0, 99.0]}
    second = {"b": [0.0, 0.0, 0.0], "a": [9.0, 18.0, 0.0]}
    found = paired_difference(first, second)
    assert found.count == 2
    assert found.mean == pytest.approx(((1 + 1) / 2 + (2 + 2) / 2) / 2)


def test_equal_and_constant_differences() -> None:
    same = {"a": [50.0, 60.0, 70.0]}
    assert math.isnan(paired_difference(same, same).p_value)
    higher = {"a": [51.0, 61.0, 71.0]}
    found = paired_difference(higher, same)
    assert (found.mean, found.error) == (1.0, 0.0)
    assert math.isnan(found.p_value)  # equal pairs of a few trials prove nothing


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([51.2, 48.3], [50.1, 47.2]),  # equal but for floating point
        # Two images of 276 more each time, in figures of three decimals.
        *[([round(100 * (k + 2) / 276, 3) for k in counts], [round(100 * k / 276, 3) for k in counts])
          for counts in ((100, 133, 171), (5, 6, 7), (250, 31, 99))],
    ],
)  # fmt: skip
def test_differences_that_are_equal_but_for_rounding_have_no_p_value(first: list[float], second: list[float]) -> None:
    found = paired_difference({"a": first}, {"a": second})
    assert found.error < 1e-3
    assert math.isnan(found.p_value)


def test_differences_of_one_image_in_many_have_a_p_value() -> None:
    found = paired_difference({"a": [50.01, 50.02]}, {"a": [50.0, 50.0]})
    assert 0 < found.p_value < 1


@pytest.mark.parametrize(
    ("first", "second"), [({"a": [1.0]}, {"a": [2.0]}), ({"a": []}, {"a": []}), ({"a": [1.0]}, {})]
)
def test_too_few_pairs_have_no_p_value(first: dict[str, list[float]], second: dict[str, list[float]]) -> None:
    found = paired_difference(first, second)
    assert math.isnan(found.p_value)
    assert math.isnan(found.error)
    assert found.count == (1 if second.get("a") else 0)


def test_trial_means_are_over_the_trials_that_every_target_has() -> None:
    assert trial_means({"a": [1.0, 2.0, 3.0], "b": [3.0, 6.0]}) == [2.0, 4.0]
    assert trial_means({"a": [1.0], "b": []}) == []
    assert trial_means({}) == []
