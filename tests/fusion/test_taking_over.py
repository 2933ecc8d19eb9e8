"""Candidates that another data set has of the same images: taken over, and not made again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from domainfusion.claims import take
from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.fusion.ahead import Order
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path, cached_anywhere, cached_elsewhere
from domainfusion.fusion.candidates import Making

CONFIG = GenerateConfig(candidates=2, steps=2, batch_size=4)
STYLES = ("flat", "ink")
OLD = np.array([3, 40, 41, 90])


def part_of(dataset: MultiDomainDataset, rows: list[int], fingerprint: str = "part") -> MultiDomainDataset:
    """The images of `rows`, in that order, as a data set of its own."""
    return dataclasses.replace(
        dataset, images=np.array(dataset.images[rows]), labels=dataset.labels[rows],
        domain_of=dataset.domain_of[rows], keys=tuple(dataset.keys[row] for row in rows), fingerprint=fingerprint,
    )  # fmt: skip


def cache_of(ldm: LatentDiffusion, dataset: MultiDomainDataset, config: GenerateConfig = CONFIG) -> CandidateCache:
    return CandidateCache(cache_path(ldm, dataset, config, 0, STYLES), dataset, config)


def fill(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, rows: np.ndarray, config: GenerateConfig = CONFIG
) -> tuple[CandidateCache, list[int]]:
    """The cache with `rows` filled, and which of them were made."""
    made: list[int] = []

    class Watched(Making):
        def make(self, positions: np.ndarray) -> np.ndarray:
            made.extend(self.rows[positions].tolist())
            return super().make(positions)

    cache = cache_of(ldm, dataset, config)
    Watched(ldm, dataset, rows, config, number=0, styles=STYLES).fill(cache, progress=False)
    return cache, sorted(made)


def test_a_data_set_that_has_grown_makes_what_is_new(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    before, made = fill(ldm, part_of(dataset, OLD.tolist()), np.arange(4))
    assert made == [0, 1, 2, 3]
    rows = np.array([2, 3, 40, 41, 90, 91])
    order = Order.of_missing(ldm, dataset, rows, CONFIG, STYLES, [0])
    assert order.missing == {0: pytest.approx(2 / 6)}
    assert cached_anywhere(before.path.with_name("none.npy"), dataset, rows).sum() == 0  # by another recipe
    grown, made = fill(ldm, dataset, rows)
    assert made == [2, 91]
    assert np.array_equal(grown.images[OLD], before.images)
    alone = Making(ldm, dataset, rows, CONFIG, number=0, styles=STYLES).make(np.arange(6))
    assert np.abs(alone.astype(int) - grown.images[rows]).max() <= 1  # what they would have been
    assert not Order.of_missing(ldm, dataset, rows, CONFIG, STYLES, [0]).files


def test_where_labels_were_mended_the_others_are_taken_over(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    fill(ldm, dataset, OLD)
    labels = dataset.labels.copy()
    labels[40] = (labels[40] + 1) % 3
    _, made = fill(ldm, dataclasses.replace(dataset, labels=labels, fingerprint="mended"), OLD)
    assert made == [40]
    renamed = dataclasses.replace(dataset, class_words=("a", *dataset.words()[1:]))
    _, made = fill(ldm, renamed, OLD)
    assert made == [row for row in OLD if dataset.labels[row] == 0]


def test_recipes_are_not_mixed(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    fill(ldm, dataset, OLD)
    part = part_of(dataset, OLD.tolist())
    for options in ({"steps": 3}, {"seed": 1}, {"strength": (0.2, 0.3)}, {"candidates": 3}):
        _, made = fill(ldm, part, np.arange(2), dataclasses.replace(CONFIG, **options))
        assert made == [0, 1], options
    next(ldm.unet.parameters()).mul_(1.01)
    assert fill(ldm, part, np.arange(2))[1] == [0, 1]


def test_from_several_data_sets_each_image_once(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    for name, rows in (("one", [3, 40]), ("two", [40, 41]), ("three", [3])):
        fill(ldm, part_of(dataset, rows, name), np.arange(len(rows)))
    cache = cache_of(ldm, dataset)
    found = list(cached_elsewhere(cache.path, dataset, OLD))
    assert sorted(row for _, _, ours in found for row in ours) == [3, 40, 41]
    assert cache.take_over(OLD) == 3
    assert cache.take_over(OLD) == 0
    assert np.flatnonzero(cache.done).tolist() == [3, 40, 41]
    assert cache.intact(OLD).tolist() == [True, True, True, False]


def test_equal_images_in_one_data_set_are_both_served(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    fill(ldm, part_of(dataset, [40]), np.arange(1))
    twice = part_of(dataset, [40, 3, 40], "twice")
    cache, made = fill(ldm, twice, np.arange(3))
    assert made == [1]
    assert np.array_equal(cache.images[0], cache.images[2])


@pytest.mark.parametrize("damage", ["pixel", "sums", "keys", "images gone", "shape"])
def test_what_is_damaged_there_is_made(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, damage: str
) -> None:  # fmt: skip
    lender, _ = fill(ldm, part_of(dataset, OLD.tolist()), np.arange(4))
    whole = lender.images.copy()
    if damage == "pixel":
        lender.images[1, 0, 3, 3] ^= 64
    elif damage == "images gone":
        lender.path.unlink()
    elif damage == "shape":
        np.save(lender.path, whole[:, :1])
    else:
        Path(lender.path.with_suffix(f".{damage}.npy")).write_bytes(b"none")
    cache, made = fill(ldm, dataset, OLD)
    assert made == ([40] if damage == "pixel" else OLD.tolist())
    assert np.abs(cache.images[OLD].astype(int) - whole).max() <= 1


def test_a_row_that_another_process_makes_is_left_to_it(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ldm, part_of(dataset, OLD.tolist()), np.arange(4))
    cache = cache_of(ldm, dataset)
    monkeypatch.setattr(
        "domainfusion.claims.take", lambda descriptor, number: number != 41 and take(descriptor, number)
    )
    assert cache.take_over(OLD) == 3
    assert np.flatnonzero(cache.done).tolist() == [3, 40, 90]


def test_nothing_is_read_where_nothing_is_missing(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ldm, part_of(dataset, OLD.tolist()), np.arange(4))
    cache, _ = fill(ldm, dataset, OLD)
    monkeypatch.setattr(
        "domainfusion.fusion.candidate_cache.candidate_keys", lambda *_: pytest.fail("images were read")
    )
    assert cache.take_over(OLD) == 0
    assert cache.done[OLD].all()
