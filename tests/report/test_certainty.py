"""What is said of how far a figure can be trusted."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from domainfusion.report.certainty import binomial_error, sure_of_one
from domainfusion.results.statistics import Estimate


@pytest.mark.parametrize(("percent", "share"), [(30.0, 0.3), (0.0, 0.01), (100.0, 0.99), (0.5, 0.01)])
def test_no_figure_looks_certain(percent: float, share: float) -> None:
    """Half an image of 50 is a per cent."""
    assert binomial_error(percent, 50) == pytest.approx(100 * math.sqrt(share * (1 - share) / 50))


@pytest.mark.parametrize(("difference", "shown"), [(9.9, False), (10.1, True), (-9.9, False), (-10.1, True)])
def test_a_difference_counts_from_two_standard_errors_on(difference: float, shown: bool) -> None:
    arms = [SimpleNamespace(title="DomainFusion"), SimpleNamespace(title="ERM")]
    figures = [Estimate(50 + difference, 3.0, 1), Estimate(50.0, 4.0, 1)]
    said = " ".join(sure_of_one(list(zip(arms, figures, strict=True)), [200, 200], ""))
    assert f"The difference of {difference:+.1f} points has a standard error of about ± 5.0" in said
    assert ("hardly chance" in said, "does not show that one is better" in said) == (shown, not shown)
