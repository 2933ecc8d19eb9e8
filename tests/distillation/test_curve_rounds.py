"""The computation of curves on a real tiny LDM: against slopes taken one by one, and what their errors are worth."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from domainfusion.config import DistillConfig
from domainfusion.data.content import image_keys
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation import curve_rounds
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.curve_rounds import GRID, KNOTS, confidences, curves_of
from domainfusion.distillation.slopes import SlopeEstimator, draw
from domainfusion.errors import LDMError
from domainfusion.seeding import seed_hash
from draws import FEW_ROUNDS


def rounds_one_by_one(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, row: int, p: float, config: DistillConfig
) -> np.ndarray:
    """(rounds,) estimates of one image's slope at one confidence, straight from the estimator.

    Between two knots: of a slope by `score` the LDM's pull is what it is on the line between the two, and dz/dp is of
    the confidence itself; of one by `autograd` all is on the line.
    """
    single = dataclasses.replace(config, estimator=config.curve_of, samples=config.curve_samples // 2)
    stored = dataset.images[[row]]
    image = resize(from_uint8(stored), 16)
    prompt = dataset.words()[dataset.labels[row]]
    knots, _ = confidences(config.curve_detail)
    low, high = max(k for k in knots if k <= p), min(k for k in knots if k >= p)
    share = (p - low) / (high - low) if high > low else 0.0
    values = []
    for number in range(config.curve_rounds):
        generator = torch.Generator().manual_seed(seed_hash("curve", int(image_keys(stored)[0]), number))
        draws = draw(ldm, 1, 16, single, generator)
        degraded = degrade(image, config.corruption, generator)
        estimator = SlopeEstimator(ldm, single)
        mirrored = dataclasses.replace(draws, noise=-draws.noise)
        pair = []
        for one in (draws, mirrored):
            if config.curve_of == "autograd":
                ends = [
                    estimator.slopes(image, [prompt], torch.tensor([k]), one, degraded=degraded).item()
                    for k in (low, high)
                ]
                pair.append((1 - share) * ends[0] + share * ends[1])
                continue
            _, tangent = estimator.path(image, degraded, torch.tensor([p]))
            pull = torch.zeros_like(tangent)
            for part, knot in ((1 - share, low), (share, high)):
                latents, _ = estimator.path(image, degraded, torch.tensor([knot]))
                for timestep, noise in zip(one.timesteps, one.noise, strict=True):
                    residual = estimator.noise_residual(latents, ldm.prompt_embeds([prompt]), timestep, noise)
                    pull += part * ldm.alphas_cumprod[timestep].sqrt() * residual / len(one.timesteps)
            pair.append(float((pull * tangent).sum()) / tangent.numel())
        values.append(sum(pair) / 2)
    return np.array(values)


@pytest.mark.parametrize(
    ("of", "corruption", "residual", "detail"),
    [("score", "contrast", "plain", 1), ("score", "mask", "guided", 1), ("score", "blur", "contrast", 2),
     ("autograd", "contrast", "plain", 1), ("autograd", "pepper", "plain", 2)],
)  # fmt: skip
def test_a_curve_is_its_slopes_taken_one_by_one(
    exact_ldm: LatentDiffusion, dataset: MultiDomainDataset, of: str, corruption: str, residual: str, detail: int
) -> None:
    config = dataclasses.replace(FEW_ROUNDS, curve_of=of, corruption=corruption, residual=residual, curve_detail=detail)
    _, points = confidences(detail)
    rows = np.array([1, 7, 16])
    found = curves_of(SlopeEstimator(exact_ldm, config), dataset, rows, list(dataset.words()), 16)
    assert found["rounds"].tolist() == [3, 3, 3]
    for i, row in enumerate(rows.tolist()):
        for g in (0, 1, points.index(0.08), points.index(0.155), points.index(0.35), len(points) - 1):
            values = rounds_one_by_one(exact_ldm, dataset, row, points[g], config)
            size = float(found["slopes"].abs().max())
            assert float(found["slopes"][i, g]) == pytest.approx(values.mean(), rel=1e-3, abs=1e-4 * size)
            error = values.std(ddof=1) / 3**0.5
            assert float(found["errors"][i, g]) == pytest.approx(error, rel=2e-2, abs=1e-3 * size)


def test_the_error_is_honest(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a reference of many more draws, curves are off by as much as their standard errors say."""
    for name in ("KNOTS", "GRID"):
        monkeypatch.setattr(curve_rounds, name, (0.02, 0.05, 0.1, 0.16, 0.24, 0.35, 0.5, 0.65, 0.8, 1.0))
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


def test_slopes_that_are_not_finite_are_refused(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = ldm.predict_noise

    def overflow(z: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        found = predict(z, *args).clone()
        found[len(KNOTS) + 3] = torch.nan  # of the second image
        return found

    monkeypatch.setattr(ldm, "predict_noise", overflow)
    with pytest.raises(LDMError, match=f"{dataset.keys[9]} are not finite; use --precision float32"):
        curves_of(SlopeEstimator(ldm, FEW_ROUNDS), dataset, np.array([2, 9, 16]), list(dataset.words()), 16)


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


def test_an_images_draws_are_its_own_wherever_it_stands(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    rows = [9, 4, 16]
    moved = dataclasses.replace(
        dataset, images=dataset.images[rows], labels=dataset.labels[rows], domain_of=dataset.domain_of[rows],
        keys=tuple(dataset.keys[row] for row in rows),
    )  # fmt: skip
    estimator, prompts = SlopeEstimator(ldm, FEW_ROUNDS), list(dataset.words())
    here = curves_of(estimator, dataset, np.array(rows), prompts, 16)
    there = curves_of(estimator, moved, np.arange(3), prompts, 16)
    assert torch.equal(here["slopes"], there["slopes"])
    assert not torch.equal(here["slopes"][0], here["slopes"][1])


def test_the_knots_are_points_of_the_grid() -> None:
    assert set(KNOTS) <= set(GRID)
    assert (KNOTS[0], KNOTS[-1]) == (GRID[0], GRID[-1])
    assert list(GRID) == sorted(set(GRID))
    assert confidences(1) == (KNOTS, GRID)  # tables made so far are of these


@pytest.mark.parametrize("detail", [2, 3, 8])
def test_detail_divides_the_intervals_of_knots_and_grid(detail: int) -> None:
    knots, points = confidences(detail)
    assert list(points) == sorted(set(points))
    assert set(knots) <= set(points)
    for divided, ends in ((knots, KNOTS), (points, GRID)):
        assert set(ends) <= set(divided)
        for low, high in itertools.pairwise(ends):
            inside = [p for p in divided if low <= p <= high]
            assert max(np.diff(inside)) <= (high - low) / detail + 1e-8
    assert len(knots) == detail * (len(KNOTS) - 1) + 1
    assert len(points) <= detail * (len(KNOTS) + len(GRID) - 2) + 1


def test_more_detail_is_nearer_to_the_slopes_themselves(
    exact_ldm: LatentDiffusion, dataset: MultiDomainDataset
) -> None:
    """On the same draws what is left is the lines between points: halved intervals leave about a quarter of it."""
    rows, words, p = np.array([1, 7, 16]), list(dataset.words()), np.linspace(0.03, 0.99, 23)
    read = {}
    for detail in (1, 2, 8):
        config = dataclasses.replace(FEW_ROUNDS, curve_detail=detail)
        found = curves_of(SlopeEstimator(exact_ldm, config), dataset, rows, words, 16)["slopes"].numpy()
        read[detail] = np.stack([np.interp(p, confidences(detail)[1], curve) for curve in found])
    error = {detail: float(np.square(read[detail] - read[8]).mean()) ** 0.5 for detail in (1, 2)}
    assert 0 < error[2] < 0.5 * error[1]


def test_keys_of_images_tell_pixels_shapes_and_prompts_apart() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[1, 3, 3, 2] = 1
    keys = [*image_keys(images).tolist(), *image_keys(images[:1].reshape(1, 2, 8, 3)).tolist(),
            *image_keys(images[:2], ["cat", "dog"]).tolist()]  # fmt: skip
    assert keys[0] == keys[2]
    assert len(set(keys)) == 5
    assert image_keys(images[:2, :, ::-1], ["cat", "cat"]).tolist() != keys[-2:]
