from __future__ import annotations

import pytest

from domainfusion.data.benchmarks import BENCHMARKS, Benchmark, get_benchmark, plain, recognise
from domainfusion.errors import UsageError

ALL = pytest.mark.parametrize("entry", BENCHMARKS.values(), ids=BENCHMARKS)


@ALL
def test_names_sort_as_folders_do(entry: Benchmark) -> None:
    assert list(entry.domains) == sorted(entry.domains)
    assert list(entry.class_names) == sorted(entry.class_names)
    assert len(entry.counts) == len(entry.domains)


def test_sizes_are_the_published_ones() -> None:
    # DomainBed, arXiv 2007.01434, table 5; DomainNet's home page for the cleaned and the original version.
    assert {name: sum(entry.counts) for name, entry in BENCHMARKS.items()} == {
        "PACS": 9991, "VLCS": 10729, "OfficeHome": 15588, "TerraIncognita": 24788, "DomainNet": 586575,
    }  # fmt: skip
    assert {name: entry.classes for name, entry in BENCHMARKS.items()} == {
        "PACS": 7, "VLCS": 5, "OfficeHome": 65, "TerraIncognita": 10, "DomainNet": 345,
    }  # fmt: skip
    # 9,431 duplicates were removed from the first release (as published with the cleaned version).
    assert sum(BENCHMARKS["DomainNet"].versions[0].counts) == sum(BENCHMARKS["DomainNet"].counts) + 9431 == 596006


@ALL
def test_counts_by_class_add_up(entry: Benchmark) -> None:
    for domain, counts in entry.class_counts.items():
        assert len(counts) == entry.classes
        assert sum(counts) == entry.counts[entry.domains.index(domain)]


@ALL
def test_no_spelling_stands_for_two_names(entry: Benchmark) -> None:
    for names, aliases in ((entry.domains, entry.domain_aliases), (entry.class_names, entry.class_aliases)):
        assert set(aliases) <= set(names)
        spellings = [plain(name) for name in names]
        spellings += [plain(alias) for name, others in aliases.items() for alias in others]
        assert len(spellings) == len(set(spellings))


@ALL
def test_a_benchmark_is_recognised_by_its_names(entry: Benchmark) -> None:
    assert recognise(entry.domains, entry.class_names) is entry
    # One domain and half the classes are enough; spelling does not matter.
    half = [name.upper() for name in entry.class_names[: -(-entry.classes // 2)]]
    assert recognise([entry.domains[0].replace(" ", "_").upper()], half) is entry


@pytest.mark.parametrize(
    ("domains", "classes"),
    [
        (["cartoon", "photo", "sketch"], ["cat", "dog", "house"]),  # a few common names
        (["a", "b"], BENCHMARKS["PACS"].class_names),
        (["photo", "a", "b"], BENCHMARKS["PACS"].class_names),
        (["photo", "sketch"], [*BENCHMARKS["PACS"].class_names, "a", "b"]),
        (["photo"], []),
        ([], ["dog"]),
    ],
)
def test_other_folders_are_no_benchmark(domains: list[str], classes: list[str]) -> None:
    assert recognise(domains, classes) is None


def test_domains_that_two_benchmarks_have_are_told_apart_by_classes() -> None:
    for name in ("OfficeHome", "DomainNet"):
        assert recognise(["Clipart"], BENCHMARKS[name].class_names) is BENCHMARKS[name]
    for name in ("PACS", "DomainNet"):
        assert recognise(["sketch"], BENCHMARKS[name].class_names) is BENCHMARKS[name]


def test_the_release_of_vlcs_in_splits_has_other_names() -> None:
    vlcs = get_benchmark("vlcs")
    assert [vlcs.domain_of(name) for name in ("CALTECH", "LABELME", "SUN", "PASCAL")] == list(vlcs.domains)
    assert [vlcs.class_of(str(number)) for number in range(5)] == list(vlcs.class_names)
    assert vlcs.class_of("5") is None


def test_an_unknown_benchmark_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown benchmark 'PACKS'; did you mean 'PACS'\?"):
        get_benchmark("PACKS")
