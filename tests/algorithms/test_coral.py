from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.coral import CORAL, coral_distance
from domainfusion.config import CoralConfig
from domainfusion.errors import UsageError
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.processes import Processes
from domainfusion.training.step import make_batch

Make = Callable[..., Algorithm]


def literal_distance(x: np.ndarray, y: np.ndarray) -> float:
    """‖μ_x - μ_y‖²/d + ‖C_x - C_y‖²/d², entry by entry."""
    width = x.shape[1]
    total = 0.0
    for i in range(width):
        total += (x[:, i].mean() - y[:, i].mean()) ** 2 / width
        for j in range(width):
            entry = np.cov(x[:, i], x[:, j])[0, 1] - np.cov(y[:, i], y[:, j])[0, 1]
            total += entry**2 / width**2
    return total


def test_the_distance_is_that_of_means_and_covariances() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), 1 + 2 * rng.normal(size=(5, 4))
    found = coral_distance(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert found == pytest.approx(literal_distance(x, y), rel=1e-12)
    assert coral_distance(torch.from_numpy(x), torch.from_numpy(x)).item() == 0
    assert found == pytest.approx(coral_distance(torch.from_numpy(y), torch.from_numpy(x)).item(), rel=1e-12)


def test_the_gradient_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(coral_distance, (x, y))


def test_the_terms_are_cross_entropy_and_the_mean_over_pairs(
    make_algorithm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = make_algorithm("coral", target=None, coral=CoralConfig(weight=0.7))
    algorithm.eval()
    batch = make_batch(algorithm, 2)
    with torch.no_grad():
        features = algorithm.classifier.features(batch.images).double().numpy()
        log_p = algorithm.predict(batch.images).log_softmax(1)
    domain_of = algorithm.context.dataset.domain_of[batch.rows]
    parts = [features[domain_of == i][:, :40] for i in range(3)]  # the literal sum is slow: see the width below
    monkeypatch.setattr(algorithm.classifier, "features", lambda images: torch.from_numpy(features[:, :40]).float())
    algorithm.classifier.head = torch.nn.Linear(40, 3)
    terms = algorithm.losses(batch)
    expected = np.mean([literal_distance(parts[i], parts[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    assert terms["coral_loss"].item() == pytest.approx(0.7 * expected, rel=1e-4)
    algorithm = make_algorithm("coral", target=None)
    algorithm.eval()
    raw = algorithm.losses(batch)["raw_loss"].item()
    assert raw == pytest.approx(-log_p[torch.arange(18), batch.labels].mean().item(), rel=1e-5)


def test_statistics_are_taken_in_full_precision(make_algorithm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 has 8 bits: covariances of features around 100 would lose everything."""
    algorithm = make_algorithm("coral")
    features = 100 + torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(algorithm.classifier, "features", lambda images: features)
    algorithm.classifier.head = torch.nn.Linear(16, 3)
    batch = make_batch(algorithm, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = algorithm.losses(batch)["coral_loss"].item()
    assert found == pytest.approx(
        literal_distance(features[:6].double().numpy(), features[6:].double().numpy()), rel=1e-4
    )  # products of centred features in bfloat16 are 8e-4 off


def test_too_few_domains_or_images_are_refused(
    make_algorithm: Make, make_image_folder: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"--batch-size 1: .*; give --batch-size 2"):
        make_algorithm("coral", batch_size=1)
    folder = make_image_folder("two", domains=("photo", "sketch"))
    config = make_algorithm("coral").config
    with pytest.raises(UsageError, match="needs two at least; use erm"):
        build_algorithm(build_context(str(folder), config, make_algorithm("coral").context.folder, progress=False))


def test_a_run_that_holds_out_two_of_three_domains_has_no_distance(make_algorithm: Make) -> None:
    """Leave-one-domain-out selection on three domains asks for such runs; DomainBed's penalty is 0 there."""
    algorithm = make_algorithm("coral", second_target="cartoon")
    assert len(algorithm.context.split.sources) == 1
    losses = algorithm.losses(make_batch(algorithm, 0))
    assert losses["coral_loss"].item() == 0
    sum(losses.values()).backward()
    gradients = [p.grad for p in algorithm.classifier.parameters() if p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_one_image_of_a_domain_in_each_process_is_refused(make_algorithm: Make) -> None:
    """Its covariance is 0/0: training would begin, and end with a loss that is not finite."""
    assert torch.isnan(coral_distance(torch.ones(1, 2), torch.ones(1, 2)))
    together = dataclasses.replace(make_algorithm("coral", batch_size=6).context, processes=Processes(1, 3))
    assert isinstance(build_algorithm(together), CORAL)
    for size in (3, 5):
        few = dataclasses.replace(together, config=dataclasses.replace(together.config, batch_size=size))
        with pytest.raises(UsageError, match=f"--batch-size {size}: .*each of 3 processes: --batch-size 6"):
            build_algorithm(few)
