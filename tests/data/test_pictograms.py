"""The embedded benchmark: its pixels, counts, folds and licences."""

from __future__ import annotations

import importlib.resources

import numpy as np
import pyarrow.parquet
import pytest

from domainfusion.data import pictograms as module
from domainfusion.data.pictograms import CLASSES, DOMAINS, FOLDS, PIXEL_HASH, Pictograms, hash_pixels, load_pictograms

COUNTS = {"render3d": 671, "flat": 683, "ink": 553, "pixel": 670, "clipart": 948}
RESOURCES = importlib.resources.files(module)


@pytest.fixture(scope="module")
def pictograms() -> Pictograms:
    return load_pictograms()


def test_pixels_and_labels_are_the_published_ones(pictograms: Pictograms) -> None:
    assert hash_pixels(pictograms) == PIXEL_HASH


def test_hash_sees_every_part(pictograms: Pictograms) -> None:
    part = Pictograms(*(getattr(pictograms, name)[:3].copy() for name in pictograms.__dataclass_fields__))
    before = hash_pixels(part)
    for column in (part.domains, part.classes, part.keys):
        kept = column[2]
        column[2] = "x"
        assert hash_pixels(part) != before
        column[2] = kept
    part.images[2, 63, 63, 2] ^= 1
    assert hash_pixels(part) != before


def test_shapes_and_types(pictograms: Pictograms) -> None:
    count = sum(COUNTS.values())
    assert len(pictograms) == count == 3525
    assert pictograms.images.shape == (count, 64, 64, 3)
    assert pictograms.images.dtype == np.uint8
    assert pictograms.folds.dtype == np.int64
    for column in (pictograms.domains, pictograms.classes, pictograms.keys, pictograms.names):
        assert column.shape == (count,)
        assert all(column.tolist())


def test_counts(pictograms: Pictograms) -> None:
    assert {domain: int((pictograms.domains == domain).sum()) for domain in DOMAINS} == COUNTS
    for domain in DOMAINS:
        assert set(pictograms.classes[pictograms.domains == domain].tolist()) == set(CLASSES)
    assert len(CLASSES) == 16


def test_order_is_by_domain_and_keys_are_unique_in_one(pictograms: Pictograms) -> None:
    assert list(dict.fromkeys(pictograms.domains.tolist())) == list(DOMAINS)
    pairs = list(zip(pictograms.domains.tolist(), pictograms.keys.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)


def test_no_picture_is_blank(pictograms: Pictograms) -> None:
    flat = pictograms.images.reshape(len(pictograms), -1)
    assert (np.ptp(flat, axis=1) > 20).all()


def test_a_key_has_one_fold_class_and_name_in_all_domains(pictograms: Pictograms) -> None:
    facts: dict[str, set[tuple[int, str, str]]] = {}
    columns = (pictograms.keys, pictograms.folds, pictograms.classes, pictograms.names)
    for key, *fact in zip(*(column.tolist() for column in columns), strict=True):
        facts.setdefault(key, set()).add(tuple(fact))
    assert all(len(values) == 1 for values in facts.values())


def test_folds_are_stratified_by_class(pictograms: Pictograms) -> None:
    clipart = pictograms.domains == "clipart"
    for label in CLASSES:
        for chosen in (clipart, ~clipart):
            mask = chosen & (pictograms.classes == label)
            fold_of = dict(zip(pictograms.keys[mask].tolist(), pictograms.folds[mask].tolist(), strict=True))
            sizes = np.bincount(list(fold_of.values()), minlength=FOLDS)
            assert len(sizes) == FOLDS
            assert np.ptp(sizes) <= 1, label


def test_every_fold_of_a_domain_has_every_class(pictograms: Pictograms) -> None:
    columns = (pictograms.domains, pictograms.folds, pictograms.classes)
    cells = set(zip(*(column.tolist() for column in columns), strict=True))
    assert len(cells) == len(DOMAINS) * FOLDS * len(CLASSES)


def test_pixel_is_made_of_4x4_blocks_in_two_colours(pictograms: Pictograms) -> None:
    images = pictograms.images[pictograms.domains == "pixel"]
    blocks = images[:, ::4, ::4]
    assert (np.repeat(np.repeat(blocks, 4, axis=1), 4, axis=2) == images).all()
    assert set(np.unique(blocks).tolist()) == {0, 255}


def test_every_row_has_its_domains_licence_and_clipart_its_author() -> None:
    with (RESOURCES / "pictograms.parquet").open("rb") as file:
        table = pyarrow.parquet.read_table(file, columns=["domain", "licence", "author", "capped"])
    rows = table.to_pylist()
    assert {(row["domain"], row["licence"]) for row in rows} == {
        ("render3d", "MIT"),
        ("flat", "CC-BY-4.0"),
        ("ink", "Symbola free-use"),
        ("pixel", "OFL-1.1"),
        ("clipart", "Public domain"),
    }
    assert all(bool(row["author"]) == (row["domain"] == "clipart") for row in rows)
    assert sum(row["capped"] for row in rows) == 3311


def test_licences_name_every_domain_and_its_terms() -> None:
    text = (RESOURCES / "LICENCES.md").read_text(encoding="utf-8")
    for domain, count in COUNTS.items():
        assert f"\n## {domain}: " in text
        assert f"| `{domain}` | {count} |" in text
    for words in (
        "Permission is hereby granted, free of charge",
        "https://creativecommons.org/licenses/by/4.0/",
        "rasterized to 64x64",
        "free for any use",
        "SIL OPEN FONT LICENSE Version 1.1",
        "public domain",
    ):
        assert words in text
