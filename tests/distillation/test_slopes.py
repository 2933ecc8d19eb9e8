"""Slopes of the distillation loss in double precision on a real tiny LDM: finite differences, exact tangents, draws."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from domainfusion.config import DistillConfig
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.corruption import corrupt, degrade
from domainfusion.distillation.slopes import Draws, SlopeEstimator, draw
from draws import PROMPTS, make_draws

RESIDUALS = ["plain", "guided", "contrast"]
CORRUPTIONS = ["contrast", "blur", "pepper", "mask"]


@pytest.fixture
def p() -> torch.Tensor:
    return torch.tensor([0.15, 0.5, 0.97], dtype=torch.float64)


def tangent_of(function: Callable[[torch.Tensor], torch.Tensor], p: torch.Tensor) -> torch.Tensor:
    """d function / d p, exactly: forward-mode differentiation through the real encoder."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(function, (p,), (torch.ones_like(p),))[1]


# autograd


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_autograd_slopes_are_central_differences_of_the_losses(
    exact_ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, residual: str, corruption: str
) -> None:
    config = DistillConfig(estimator="autograd", residual=residual, corruption=corruption, samples=2, weighting="sigma")
    estimator, draws = SlopeEstimator(exact_ldm, config), make_draws(exact_ldm, config)
    slopes = estimator.slopes(images, PROMPTS, p, draws)
    h = 1e-5
    with torch.no_grad():
        difference = estimator.losses(images, PROMPTS, p + h, draws) - estimator.losses(images, PROMPTS, p - h, draws)
    assert slopes.dtype == torch.float64
    torch.testing.assert_close(slopes, difference / (2 * h), rtol=1e-5, atol=1e-11)
    assert slopes.abs().max() > 1e-6  # there is something to compare


@pytest.mark.parametrize("residual", RESIDUALS)
@torch.no_grad()
def test_losses_are_algorithm_2_written_out(
    exact_ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, residual: str
) -> None:
    config = DistillConfig(residual=residual, samples=3, guidance=2.5)
    draws = make_draws(exact_ldm, config)
    found = SlopeEstimator(exact_ldm, config).losses(images, PROMPTS, p, draws)
    for i in range(3):
        z = exact_ldm.vae.encode(p[i] * images[i : i + 1]).latent_dist.mode() * 0.9
        total = 0.0
        for t, noise in zip(draws.timesteps[:, i].tolist(), draws.noise[:, i].double(), strict=True):
            alpha = float(exact_ldm.scheduler.alphas_cumprod[t])
            z_t = alpha**0.5 * z + (1 - alpha) ** 0.5 * noise
            prompted = exact_ldm.unet(z_t, t, exact_ldm.prompt_embeds(PROMPTS[i : i + 1])).sample
            without = exact_ldm.unet(z_t, t, exact_ldm.prompt_embeds([""])).sample
            r = {
                "plain": prompted - noise,
                "guided": without + 2.5 * (prompted - without) - noise,
                "contrast": prompted - without,
            }[residual]
            total += float((r**2).sum() / r.numel())
        assert float(found[i]) == pytest.approx(total / 3, rel=1e-5)


# score


def literal_score(
    exact_ldm: LatentDiffusion,
    images: torch.Tensor,
    prompts: list[str],
    p: torch.Tensor,
    draws: Draws,
    config: DistillConfig,
) -> torch.Tensor:
    """mean over draws of w(t)·√ᾱ_t·⟨r, J_E(C_p x)·(x - D(x))⟩/dim, image by image, with the exact tangent."""
    degraded = degrade(images, config.corruption, torch.Generator().manual_seed(draws.seed))
    result = torch.zeros(len(images), dtype=torch.float64)
    for i in range(len(images)):
        x, d = images[i : i + 1], degraded[i : i + 1]
        tangent = tangent_of(lambda value, x=x, d=d: exact_ldm.encode(corrupt(x, d, value)), p[i : i + 1])
        with torch.no_grad():
            z = exact_ldm.encode(p[i] * x + (1 - p[i]) * d)
            for timesteps, noise in zip(draws.timesteps[:, i], draws.noise[:, i], strict=True):
                alpha = exact_ldm.scheduler.alphas_cumprod[timesteps].double()
                z_t = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
                prompted = exact_ldm.unet(z_t, timesteps, exact_ldm.prompt_embeds([prompts[i]])).sample
                without = exact_ldm.unet(z_t, timesteps, exact_ldm.prompt_embeds([""])).sample
                r = {
                    "plain": prompted - noise,
                    "guided": without + config.guidance * (prompted - without) - noise,
                    "contrast": prompted - without,
                }[config.residual]
                w = 1 - alpha if config.weighting == "sigma" else 1.0
                result[i] += w * alpha.sqrt() * (r * tangent).mean() / len(draws.timesteps)
    return result


@pytest.mark.parametrize("weighting", ["uniform", "sigma"])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_score_slopes_are_their_formula(
    exact_ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, residual: str, corruption: str, weighting: str
) -> None:
    config = DistillConfig(residual=residual, corruption=corruption, samples=2, weighting=weighting, guidance=2.0)
    estimator, draws = SlopeEstimator(exact_ldm, config), make_draws(exact_ldm, config)
    exact = literal_score(exact_ldm, images, PROMPTS, p, draws, config)
    error = (estimator.slopes(images, PROMPTS, p, draws) - exact).abs()
    assert error.max() < 5e-3 * exact.abs().max()
    # The error is the difference quotient's, of second order: a tenth of the step, a hundredth of the error.
    estimator.step = 0.001
    finer = (estimator.slopes(images, PROMPTS, p, draws) - exact).abs()
    assert finer.max() < 2e-2 * error.max()


def test_score_in_single_precision(
    ldm: LatentDiffusion, exact_ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor
) -> None:
    config = DistillConfig(samples=2)
    draws = make_draws(exact_ldm, config)
    exact = SlopeEstimator(exact_ldm, config).slopes(images, PROMPTS, p, draws)
    found = SlopeEstimator(ldm, config).slopes(images.float(), PROMPTS, p.float(), draws)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def test_the_estimators_differ_by_the_unets_jacobian(
    exact_ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor
) -> None:
    """A U-Net that always says 0 makes L flat in p; the score slope, which drops its Jacobian, is not 0."""
    kept = {name: value.clone() for name, value in exact_ldm.unet.conv_out.named_parameters()}
    try:
        for value in exact_ldm.unet.conv_out.parameters():
            value.zero_()
        draws = make_draws(exact_ldm, DistillConfig())
        flat = SlopeEstimator(exact_ldm, DistillConfig(estimator="autograd")).slopes(images, PROMPTS, p, draws)
        score = SlopeEstimator(exact_ldm, DistillConfig(estimator="score")).slopes(images, PROMPTS, p, draws)
    finally:
        for name, value in exact_ldm.unet.conv_out.named_parameters():
            value.copy_(kept[name])
    assert flat.abs().max() == 0
    assert score.abs().max() > 1e-4


def test_confidences_go_to_the_images_device(ldm: LatentDiffusion) -> None:
    parts = (copy.deepcopy(part) for part in (ldm.vae, ldm.unet, ldm.text_encoder))
    elsewhere = LatentDiffusion(*parts, ldm.tokenizer, ldm.scheduler, device="meta")
    images = torch.empty(2, 3, 16, 16, device="meta")
    path = SlopeEstimator(elsewhere, DistillConfig()).path(images, torch.zeros_like(images), torch.tensor([0.2, 0.5]))
    assert [part.device.type for part in path] == ["meta", "meta"]


# What both share


@pytest.mark.parametrize("estimator", ["score", "autograd"])
def test_several_draws_are_the_mean_of_single_ones(
    exact_ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, estimator: str
) -> None:
    config = DistillConfig(estimator=estimator, corruption="mask", samples=3)
    draws = make_draws(exact_ldm, config)
    slopes = SlopeEstimator(exact_ldm, config)
    single = [
        slopes.slopes(images, PROMPTS, p, Draws(draws.timesteps[m : m + 1], draws.noise[m : m + 1], draws.seed))
        for m in range(3)
    ]
    torch.testing.assert_close(slopes.slopes(images, PROMPTS, p, draws), torch.stack(single).mean(0))
    assert (single[0] - single[1]).abs().max() > 1e-4


@pytest.mark.parametrize("estimator", ["score", "autograd"])
def test_sigma_weighting_multiplies_by_the_noises_variance(
    exact_ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, estimator: str
) -> None:
    draws = make_draws(exact_ldm, DistillConfig())
    uniform, sigma = (
        SlopeEstimator(exact_ldm, DistillConfig(estimator=estimator, weighting=weighting)).slopes(
            images, PROMPTS, p, draws
        )
        for weighting in ("uniform", "sigma")
    )
    variance = 1 - exact_ldm.scheduler.alphas_cumprod[draws.timesteps[0]]
    torch.testing.assert_close(sigma, uniform * variance)


@pytest.mark.parametrize("estimator", ["score", "autograd"])
def test_each_slope_is_its_own_images_affair(
    exact_ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, estimator: str
) -> None:
    config = DistillConfig(estimator=estimator)
    draws, slopes = make_draws(exact_ldm, config), SlopeEstimator(exact_ldm, config)
    together = slopes.slopes(images, PROMPTS, p, draws)
    for i in range(3):
        alone = Draws(draws.timesteps[:, i : i + 1], draws.noise[:, i : i + 1], draws.seed)
        torch.testing.assert_close(
            slopes.slopes(images[i : i + 1], PROMPTS[i : i + 1], p[i : i + 1], alone), together[i : i + 1]
        )
    assert not together.requires_grad


def test_gradients_to_the_letter_do_not_underflow_in_half_precision(
    ldm: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss is a mean over 16,384 numbers: what each passes on through a float16 U-Net is below its normal numbers."""
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = DistillConfig(estimator="autograd", samples=1)
    draws = draw(ldm, 2, 128, config, torch.Generator().manual_seed(1))
    assert draws.noise[0, 0].numel() == 16_384
    found = {}
    for kind in (torch.float32, torch.float16):
        # Stands for a denoiser that hands on a hundredth of what comes in.
        def predict(z: torch.Tensor, *_: torch.Tensor, kind: torch.dtype = kind) -> torch.Tensor:
            return (z.to(kind) * 0.01).to(z.dtype)

        monkeypatch.setattr(ldm, "predict_noise", predict)
        found[kind] = SlopeEstimator(ldm, config).slopes(images, ["a cat", "a dog"], torch.tensor([0.3, 0.7]), draws)
    torch.testing.assert_close(found[torch.float16], found[torch.float32], rtol=5e-3, atol=0)
