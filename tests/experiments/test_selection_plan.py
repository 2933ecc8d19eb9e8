"""Which runs leave-one-domain-out selection makes, with which seeds, and what it refuses before the first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from domainfusion.config import AverageConfig
from domainfusion.errors import UsageError
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.experiments.search import Plan, PlannedRun, Search
from domainfusion.seeding import seed_hash
from searching import DOMAINS, OPTIONS


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "data": "d", "config": OPTIONS, "algorithms": ["erm"], "trials": [0], "targets": list(DOMAINS),
        "domains": DOMAINS, "dataset": "PACS", "folder": Path("f"), "search": Search(), **changes,
    }  # fmt: skip
    return Plan(**values)


def test_pairs_are_shared_between_targets() -> None:
    search = Search(selection="leave-one-domain-out", draws=(0, 1))
    runs = plan(search=search, algorithms=["erm", "diffusion_net"]).runs()
    assert len(runs) == len(set(runs)) == 4 * (2 + 1) + 6 * 2
    # What is not trained is not selected either: one run for each target.
    assert all((run.draw, run.second) == (0, None) for run in runs if run.algorithm == "diffusion_net")


def test_seeds_are_the_trials_or_domainbeds() -> None:
    run = PlannedRun(2, "photo", "erm", 1, "art")
    plain = plan(config=dataclasses.replace(OPTIONS, seed=10)).options(run)
    assert (plain.seed, plain.trial, plain.hparams_seed) == (12, 2, 1)
    assert (plain.target, plain.second_target) == ("photo", "art")
    hashed = plan(search=Search(seeds="domainbed")).options(run)
    assert hashed.seed == seed_hash("PACS", "ERM", [0, 2], 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epochs": 3}, "--epochs: give --steps"), ({"average": AverageConfig(method="swad")}, "--average.method swad")],
)
def test_runs_without_common_steps_are_refused_at_once(
    four_domains: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = dataclasses.replace(OPTIONS, **changes)
    search = Search(selection="leave-one-domain-out")
    with pytest.raises(UsageError, match=message):
        run_benchmark(str(four_domains), config, ["erm"], [0], None, tmp_path / "b", search=search)
    assert not (tmp_path / "b").exists()


def test_methods_that_are_tested_once_are_refused_at_once(four_domains: Path, tmp_path: Path) -> None:
    search = Search(selection="leave-one-domain-out")
    with pytest.raises(UsageError, match="dsi is tested once"):
        run_benchmark(str(four_domains), OPTIONS, ["erm", "dsi"], [0], None, tmp_path / "b", search=search)
    assert not (tmp_path / "b").exists()


def test_two_domains_are_too_few(make_image_folder: Any, tmp_path: Path) -> None:
    two = make_image_folder("two", domains=("art", "photo"))
    with pytest.raises(UsageError, match="two has 2"):
        run_benchmark(
            str(two), OPTIONS, ["erm"], [0], None, tmp_path / "b", search=Search(selection="leave-one-domain-out")
        )
