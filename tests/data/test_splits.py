from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.config import DataConfig
from domainfusion.data.domains import MultiDomainDataset, load_folder
from domainfusion.data.splits import STRICT_TRIALS, build_split, domainbed_order, domainbed_split, strict_split
from domainfusion.errors import UsageError
from domainfusion.seeding import seed_hash


def build_dataset(counts: tuple[int, ...], folded: bool = True) -> MultiDomainDataset:
    """Domains d0, d1, ... that draw the same keys k0, k1, ... in an order of their own; a key's fold is its own."""
    rng = np.random.default_rng(sum(counts))
    fold_of = rng.permutation(np.arange(max(counts)) % 5)
    keys = [rng.permutation(count) for count in counts]
    total = sum(counts)
    return MultiDomainDataset(
        name="synthetic", domains=tuple(f"d{i}" for i in range(len(counts))), classes=("a", "b", "c"),
        images=np.zeros((total, 8, 8, 3), dtype=np.uint8), labels=np.concatenate([k % 3 for k in keys]),
        domain_of=np.repeat(np.arange(len(counts)), counts), keys=tuple(f"k{key}" for key in np.concatenate(keys)),
        fingerprint="x", folds=np.concatenate([fold_of[k] for k in keys]) if folded else None,
    )  # fmt: skip


COUNTS = (50, 40, 63, 37)


class TestDomainBed:
    def test_golden_order_of_ten(self) -> None:
        assert domainbed_order(10, 0, 0).tolist() == [2, 3, 8, 1, 4, 5, 0, 9, 6, 7]

    def test_golden_hold_out_of_pacs_art_painting(self) -> None:
        dataset = build_dataset((2048, 20), folded=False)
        held = domainbed_split(dataset, 0, 0.2)["d0"]["out"]
        assert len(held) == 409
        assert held[:4].tolist() == [548, 677, 1997, 977]

    @given(st.integers(0, 100), st.integers(0, 4), st.integers(0, 3))
    def test_the_order_is_domainbeds_shuffle(self, count: int, trial: int, domain: int) -> None:
        keys = list(range(count))
        np.random.RandomState(seed_hash(trial, domain)).shuffle(keys)
        assert domainbed_order(count, trial, domain).tolist() == keys

    @pytest.mark.parametrize("fraction", [0.2, 0.5])
    def test_parts_share_out_every_domain(self, fraction: float) -> None:
        dataset = build_dataset(COUNTS, folded=False)
        parts = domainbed_split(dataset, 1, fraction)
        assert list(parts) == ["d0", "d1", "d2", "d3"]
        for number, (domain, part) in enumerate(parts.items()):
            assert sorted([*part["in"], *part["out"]]) == dataset.rows(number).tolist(), domain
            assert len(part["out"]) == int(fraction * COUNTS[number])
            order = dataset.rows(number)[domainbed_order(COUNTS[number], 1, number)]
            assert [*part["out"], *part["in"]] == order.tolist()

    def test_the_target_is_tested_on_its_in_part_and_takes_no_other_part(self) -> None:
        dataset = build_dataset(COUNTS, folded=False)
        parts = domainbed_split(dataset, 2, 0.2)
        split = build_split(dataset, DataConfig(protocol="domainbed"), "d2", 2)
        assert (split.protocol, split.trial, split.target, split.sources) == ("domainbed", 2, "d2", ("d0", "d1", "d3"))
        assert split.test.tolist() == parts["d2"]["in"].tolist()
        assert list(split.train) == list(split.validation) == ["d0", "d1", "d3"]
        for domain in split.sources:
            assert split.train[domain].tolist() == parts[domain]["in"].tolist()
            assert split.validation[domain].tolist() == parts[domain]["out"].tolist()

    def test_a_domains_split_does_not_depend_on_the_target(self) -> None:
        dataset = build_dataset(COUNTS, folded=False)
        config = DataConfig(protocol="domainbed")
        first, second = build_split(dataset, config, "d0", 0), build_split(dataset, config, "d1", 0)
        assert first.train["d3"].tolist() == second.train["d3"].tolist()

    def test_splits_differ_by_trial(self) -> None:
        dataset = build_dataset(COUNTS, folded=False)
        outs = [set(domainbed_split(dataset, trial, 0.2)["d0"]["out"].tolist()) for trial in range(4)]
        assert all(outs[i] != outs[j] for i in range(4) for j in range(i))


class TestStrict:
    @pytest.mark.parametrize("trial", range(STRICT_TRIALS))
    @pytest.mark.parametrize("target", ["d0", "d1", "d2", "d3"])
    def test_no_drawing_of_the_test_is_seen_before(self, target: str, trial: int) -> None:
        dataset = build_dataset(COUNTS)
        split = build_split(dataset, DataConfig(protocol="strict"), target, trial)
        tested = {dataset.keys[row] for row in split.test}
        trained = {dataset.keys[row] for rows in split.train.values() for row in rows}
        validated = {dataset.keys[row] for rows in split.validation.values() for row in rows}
        assert tested
        assert trained
        assert validated
        assert not tested & trained
        assert not tested & validated
        assert not trained & validated
        assert {dataset.domains[dataset.domain_of[row]] for row in split.test} == {target}
        for domain in split.sources:
            rows = np.concatenate([split.train[domain], split.validation[domain]])
            assert {dataset.domains[dataset.domain_of[row]] for row in rows} == {domain}

    @pytest.mark.parametrize("target", ["d0", "d3"])
    def test_five_trials_test_every_image_of_the_target_once(self, target: str) -> None:
        dataset = build_dataset(COUNTS)
        splits = [build_split(dataset, DataConfig(protocol="strict"), target, trial) for trial in range(5)]
        tested = np.concatenate([split.test for split in splits])
        assert sorted(tested.tolist()) == dataset.rows(dataset.index_of(target)).tolist()

    def test_the_folds_of_a_trial(self) -> None:
        dataset = build_dataset(COUNTS)
        assert dataset.folds is not None
        for trial in range(5):
            for part in strict_split(dataset, trial).values():
                assert set(dataset.folds[part["test"]]) == {trial}
                assert set(dataset.folds[part["out"]]) == {(trial + 1) % 5}
                assert set(dataset.folds[part["in"]]) == {(trial + i) % 5 for i in (2, 3, 4)}

    @pytest.mark.parametrize("trial", [5, -1])
    def test_there_are_five_trials(self, trial: int) -> None:
        with pytest.raises(UsageError, match=rf"trial {trial}: the strict protocol has the trials 0 to 4"):
            strict_split(build_dataset(COUNTS), trial)

    def test_folds_are_needed(self) -> None:
        with pytest.raises(UsageError, match=r"synthetic has no folds of its own; use --data\.protocol domainbed"):
            build_split(build_dataset(COUNTS, folded=False), DataConfig(protocol="strict"), "d0", 0)


@pytest.mark.parametrize("folded", [True, False])
def test_auto_is_strict_where_there_are_folds(folded: bool) -> None:
    split = build_split(build_dataset(COUNTS, folded), DataConfig(protocol="auto"), "d0", 0)
    assert split.protocol == ("strict" if folded else "domainbed")


@pytest.mark.parametrize("folded", [True, False])
def test_without_a_target_all_domains_train_and_nothing_is_tested(folded: bool) -> None:
    split = build_split(build_dataset(COUNTS, folded), DataConfig(), None, 0)
    assert split.sources == ("d0", "d1", "d2", "d3")
    assert split.target is None
    assert split.test.shape == (0,)


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown domain 'd7'; did you mean 'd"):
        build_split(build_dataset(COUNTS), DataConfig(), "d7", 0)


def test_a_source_too_small_to_validate_on_is_named(make_image_folder: Callable[..., Path]) -> None:
    dataset = load_folder(make_image_folder("few", count=1), DataConfig(size=8))  # 3 images a domain: int(0.2 * 3) = 0
    with pytest.raises(UsageError, match=r"domain cartoon has too few images \(3\).*--data\.holdout-fraction"):
        build_split(dataset, DataConfig(size=8), "photo", 0)
    assert len(build_split(dataset, DataConfig(size=8, holdout_fraction=0.4), "photo", 0).validation["sketch"]) == 1
