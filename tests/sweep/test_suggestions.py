"""Optuna's proposals: better than chance, the same again after a restart, each study by itself."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

pytest.importorskip("optuna")

from domainfusion.sweep.spaces import Observation, Place, parse_dimension
from domainfusion.sweep.suggestions import OptunaDraws

SPACE = (parse_dimension("lr=loguniform(1e-5,1e-1)"), parse_dimension("batch_size=choice(8,16)"))
DRAWS = OptunaDraws(SPACE, startup=4)
PLACE = Place("erm", "images", "photo", 0)


def value_of(overrides: Any) -> float:
    """Best at lr = 1e-2 with batches of 16."""
    return 1 - abs(math.log10(overrides["lr"]) + 2) / 4 - 0.1 * (overrides["batch_size"] == 8)


def study(place: Place, count: int) -> list[Observation]:
    seen: list[Observation] = [({"lr": 1e-3, "batch_size": 16}, 0.7)]
    for number in range(1, count):
        overrides = DRAWS.draw(place, number, seen[: DRAWS.needed(number)])
        seen.append((dict(overrides), value_of(overrides)))
    return seen


def test_random_draws_wait_for_none_and_proposals_for_all_before() -> None:
    assert [DRAWS.needed(number) for number in range(6)] == [0, 0, 0, 0, 4, 5]
    assert DRAWS.draw(PLACE, 0, ()) == {}
    assert set(DRAWS.draw(PLACE, 2, ())) == {"lr", "batch_size"}


def test_proposals_are_better_than_the_random_draws() -> None:
    found = [study(Place("erm", "images", "photo", trial), 16) for trial in range(3)]
    random = [value for seen in found for _, value in seen[1:4]]
    late = [value for seen in found for _, value in seen[10:]]
    assert statistics.fmean(late) > statistics.fmean(random) + 0.1


def test_the_same_observations_propose_the_same_and_others_others() -> None:
    seen = study(PLACE, 6)
    again = DRAWS.draw(PLACE, 6, list(seen))
    assert DRAWS.draw(PLACE, 6, seen) == again
    assert DRAWS.draw(Place("erm", "images", "sketch", 0), 6, seen) != again
    assert all(item.name in again and again[item.name] in item for item in SPACE)


def test_a_failed_draw_and_one_outside_the_space_say_nothing() -> None:
    seen = study(PLACE, 5)
    more: list[Observation] = [*seen, ({"lr": 1e-2, "batch_size": 16}, None), ({"lr": 1.0, "batch_size": 16}, 1.0)]
    assert DRAWS.draw(PLACE, 7, more) == DRAWS.draw(PLACE, 7, seen)
