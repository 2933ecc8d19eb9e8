from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.seeding import derive_numpy_rng, seed_hash


def test_golden_values_of_domainbed() -> None:
    assert [seed_hash(0, i) for i in range(4)] == [894182419, 1514274641, 1325548499, 1796103049]


@given(st.lists(st.integers(-(2**40), 2**40) | st.text() | st.booleans(), max_size=4))
def test_the_seed_is_domainbeds_formula(args: list[object]) -> None:
    assert seed_hash(*args) == int(hashlib.md5(str(tuple(args)).encode("utf-8")).hexdigest(), 16) % (2**31)


@given(st.integers(-(2**31), 2**31 - 1))
def test_numpy_integers_count_as_plain_ones(value: int) -> None:
    assert seed_hash("step", np.int64(value)) == seed_hash("step", np.int32(value)) == seed_hash("step", value)


def test_generators_are_functions_of_their_names() -> None:
    first, again = derive_numpy_rng("batch", 0, 7), derive_numpy_rng("batch", 0, 7)
    assert first.integers(1 << 60, size=5).tolist() == again.integers(1 << 60, size=5).tolist()
    reference = np.random.default_rng(seed_hash("batch", 0, 7)).random(3)
    assert derive_numpy_rng("batch", 0, 7).random(3).tolist() == reference.tolist()
    assert derive_numpy_rng("batch", 0, 8).random(3).tolist() != reference.tolist()
