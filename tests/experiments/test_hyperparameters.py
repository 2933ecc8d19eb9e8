"""Draws of hyperparameters against DomainBed's own records, its formulae written out, and spaces of one's own."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domainfusion.config import TrainConfig
from domainfusion.errors import UsageError
from domainfusion.experiments.hyperparameters import draw_options, draw_values, read_space
from domainfusion.experiments.search import PlannedRun, domainbed_seed

VLCS = ("Caltech101", "LabelMe", "SUN09", "VOC2007")


def drawn(algorithm: str, hparams_seed: int, trial: int, data: str = "PACS", **more: Any) -> TrainConfig:
    config = TrainConfig(algorithm=algorithm, hparams_seed=hparams_seed, trial=trial)
    return draw_options(config, data, **more)


# From the records that DomainBed ships (domainbed/misc/test_sweep_data): ERM on VLCS, hparams_seed 1.
@pytest.mark.parametrize(
    ("trial", "lr", "batch_size", "dropout", "weight_decay"),
    [(0, 2.7028930742148706e-05, 39, 0.5, 0.00044832883881609976),
     (1, 2.2352558725944602e-05, 8, 0.5, 1.9967320578799288e-06)],
)  # fmt: skip
def test_draws_are_those_that_domainbed_recorded(
    trial: int, lr: float, batch_size: int, dropout: float, weight_decay: float
) -> None:
    config = drawn("erm", 1, trial, "VLCS")
    assert (config.lr, config.weight_decay) == (pytest.approx(lr, rel=1e-14), pytest.approx(weight_decay, rel=1e-14))
    assert (config.batch_size, config.dropout) == (batch_size, dropout)


def test_seeds_of_runs_are_those_that_domainbed_recorded() -> None:
    assert domainbed_seed(PlannedRun(0, "Caltech101", "erm", 0), "VLCS", VLCS) == 1721972278
    assert domainbed_seed(PlannedRun(1, "Caltech101", "erm", 1), "vlcs", VLCS) == 1826196677
    for target, second in (("LabelMe", "SUN09"), ("SUN09", "LabelMe")):
        assert domainbed_seed(PlannedRun(0, target, "erm", 1, second), "VLCS", VLCS) == 360234358


def random_of(hparams_seed: int, trial: int, name: str) -> np.random.RandomState:
    def seed(*words: Any) -> int:
        return int(hashlib.md5(str(words).encode("utf-8")).hexdigest(), 16) % (2**31)

    return np.random.RandomState(seed(seed(hparams_seed, trial), name))


@pytest.mark.parametrize("algorithm", ["erm", "mixup", "groupdro", "coral", "rsc", "mixstyle", "domainfusion"])
@pytest.mark.parametrize(("hparams_seed", "trial"), [(1, 0), (2, 1), (19, 2)])
def test_every_method_draws_by_domainbeds_formulae(algorithm: str, hparams_seed: int, trial: int) -> None:
    def r(name: str) -> np.random.RandomState:
        return random_of(hparams_seed, trial, name)

    expected: dict[str, Any] = {
        "lr": 10 ** r("lr").uniform(-5, -3.5), "weight_decay": 10 ** r("weight_decay").uniform(-6, -2),
        "batch_size": int(2 ** r("batch_size").uniform(3, 5.5)),
        "dropout": r("resnet_dropout").choice([0.0, 0.1, 0.5]),
    }  # fmt: skip
    groups: dict[str, dict[str, float]] = {
        "mixup": {"alpha": 10 ** r("mixup_alpha").uniform(-1, 1)},
        "groupdro": {"eta": 10 ** r("groupdro_eta").uniform(-3, -1)},
        "coral": {"weight": 10 ** r("mmd_gamma").uniform(-1, 1)},
        "rsc": {"feature_drop": r("rsc_f_drop_factor").uniform(0, 0.5),
                "batch_drop": r("rsc_b_drop_factor").uniform(0, 0.5)},
    }  # fmt: skip
    config = TrainConfig(algorithm=algorithm, hparams_seed=hparams_seed, trial=trial)
    if algorithm in groups:
        expected[algorithm] = dataclasses.replace(getattr(config, algorithm), **groups[algorithm])
    assert drawn(algorithm, hparams_seed, trial) == dataclasses.replace(config, **expected)


def test_batches_of_domainnet_are_smaller() -> None:
    seeds = range(1, 60)
    sizes = [drawn("erm", seed, 0, "some/where/domain_net").batch_size for seed in seeds]
    assert sizes == [int(2 ** random_of(seed, 0, "batch_size").uniform(3, 5)) for seed in seeds]
    assert max(sizes) < 32 < max(drawn("erm", seed, 0).batch_size for seed in seeds)


def test_domain_net_is_known_by_whatever_way_one_comes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "domain_net"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    config = TrainConfig(algorithm="erm", hparams_seed=1)
    monkeypatch.chdir(folder)
    sizes = {draw_options(config, data).batch_size for data in (".", str(tmp_path / "link"), str(folder), "DomainNet")}
    assert sizes == {draw_options(config, "domain_net").batch_size}
    assert sizes != {draw_options(config, "PACS").batch_size}


def test_draw_0_is_the_options_as_they_are() -> None:
    config = TrainConfig(algorithm="erm", lr=0.5)
    assert draw_options(config, "PACS") is config


def test_what_is_given_is_not_drawn() -> None:
    config = TrainConfig(algorithm="rsc", hparams_seed=3, lr=0.5)
    found = draw_options(config, "PACS", given={"lr", "rsc.batch_drop"})
    free = draw_options(config, "PACS")
    assert (found.lr, found.rsc.batch_drop) == (0.5, config.rsc.batch_drop)
    assert free.lr != 0.5
    assert (found.weight_decay, found.rsc.feature_drop) == (free.weight_decay, free.rsc.feature_drop)


def test_a_method_that_is_not_trained_has_nothing_to_draw() -> None:
    with pytest.raises(UsageError, match="diffusion_net is not trained"):
        drawn("diffusion_net", 1, 0)


SPACE = {
    "lr": [1e-4, 3e-4, 1e-3], "dropout": {"uniform": [0.1, 0.4]}, "weight_decay": {"log_uniform": [1e-6, 1e-2]},
    "batch_size": {"uniform": [4, 9]}, "generate": {"candidates": [1, 3, 5]},
    "generate.strength": [[0.5, 0.6], [0.7, 1.0]],
}  # fmt: skip


def test_a_space_of_ones_own_is_drawn_by_the_same_mechanism() -> None:
    found = [drawn("domainfusion", seed, 2, table=SPACE, origin="s.toml") for seed in range(1, 200)]
    for seed, config in enumerate(found, start=1):
        assert config.lr == random_of(seed, 2, "lr").choice([1e-4, 3e-4, 1e-3])
        assert config.dropout == random_of(seed, 2, "dropout").uniform(0.1, 0.4)
        assert config.weight_decay == pytest.approx(10 ** random_of(seed, 2, "weight_decay").uniform(-6, -2))
        assert config.batch_size == int(random_of(seed, 2, "batch_size").uniform(4, 9))
    assert {config.generate.candidates for config in found} == {1, 3, 5}
    assert {config.generate.strength for config in found} == {(0.5, 0.6), (0.7, 1.0)}
    assert {config.batch_size for config in found} == {4, 5, 6, 7, 8}


def test_a_draw_does_not_depend_on_what_else_is_drawn() -> None:
    alone = draw_values(read_space({"lr": [1.0, 2.0, 3.0]}, "a"), 5, 1)
    both = draw_values(read_space({"dropout": [0.0], "lr": [1.0, 2.0, 3.0]}, "a"), 5, 1)
    assert alone["lr"] == both["lr"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"lrr": [1]}, r"s.toml: \[search\] lrr: no option to search over; did you mean 'lr'\?"),
        ({"seed": [1, 2]}, "seed: no option to search over"),
        ({"target": ["photo"]}, "target: no option to search over"),
        ({"lr": []}, r"lr = \[\]: give a list of choices"),
        ({"lr": 0.1}, "lr = 0.1: give a list of choices"),
        ({"lr": {"log_uniform": [0, 1]}}, "above 0 for log_uniform"),
        ({"lr": {"uniform": [2, 1]}}, "low below high"),
        ({"dropout": [0.1, 2]}, r"s.toml: \[search\]: dropout = 2"),
        ({"dropout": {"uniform": [0.1, 3]}}, r"\[search\]: dropout = 3"),
        ({"generate": {"candidates": [0]}}, "generate.candidates = 0"),
        ({"algorithm": ["erm"]}, "algorithm: no option to search over"),
    ],
)
def test_a_space_that_an_option_does_not_take_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_space(table, "s.toml")
