from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.mixup import Mixup, mixed_cross_entropy
from domainfusion.algorithms.pairing import pair_across_domains
from domainfusion.config import MixupConfig
from domainfusion.training.step import make_batch

Make = Callable[..., Algorithm]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 100))
def test_every_domain_is_once_on_either_side(counts: list[int], seed: int) -> None:
    starts = np.cumsum([0, *counts])
    domains = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    domain_of = np.repeat(np.arange(len(counts)), counts)
    pairs = pair_across_domains(domains, np.random.default_rng(seed))
    left = [set(domain_of[images]) for images, _ in pairs]
    right = [set(domain_of[partners]) for _, partners in pairs]
    assert sorted(map(sorted, left)) == sorted(map(sorted, right)) == [[i] for i in range(len(counts))]
    assert len(counts) == 1 or all(a != b for a, b in zip(left, right, strict=True))
    assert sorted(np.concatenate([images for images, _ in pairs])) == list(range(sum(counts)))
    for images, partners in pairs:
        used = np.bincount(partners, minlength=len(domain_of))[domains[next(iter(set(domain_of[partners])))]]
        assert len(images) == len(partners)
        assert used.max() - used.min() <= 1


def test_the_loss_is_the_mean_over_pairs_written_out(make_algorithm: Make) -> None:
    algorithm = make_algorithm("mixup", target=None)
    assert isinstance(algorithm, Mixup)
    algorithm.eval()  # each image by itself
    batch = make_batch(algorithm, 3)
    partner, share = algorithm.draw(batch)
    domain_of = algorithm.context.dataset.domain_of[batch.rows]
    assert len(set(domain_of)) == 3
    total, shares = 0.0, []
    for domain in range(3):
        mine = np.flatnonzero(domain_of == domain)
        assert len(set(share[mine].tolist())) == 1
        assert len(set(domain_of[partner[mine]])) == 1
        assert domain_of[partner[mine[0]]] != domain
        lam = share[mine[0]].item()
        shares.append(lam)
        for i in mine:
            j = int(partner[i])
            p = algorithm.predict(lam * batch.images[i : i + 1] + (1 - lam) * batch.images[j : j + 1])
            p = p.detach().double().numpy()[0]
            log_p = p - np.log(np.exp(p).sum())
            total -= lam * log_p[batch.labels[i]] + (1 - lam) * log_p[batch.labels[j]]
    assert len(set(shares)) == 3
    terms = algorithm.losses(batch)
    assert list(terms) == ["mixup_loss"]
    assert terms["mixup_loss"].item() == pytest.approx(total / len(batch.rows), rel=1e-5)


def test_the_gradient_is_right() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, partner = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([3, 4, 0, 2, 1])
    share = torch.tensor([0.1, 0.9, 0.5, 0.3, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mixed_cross_entropy(x, labels, partner, share), logits)


def test_shares_are_beta_distributed_and_a_function_of_the_step(make_algorithm: Make) -> None:
    algorithm = make_algorithm("mixup", mixup=MixupConfig(alpha=0.5))
    assert isinstance(algorithm, Mixup)
    batch = make_batch(algorithm, 0)
    drawn = []
    for step in range(600):
        object.__setattr__(batch, "step", step)
        drawn.append(algorithm.draw(batch)[1].numpy())
    shares = np.concatenate([np.unique(share) for share in drawn])
    assert len(shares) == 1200  # two domains
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(1 / 8, abs=0.01)  # of Beta(1/2, 1/2)
    assert np.array_equal(algorithm.draw(batch)[1].numpy(), drawn[-1])


def test_a_single_source_domain_is_mixed_with_itself(
    make_algorithm: Make, make_image_folder: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = make_algorithm("mixup")
    assert isinstance(algorithm, Mixup)
    batch = make_batch(algorithm, 0)
    monkeypatch.setattr(algorithm, "rows_by_domain", lambda batch: [np.arange(len(batch.rows))])
    partner, _ = algorithm.draw(batch)
    assert sorted(partner.tolist()) == list(range(12))
    assert partner.tolist() != list(range(12))
