"""What a sweep varies: rules that are read or refused, draws that are functions of names and numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from domainfusion.config import TrainConfig
from domainfusion.errors import UsageError
from domainfusion.experiments.hyperparameters import with_values
from domainfusion.seeding import seed_hash
from domainfusion.sweep.options import sweep_values
from domainfusion.sweep.spaces import (
    Dimension,
    Place,
    RandomDraws,
    parse_dimension,
    parse_space,
    read_overrides,
)  # fmt: skip

PLACE = Place("erm", "images", "photo", 0)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("lr=uniform(0, 0.5)", Dimension("lr", "uniform", (0, 0.5))),
        ("lr = loguniform( 1e-5 , 1e-3 )", Dimension("lr", "loguniform", (1e-5, 1e-3))),
        ("batch-size=randint(4,32)", Dimension("batch_size", "randint", (4, 32))),
        ("freeze_bn=choice(true, False)", Dimension("freeze_bn", "choice", (True, False))),
        ("distill.residual=choice(plain,'contrast')", Dimension("distill.residual", "choice", ("plain", "contrast"))),
    ],
)
def test_a_rule_is_read(rule: str, expected: Dimension) -> None:
    assert parse_dimension(rule) == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("lr", "is none of NAME=uniform"),
        ("lr=normal(0,1)", "is none of NAME=uniform"),
        ("lr=uniform(1)", "two numbers"),
        ("lr=uniform(a,b)", "two numbers"),
        ("lr=uniform(2,1)", "LOW is below HIGH"),
        ("lr=loguniform(0,1)", "and above 0"),
        ("batch_size=randint(1,2.5)", "whole numbers"),
        ("lr=choice()", "nothing to choose from"),
        ("stesp=randint(1,2)", "unknown option 'stesp'; did you mean 'steps'"),
        ("distil.samples=randint(1,2)", "unknown option 'distil'; did you mean 'distill'"),
        ("lr=uniform(-1,1)", r"lr = -1: .*greater than 0"),
        ("dropout=choice(0.5,2)", "dropout = 2"),
        ("target=choice(photo,sketch)", "the same data, trials and seeds"),
        ("data.size=choice(32,64)", "the same data, trials and seeds"),
    ],
)
def test_a_wrong_rule_is_refused_before_anything_runs(rule: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_space([rule], TrainConfig())


def test_a_name_may_vary_once() -> None:
    with pytest.raises(UsageError, match="gives lr twice"):
        parse_space(["lr=uniform(0.1,1)", "lr=choice(1.0)"], TrainConfig())


def test_values_are_spread_as_the_rule_says() -> None:
    rng = np.random.RandomState(0)
    logs = np.array([math.log10(Dimension("lr", "loguniform", (1e-4, 1e-2)).sample(rng)) for _ in range(2000)])
    assert logs.min() >= -4
    assert logs.max() <= -2
    assert abs(logs.mean() + 3) < 0.05
    assert abs(logs.std() - 2 / math.sqrt(12)) < 0.03
    whole = [Dimension("n", "randint", (2, 5)).sample(rng) for _ in range(400)]
    assert set(whole) == {2, 3, 4, 5}
    assert {type(value) for value in whole} == {int}
    chosen = [Dimension("n", "choice", ("a", True)).sample(rng) for _ in range(100)]
    assert set(chosen) == {"a", True}


def test_a_draw_is_a_function_of_its_number_the_trial_and_the_option() -> None:
    lr, dropout = parse_dimension("lr=loguniform(1e-4,1e-2)"), parse_dimension("dropout=uniform(0,0.5)")
    draws = RandomDraws((lr, dropout))
    assert draws.draw(PLACE, 0, ()) == {}
    first = draws.draw(PLACE, 1, ())
    expected = np.random.RandomState(seed_hash(seed_hash(1, 0), "dropout")).uniform(0, 0.5)
    assert first["dropout"] == expected
    # Another option more or less, another algorithm or target: the same values.
    assert RandomDraws((dropout,)).draw(PLACE, 1, ()) == {"dropout": expected}
    assert draws.draw(Place("coral", "images", "sketch", 0), 1, ()) == first
    others = [draws.draw(PLACE, 2, ()), draws.draw(Place("erm", "images", "photo", 1), 1, ())]
    assert all(other["lr"] != first["lr"] and other["dropout"] != first["dropout"] for other in others)


def test_overrides_are_laid_over_options_and_read_back() -> None:
    config = with_values(TrainConfig(target="photo"), {"lr": 0.5, "distill.samples": 3}, "draw 1")
    assert (config.lr, config.distill.samples, config.target) == (0.5, 3, "photo")
    assert config.distill.guidance == TrainConfig().distill.guidance
    space = parse_space(["lr=uniform(0.1,1)", "distill.samples=randint(1,4)"], TrainConfig())
    assert read_overrides(config, space) == {"lr": 0.5, "distill.samples": 3}


def test_a_file_may_nest_its_space() -> None:
    given = {"trials": 2, "space": {"lr": "loguniform(1e-4, 1e-2)", "distill": {"samples": [1, 2]}}}
    assert sweep_values(given) == {
        "trials": 2, "space": ["lr=loguniform(1e-4, 1e-2)", "distill.samples=choice(1, 2)"]
    }  # fmt: skip
    assert sweep_values({"space": ["lr=choice(1.0)"]}) == {"space": ["lr=choice(1.0)"]}
