from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.data.batches import draw_rows, steps_per_epoch
from domainfusion.data.splits import Split
from domainfusion.seeding import seed_hash


def build(counts: dict[str, int]) -> Split:
    train, start = {}, 0
    for domain, count in counts.items():
        train[domain] = np.arange(start, start + count)
        start += count
    none = np.empty(0, dtype=np.int64)
    return Split("domainbed", 0, "t", tuple(counts), train, dict.fromkeys(counts, none), none, none)


SPLIT = build({"a": 30, "b": 7, "c": 100})


@given(st.integers(1, 40), st.integers(0, 2**62), st.integers(0, 10**6))
def test_every_domain_gives_its_share_in_order(batch_size: int, seed: int, step: int) -> None:
    rows = draw_rows(SPLIT, batch_size, seed, step).reshape(3, batch_size)
    for found, domain in zip(rows, SPLIT.sources, strict=True):
        assert set(found.tolist()) <= set(SPLIT.train[domain].tolist())


def test_rows_are_a_function_of_seed_and_step() -> None:
    assert draw_rows(SPLIT, 16, 0, 5).tolist() == draw_rows(SPLIT, 16, 0, 5).tolist()
    assert draw_rows(SPLIT, 16, 0, 5).tolist() != draw_rows(SPLIT, 16, 0, 6).tolist()
    assert draw_rows(SPLIT, 16, 0, 5).tolist() != draw_rows(SPLIT, 16, 1, 5).tolist()


def test_rows_are_those_of_the_named_generator() -> None:
    rng = np.random.default_rng(seed_hash("batch", 3, 11))
    expected = [int(SPLIT.train[domain][rng.integers(0, n)]) for domain, n in (("a", 30),) for _ in range(1)]
    assert draw_rows(build({"a": 30}), 1, 3, 11).tolist() == expected


def test_rows_are_drawn_with_replacement_and_reach_every_image() -> None:
    assert len(set(draw_rows(SPLIT, 50, 0, 0)[50:100].tolist())) <= 7
    drawn = np.bincount(np.concatenate([draw_rows(SPLIT, 20, 0, step) for step in range(100)]), minlength=137)
    assert drawn.min() > 0
    # 2,000 draws of 30 rows each: far from uniform is beyond chance.
    assert drawn[:30].min() > 30
    assert drawn[:30].max() < 110


@pytest.mark.parametrize(
    ("counts", "batch_size", "steps"),
    [({"a": 30, "b": 7, "c": 100}, 16, 3), ({"a": 32, "b": 32}, 16, 2), ({"a": 1, "b": 1}, 16, 1), ({"a": 40}, 16, 2)],
)
def test_an_epoch_draws_as_many_images_as_there_are(counts: dict[str, int], batch_size: int, steps: int) -> None:
    assert steps_per_epoch(build(counts), batch_size) == steps
