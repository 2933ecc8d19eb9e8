"""SWAD against its paper's algorithm with every weight kept, EMA against its recursion, and BatchNorm's statistics."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from domainfusion.config import AverageConfig, TrainConfig
from domainfusion.data.transforms import normalize
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.training.averaging import EMA, SWAD, refresh_batch_norm, swapped
from domainfusion.training.step import make_batch
from short_runs import options


def fake_algorithm(average: AverageConfig, steps: int, evaluations: int) -> Any:
    """What an averaging asks of an algorithm, around two weights."""
    config = TrainConfig(steps=steps, evaluations=evaluations, average=average)
    context = types.SimpleNamespace(config=config, device=torch.device("cpu"), dtype=torch.float32)
    return types.SimpleNamespace(classifier=nn.Linear(2, 1, bias=False), config=config, context=context)


def papers_average(
    weights: list[torch.Tensor], losses: list[float], every: int, patience: tuple[int, int], rate: float
) -> tuple[int, int, torch.Tensor] | None:
    """Algorithm 1 of the SWAD paper over evaluations: first and last step, and the mean; None without a start.

    `weights[n]` are those after step n + 1; `losses[k]` is measured after step (k + 1)·every.
    """
    optimum, overfit = patience
    start = end = threshold = None
    for i in range(len(losses)):
        if threshold is None:
            window = losses[max(0, i - optimum + 1) : i + 1]
            if len(window) == optimum and window[0] == min(window):
                start, threshold = i - optimum + 1, rate * sum(window) / optimum
        elif i - overfit + 1 >= 0 and threshold < min(losses[i - overfit + 1 : i + 1]):
            end = i - overfit
            break
    if start is None:
        return None
    first, last = (start + 1) * every, (len(losses) if end is None else end + 1) * every
    return first, last, torch.stack(weights[first - 1 : last]).mean(0)


@given(
    st.lists(st.floats(0.1, 3.0), min_size=1, max_size=25), st.integers(1, 3), st.integers(1, 4), st.integers(0, 4),
    st.floats(1, 2), st.integers(0, 2),
)  # fmt: skip
def test_swad_is_the_papers_algorithm(
    losses: list[float], every: int, optimum: int, more: int, rate: float, digits: int
) -> None:
    losses = [round(loss, digits) for loss in losses]  # few digits make ties
    overfit = optimum + more
    steps = every * len(losses)
    average = AverageConfig(method="swad", optimum_patience=optimum, overfit_patience=overfit, tolerance_rate=rate)
    if len(losses) < optimum:
        return
    algorithm = fake_algorithm(average, steps, len(losses))
    swad = SWAD(algorithm, lambda step: pytest.fail("there is no BatchNorm"))
    generator = torch.Generator().manual_seed(len(losses))
    weights: list[torch.Tensor] = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            algorithm.classifier.weight.copy_(torch.randn(1, 2, generator=generator))
        weights.append(algorithm.classifier.weight.detach().clone())
        swad.update(step)
        if step % every == 0 and swad.observe(step, losses[step // every - 1]):
            break
    expected = papers_average(weights, losses, every, (optimum, overfit), rate)
    if expected is None:  # from the least loss on, to the end
        first, last = (int(np.argmin(losses)) + 1) * every, steps
        expected = first, last, torch.stack(weights[first - 1 : last]).mean(0)
        assert not swad.describe(steps)["valley_found"]
    found = swad.describe(steps)
    assert (found["start"], found["end"], found["weights"]) == (*expected[:2], expected[1] - expected[0] + 1)
    before = algorithm.classifier.weight.detach().clone()
    with swad.applied():
        assert torch.allclose(algorithm.classifier.weight, expected[2], atol=1e-5)
    assert torch.equal(algorithm.classifier.weight, before)


def test_a_valley_of_known_ends() -> None:
    """Falls, a floor from evaluation 3 (N_s = 3: loss 1, 1.2, 1.1, threshold 1.43), out of it after evaluation 6."""
    losses = [3, 2, 1, 1.2, 1.1, 1.4, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 0.5, 0.5]
    algorithm = fake_algorithm(AverageConfig(method="swad"), 140, 14)
    swad = SWAD(algorithm, lambda step: pytest.fail("there is no BatchNorm"))
    steps = 0
    for loss in losses:
        for _ in range(10):
            steps += 1
            with torch.no_grad():
                algorithm.classifier.weight.fill_(steps)
            swad.update(steps)
        if swad.observe(steps, loss):
            break
    assert steps == 120
    assert swad.describe(steps) == {"method": "swad", "start": 30, "end": 60, "weights": 31, "valley_found": True}
    with swad.applied():
        assert algorithm.classifier.weight.flatten().tolist() == pytest.approx([45, 45])


def test_a_loss_at_the_threshold_is_within_the_valley() -> None:
    average = AverageConfig(method="swad", optimum_patience=1, overfit_patience=1, tolerance_rate=1.0)
    swad = SWAD(fake_algorithm(average, 4, 4), lambda step: pytest.fail("there is no BatchNorm"))
    for step in range(1, 5):
        swad.update(step)
        assert swad.observe(step, 1.0) == (step == 4)
    assert (swad.describe(4)["start"], swad.describe(4)["end"]) == (1, 4)


def test_ema_is_the_recursion_with_warm_up() -> None:
    algorithm = fake_algorithm(AverageConfig(method="ema", decay=0.5), 30, 3)
    expected = algorithm.classifier.weight.detach().double().clone()
    ema = EMA(algorithm, lambda step: pytest.fail("not asked"))
    generator = torch.Generator().manual_seed(0)
    for n in range(30):
        with torch.no_grad():
            algorithm.classifier.weight.copy_(torch.randn(1, 2, generator=generator))
        ema.update(n + 1)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * algorithm.classifier.weight.detach().double()
    with ema.applied():
        assert torch.allclose(algorithm.classifier.weight.double(), expected, atol=1e-6)
    assert ema.describe(30) == {"method": "ema", "decay": 0.5, "weights": 30}


def test_batch_norm_statistics_are_means_over_the_batches(images: Path, tmp_path: Path) -> None:
    algorithm = build_algorithm(build_context(str(images), options(), tmp_path / "run", progress=False))
    net = algorithm.classifier.backbone
    batches = [make_batch(algorithm, step) for step in range(8, 11)]
    means, variances = [], []
    for batch in batches:
        x = net.conv1(normalize(batch.images)).detach().double().numpy()  # (B, C, H, W)
        means.append(x.mean((0, 2, 3)))
        variances.append(x.var((0, 2, 3), ddof=1))
    parameters = {name: value.clone() for name, value in algorithm.classifier.named_parameters()}
    algorithm.eval()
    refresh_batch_norm(algorithm, iter(batches))
    assert np.allclose(net.bn1.running_mean.numpy(), np.mean(means, 0), atol=1e-5)
    assert np.allclose(net.bn1.running_var.numpy(), np.mean(variances, 0), rtol=1e-4)
    assert net.bn1.momentum == 0.1
    assert not algorithm.classifier.training
    assert all(torch.equal(value, parameters[name]) for name, value in algorithm.classifier.named_parameters())


def test_frozen_batch_norm_stays_as_it_is(images: Path, tmp_path: Path) -> None:
    config = options(freeze_bn=True)
    algorithm = build_algorithm(build_context(str(images), config, tmp_path / "run", progress=False))
    net = algorithm.classifier.backbone
    net.bn1.running_mean.fill_(0.5)  # what its published weights come with
    refresh_batch_norm(algorithm, iter([make_batch(algorithm, 0)]))
    assert set(net.bn1.running_mean.tolist()) == {0.5}


def test_swapped_weights_are_put_back_after_an_error() -> None:
    module = nn.BatchNorm1d(2)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def fail() -> None:
        with swapped(module, {"weight": torch.tensor([5.0, 6.0]), "running_mean": torch.ones(2)}):
            assert module.weight.tolist() == [5, 6]
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
