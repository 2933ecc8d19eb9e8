"""The computation of curves on a real tiny LDM: against slopes taken one by one, and what their errors are worth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from domainfusion.config import DistillConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation import curve_rounds
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.curve_rounds import GRID, curves_of
from domainfusion.distillation.slopes import SlopeEstimator, draw
from domainfusion.seeding import seed_hash
from draws import FEW_ROUNDS


def rounds_one_by_one(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, row: int, p: float, config: DistillConfig
) -> np.ndarray:
    """(rounds,) estimates of one image's slope at one confidence, straight from the estimator."""
    single = dataclasses.replace(config, estimator=config.curve_of, samples=config.curve_samples // 2)
    image = resize(from_uint8(dataset.images[[row]]), 16)
    prompt = dataset.words()[dataset.labels[row]]
    values = []
    for number in range(config.curve_rounds):
        generator = torch.Generator().manual_seed(seed_hash("curve", row, number))
        draws = draw(ldm, 1, 16, single, generator)
        degraded = degrade(image, config.corruption, generator)
        estimator, at = SlopeEstimator(ldm, single), torch.tensor([p])
        mirrored = dataclasses.replace(draws, noise=-draws.noise)
        pair = [estimator.slopes(image, [prompt], at, one, degraded=degraded).item() for one in (draws, mirrored)]
        values.append(sum(pair) / 2)
    return np.array(values)


@pytest.mark.parametrize(
    ("of", "corruption", "residual"),
    [("score", "contrast", "plain"), ("score", "mask", "guided"), ("score", "blur", "contrast"),
     ("autograd", "contrast", "plain"), ("autograd", "pepper", "plain")],
)  # fmt: skip
def test_a_curve_is_its_slopes_taken_one_by_one(
    exact_ldm: LatentDiffusion, dataset: MultiDomainDataset, of: str, corruption: str, residual: str
) -> None:
    config = dataclasses.replace(FEW_ROUNDS, curve_of=of, corruption=corruption, residual=residual)
    rows = np.array([1, 7, 16])
    found = curves_of(SlopeEstimator(exact_ldm, config), dataset, rows, list(dataset.words()), 16)
    assert found["rounds"].tolist() == [3, 3, 3]
    for i, row in enumerate(rows.tolist()):
        for g in (0, 4, len(GRID) - 1):
            values = rounds_one_by_one(exact_ldm, dataset, row, GRID[g], config)
            size = float(found["slopes"].abs().max())
            assert float(found["slopes"][i, g]) == pytest.approx(values.mean(), rel=1e-3, abs=1e-4 * size)
            error = values.std(ddof=1) / 3**0.5
            assert float(found["errors"][i, g]) == pytest.approx(error, rel=2e-2, abs=1e-3 * size)


def test_the_error_is_honest(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a reference of many more draws, curves are off by as much as their standard errors say."""
    monkeypatch.setattr(curve_rounds, "GRID", (0.02, 0.05, 0.1, 0.16, 0.24, 0.35, 0.5, 0.65, 0.8, 1.0))
    rows = np.arange(0, 18, 2)
    words = list(dataset.words())
    config = dataclasses.replace(FEW_ROUNDS, curve_samples=4, curve_rounds=6)
    found = curves_of(SlopeEstimator(ldm, config), dataset, rows, words, 16)
    many = dataclasses.replace(config, curve_samples=32, curve_rounds=6, min_timestep=0.02)
    reference = curves_of(SlopeEstimator(ldm, many), dataset, rows, words, 16)
    scaled = (found["slopes"] - reference["slopes"]) / found["errors"].clamp_min(1e-12)
    # Student's t with 5 degrees of freedom has a root mean square of 1.29; confidences of an image err alike.
    assert 0.8 < float(scaled.square().mean().sqrt()) < 1.9
    assert float(reference["errors"].mean()) < 0.4 * float(found["errors"].mean())


def test_rounds_stop_where_a_curve_is_known(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    rows = np.arange(6)
    words = list(dataset.words())

    def rounds(tolerance: float) -> list[int]:
        config = dataclasses.replace(FEW_ROUNDS, curve_tolerance=tolerance, curve_rounds=5)
        return curves_of(SlopeEstimator(ldm, config), dataset, rows, words, 16)["rounds"].tolist()

    assert rounds(1e6) == [2] * 6
    assert rounds(0.0) == [5] * 6
    strict = dataclasses.replace(FEW_ROUNDS, curve_tolerance=0.5, curve_rounds=5)
    found = curves_of(SlopeEstimator(ldm, strict), dataset, rows, words, 16)
    error = found["errors"].square().mean(1).sqrt()
    size = found["slopes"].square().mean(1).sqrt()
    assert all(count == 5 or e <= 0.5 * s for count, e, s in zip(found["rounds"], error, size, strict=True))


@pytest.mark.parametrize(("curve_of", "corruption"), [("score", "contrast"), ("score", "pepper"), ("autograd", "mask")])
def test_curves_are_the_same_in_smaller_passes(
    exact_ldm: LatentDiffusion, dataset: MultiDomainDataset, curve_of: str, corruption: str
) -> None:
    config = dataclasses.replace(FEW_ROUNDS, curve_of=curve_of, corruption=corruption)
    estimator, prompts = SlopeEstimator(exact_ldm, config), list(dataset.words())
    rows = np.array([1, 4])
    whole = curves_of(estimator, dataset, rows, prompts, 16)
    parts = curves_of(estimator, dataset, rows, prompts, 16, at_once=7)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))
