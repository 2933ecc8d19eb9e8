from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.rsc import keep_mask
from domainfusion.config import RSCConfig
from domainfusion.training.step import make_batch

Make = Callable[..., Algorithm]


def literal_mask(
    features: np.ndarray, labels: np.ndarray, head: Callable[[np.ndarray], np.ndarray], feature_drop: float,
    batch_drop: float,
) -> np.ndarray:  # fmt: skip
    """Image by image, gradients by central differences, percentiles by numpy."""

    def confidence(row: np.ndarray, label: int) -> float:
        logits = head(row)
        return float(np.exp(logits[label]) / np.exp(logits).sum())

    kept, falls = np.ones(features.shape, dtype=bool), []
    for n, (row, label) in enumerate(zip(features, labels, strict=True)):
        gradient = np.zeros(len(row))
        for i in range(len(row)):
            step = np.zeros(len(row))
            step[i] = 1e-5
            gradient[i] = (head(row + step)[label] - head(row - step)[label]) / 2e-5
        kept[n] = gradient < np.percentile(gradient, 100 * (1 - feature_drop))
        falls.append(confidence(row, label) - confidence(row * kept[n], label))
    bar = np.percentile(falls, 100 * (1 - batch_drop))
    for n, fall in enumerate(falls):
        if fall < bar:
            kept[n] = True
    return kept


@pytest.mark.parametrize(("feature_drop", "batch_drop"), [(1 / 3, 1 / 3), (0.5, 0.25), (0.1, 0.9)])
def test_what_is_muted_is_the_papers_algorithm_written_out(feature_drop: float, batch_drop: float) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(11, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    features, labels = torch.randn(9, 11, dtype=torch.float64), torch.randint(0, 4, (9,))
    found = keep_mask(features, labels, head, feature_drop, batch_drop)
    plain = literal_mask(
        features.numpy(),
        labels.numpy(),
        lambda row: head(torch.from_numpy(row)).detach().numpy(),
        feature_drop,
        batch_drop,
    )
    assert np.array_equal(found.numpy(), plain)
    assert 0 < (~plain).sum() < plain.size


def test_a_third_of_the_features_in_a_third_of_the_batch_is_muted(make_algorithm: Make) -> None:
    algorithm = make_algorithm("rsc", batch_size=12)
    batch = make_batch(algorithm, 0)
    features = algorithm.classifier.features(batch.images).detach()
    muted = ~keep_mask(features, batch.labels, algorithm.classifier.head, 1 / 3, 1 / 3)
    assert muted.any(1).sum() == 8  # of 24
    assert muted.sum(1).max() == pytest.approx(features.shape[1] / 3, abs=1)
    rows = muted.any(1)
    before = algorithm.classifier.head(features).softmax(1)[torch.arange(24), batch.labels]
    after = algorithm.classifier.head(features * ~muted).softmax(1)[torch.arange(24), batch.labels]
    assert (after[rows] < before[rows]).all()
    assert torch.equal(after[~rows], before[~rows])


def test_the_loss_and_its_gradient_are_those_of_the_muted_features(make_algorithm: Make) -> None:
    algorithm = make_algorithm("rsc", rsc=RSCConfig(feature_drop=0.41, batch_drop=0.5))
    algorithm.eval()
    batch = make_batch(algorithm, 1)
    head = algorithm.classifier.head
    with torch.no_grad():
        features = algorithm.classifier.features(batch.images)
    weight, bias = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    kept = literal_mask(features.double().numpy(), batch.labels.numpy(), lambda f: weight @ f + bias, 0.41, 0.5)
    logits = features.double().numpy() * kept @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    one_hot = np.eye(3)[batch.labels]
    terms = algorithm.losses(batch)
    assert list(terms) == ["rsc_loss"]
    assert terms["rsc_loss"].item() == pytest.approx(-(one_hot * np.log(p)).sum(1).mean(), rel=1e-4)
    (found,) = torch.autograd.grad(terms["rsc_loss"], head.weight)
    expected = (p - one_hot).T @ (features.double().numpy() * kept) / len(kept)
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_dropout_takes_no_part_in_the_choice(make_algorithm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from domainfusion.algorithms import rsc

    algorithm = make_algorithm("rsc", dropout=0.9)
    batch = make_batch(algorithm, 0)
    masks = []
    original = rsc.keep_mask

    def recording(*given: object) -> torch.Tensor:
        masks.append(original(*given))
        return masks[-1]

    monkeypatch.setattr(rsc, "keep_mask", recording)
    algorithm.losses(batch), algorithm.losses(batch)
    assert torch.equal(*masks)
