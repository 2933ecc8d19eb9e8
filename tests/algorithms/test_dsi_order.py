"""The confidence order of DSI against the literal loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.algorithms.dsi import choose_logits
from domainfusion.config import DSIConfig
from literal_dsi import literal_order


@given(
    st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([0.1, 0.5, 0.6, 0.9, 1.0]), st.sampled_from(["original", "last"]),
)  # fmt: skip
def test_the_confidence_order_is_the_literal_loops(
    seed: int, images: int, sources: int, starts: int, threshold: float, unsure: Any
) -> None:
    rng = np.random.default_rng(seed)
    plain = torch.from_numpy(rng.normal(size=(images, 4)) * 1.5)
    translated = torch.from_numpy(rng.normal(size=(starts, sources, images, 4)) * 3)
    asked: list[tuple[int, list[int]]] = []

    def of(number: int, waiting: np.ndarray) -> torch.Tensor:
        asked.append((number, waiting.tolist()))
        return translated[number][:, waiting]

    config = DSIConfig(starts=tuple(0.1 * (k + 1) for k in range(starts)), threshold=threshold, unsure=unsure)
    logits, accepted = choose_logits(plain, of, config)
    wanted, where = literal_order(plain.tolist(), translated.tolist(), threshold, unsure)
    assert accepted.tolist() == where
    np.testing.assert_allclose(logits.numpy(), wanted, rtol=1e-12)
    # Nothing is asked for that was accepted before.
    needed = [(s, [i for i in range(images) if not 0 <= where[i] <= s]) for s in range(starts)]
    assert asked == [(s, left) for s, left in needed if left]


def test_a_confidence_equal_to_the_threshold_is_not_enough() -> None:
    """It is to exceed it; of equal logits of two classes it is 0.5 exactly."""
    plain, made = torch.zeros(1, 2), torch.tensor([[[4.0, 0.0]]])
    logits, accepted = choose_logits(plain, lambda number, waiting: made, DSIConfig(starts=(0.1,), threshold=0.5))
    assert (logits.tolist(), accepted.tolist()) == ([[2.0, 0.0]], [1])


def test_a_threshold_below_chance_takes_every_image_as_it_is() -> None:
    """The threshold of the authors' README, 0.1, is below 1/7: on PACS nothing is ever translated."""
    plain = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) * 0.01

    def never(number: int, waiting: np.ndarray) -> torch.Tensor:
        raise AssertionError(f"start step {number} was asked for")

    logits, accepted = choose_logits(plain, never, DSIConfig(threshold=0.1))
    assert torch.equal(logits, plain)
    assert (accepted == 0).all()
