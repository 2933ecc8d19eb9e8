"""Slopes of the distillation loss in double precision on a real tiny LDM: finite differences, exact tangents, draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from domainfusion.config import DistillConfig
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.corruption import corrupt, degrade
from domainfusion.distillation.slopes import Draws, SlopeEstimator, distillation_loss, draw

RESIDUALS = ["plain", "guided", "contrast"]
CORRUPTIONS = ["contrast", "blur", "pepper", "mask"]
PROMPTS = ["a cat", "a dog, ink", "a house"]


@pytest.fixture(scope="module")
def single(tiny_pipeline: Path) -> LatentDiffusion:
    return LatentDiffusion.load(str(tiny_pipeline), precision="float32")


@pytest.fixture
def ldm(exact_ldm: LatentDiffusion) -> LatentDiffusion:
    return exact_ldm


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1


@pytest.fixture
def p() -> torch.Tensor:
    return torch.tensor([0.15, 0.5, 0.97], dtype=torch.float64)


def make_draws(ldm: LatentDiffusion, config: DistillConfig, seed: int = 0, count: int = 3) -> Draws:
    return draw(ldm, count, 16, config, torch.Generator().manual_seed(seed))


def tangent_of(function: Callable[[torch.Tensor], torch.Tensor], p: torch.Tensor) -> torch.Tensor:
    """d function / d p, exactly: forward-mode differentiation through the real encoder."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(function, (p,), (torch.ones_like(p),))[1]


# autograd


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_autograd_slopes_are_central_differences_of_the_losses(
    ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, residual: str, corruption: str
) -> None:
    config = DistillConfig(estimator="autograd", residual=residual, corruption=corruption, samples=2, weighting="sigma")
    estimator, draws = SlopeEstimator(ldm, config), make_draws(ldm, config)
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
    ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, residual: str
) -> None:
    config = DistillConfig(residual=residual, samples=3, guidance=2.5)
    draws = make_draws(ldm, config)
    found = SlopeEstimator(ldm, config).losses(images, PROMPTS, p, draws)
    for i in range(3):
        z = ldm.vae.encode(p[i] * images[i : i + 1]).latent_dist.mode() * 0.9
        total = 0.0
        for t, noise in zip(draws.timesteps[:, i].tolist(), draws.noise[:, i].double(), strict=True):
            alpha = float(ldm.scheduler.alphas_cumprod[t])
            z_t = alpha**0.5 * z + (1 - alpha) ** 0.5 * noise
            prompted = ldm.unet(z_t, t, ldm.prompt_embeds(PROMPTS[i : i + 1])).sample
            without = ldm.unet(z_t, t, ldm.prompt_embeds([""])).sample
            r = {
                "plain": prompted - noise,
                "guided": without + 2.5 * (prompted - without) - noise,
                "contrast": prompted - without,
            }[residual]
            total += float((r**2).sum() / r.numel())
        assert float(found[i]) == pytest.approx(total / 3, rel=1e-5)


# score


def literal_score(
    ldm: LatentDiffusion, images: torch.Tensor, prompts: list[str], p: torch.Tensor, draws: Draws, config: DistillConfig
) -> torch.Tensor:
    """mean over draws of w(t)·√ᾱ_t·⟨r, J_E(C_p x)·(x - D(x))⟩/dim, image by image, with the exact tangent."""
    degraded = degrade(images, config.corruption, torch.Generator().manual_seed(draws.seed))
    result = torch.zeros(len(images), dtype=torch.float64)
    for i in range(len(images)):
        x, d = images[i : i + 1], degraded[i : i + 1]
        tangent = tangent_of(lambda value, x=x, d=d: ldm.encode(corrupt(x, d, value)), p[i : i + 1])
        with torch.no_grad():
            z = ldm.encode(p[i] * x + (1 - p[i]) * d)
            for timesteps, noise in zip(draws.timesteps[:, i], draws.noise[:, i], strict=True):
                alpha = ldm.scheduler.alphas_cumprod[timesteps].double()
                z_t = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
                prompted = ldm.unet(z_t, timesteps, ldm.prompt_embeds([prompts[i]])).sample
                without = ldm.unet(z_t, timesteps, ldm.prompt_embeds([""])).sample
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
    ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, residual: str, corruption: str, weighting: str
) -> None:
    config = DistillConfig(residual=residual, corruption=corruption, samples=2, weighting=weighting, guidance=2.0)
    estimator, draws = SlopeEstimator(ldm, config), make_draws(ldm, config)
    exact = literal_score(ldm, images, PROMPTS, p, draws, config)
    error = (estimator.slopes(images, PROMPTS, p, draws) - exact).abs()
    assert error.max() < 5e-3 * exact.abs().max()
    # The error is the difference quotient's, of second order: a tenth of the step, a hundredth of the error.
    estimator.step = 0.001
    finer = (estimator.slopes(images, PROMPTS, p, draws) - exact).abs()
    assert finer.max() < 2e-2 * error.max()


def test_score_in_single_precision(
    single: LatentDiffusion, ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor
) -> None:
    config = DistillConfig(samples=2)
    draws = make_draws(ldm, config)
    exact = SlopeEstimator(ldm, config).slopes(images, PROMPTS, p, draws)
    found = SlopeEstimator(single, config).slopes(images.float(), PROMPTS, p.float(), draws)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def test_the_estimators_differ_by_the_unets_jacobian(
    ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor
) -> None:
    """A U-Net that always says 0 makes L flat in p; the score slope, which drops its Jacobian, is not 0."""
    kept = {name: value.clone() for name, value in ldm.unet.conv_out.named_parameters()}
    try:
        for value in ldm.unet.conv_out.parameters():
            value.zero_()
        draws = make_draws(ldm, DistillConfig())
        flat = SlopeEstimator(ldm, DistillConfig(estimator="autograd")).slopes(images, PROMPTS, p, draws)
        score = SlopeEstimator(ldm, DistillConfig(estimator="score")).slopes(images, PROMPTS, p, draws)
    finally:
        for name, value in ldm.unet.conv_out.named_parameters():
            value.copy_(kept[name])
    assert flat.abs().max() == 0
    assert score.abs().max() > 1e-4


# What both share


@pytest.mark.parametrize("estimator", ["score", "autograd"])
def test_several_draws_are_the_mean_of_single_ones(
    ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, estimator: str
) -> None:
    config = DistillConfig(estimator=estimator, corruption="mask", samples=3)
    draws = make_draws(ldm, config)
    slopes = SlopeEstimator(ldm, config)
    single = [
        slopes.slopes(images, PROMPTS, p, Draws(draws.timesteps[m : m + 1], draws.noise[m : m + 1], draws.seed))
        for m in range(3)
    ]
    torch.testing.assert_close(slopes.slopes(images, PROMPTS, p, draws), torch.stack(single).mean(0))
    assert (single[0] - single[1]).abs().max() > 1e-4


@pytest.mark.parametrize("estimator", ["score", "autograd"])
def test_sigma_weighting_multiplies_by_the_noises_variance(
    ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, estimator: str
) -> None:
    draws = make_draws(ldm, DistillConfig())
    uniform, sigma = (
        SlopeEstimator(ldm, DistillConfig(estimator=estimator, weighting=weighting)).slopes(images, PROMPTS, p, draws)
        for weighting in ("uniform", "sigma")
    )
    variance = 1 - ldm.scheduler.alphas_cumprod[draws.timesteps[0]]
    torch.testing.assert_close(sigma, uniform * variance)


@pytest.mark.parametrize("estimator", ["score", "autograd"])
def test_each_slope_is_its_own_images_affair(
    ldm: LatentDiffusion, images: torch.Tensor, p: torch.Tensor, estimator: str
) -> None:
    config = DistillConfig(estimator=estimator)
    draws, slopes = make_draws(ldm, config), SlopeEstimator(ldm, config)
    together = slopes.slopes(images, PROMPTS, p, draws)
    for i in range(3):
        alone = Draws(draws.timesteps[:, i : i + 1], draws.noise[:, i : i + 1], draws.seed)
        torch.testing.assert_close(
            slopes.slopes(images[i : i + 1], PROMPTS[i : i + 1], p[i : i + 1], alone), together[i : i + 1]
        )
    assert not together.requires_grad


# Draws


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_timesteps_lie_one_in_each_stratum(ldm: LatentDiffusion, samples: int) -> None:
    config = DistillConfig(samples=samples, min_timestep=0.1, max_timestep=0.9)
    draws = make_draws(ldm, config, count=50)
    assert draws.timesteps.shape == (samples, 50)
    assert draws.noise.shape == (samples, 50, 4, 8, 8)
    low, width = 99.9, 0.8 * 999 / samples
    for m in range(samples):
        assert (draws.timesteps[m] >= low + m * width - 0.5).all()
        assert (draws.timesteps[m] <= low + (m + 1) * width + 0.5).all()
        assert len(draws.timesteps[m].unique()) > 25  # each image has its own
        spread = draws.timesteps[m].double().std() / width
        assert 0.2 < spread < 0.38  # uniform within the stratum: 1/√12 = 0.289


@pytest.mark.parametrize("samples", [2, 5, 8])
def test_neighbouring_strata_have_mirrored_places(ldm: LatentDiffusion, samples: int) -> None:
    """Places u and 1 - u: the two timesteps of a pair have one mean for every image, whatever u."""
    config = DistillConfig(samples=samples, min_timestep=0.1, max_timestep=0.9)
    total = ldm.num_train_timesteps - 1
    timesteps = draw(ldm, 200, 16, config, torch.Generator().manual_seed(3)).timesteps.double()
    width = 0.8 * total / samples
    for k in range(0, samples - 1, 2):
        pair = timesteps[k : k + 2].mean(0)
        assert (pair - (0.1 * total + (k + 1) * width)).abs().max() <= 1  # rounding, of either
        assert timesteps[k].std() > 0.2 * width


def test_timesteps_cover_the_range_evenly(ldm: LatentDiffusion) -> None:
    draws = make_draws(ldm, DistillConfig(min_timestep=0.0, max_timestep=1.0), count=4000)
    counts = torch.histc(draws.timesteps.double(), 4, 0, 999)
    assert (counts - 1000).abs().max() < 4 * (4000 * 0.25 * 0.75) ** 0.5
    assert draws.timesteps.min() >= 0
    assert draws.timesteps.max() <= 999


def test_draws_are_functions_of_the_generator(ldm: LatentDiffusion) -> None:
    config = DistillConfig(samples=2)
    first, second, third = make_draws(ldm, config, 1), make_draws(ldm, config, 1), make_draws(ldm, config, 2)
    assert torch.equal(first.timesteps, second.timesteps)
    assert torch.equal(first.noise, second.noise)
    assert first.seed == second.seed
    assert not torch.equal(first.noise, third.noise)
    assert first.seed != third.seed
    assert first.noise.mean().abs() < 0.1
    assert 0.9 < first.noise.std() < 1.1


# The training loss


class SmallClassifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(196, 5)
        ).double()

    def confidence(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.layers(images).softmax(-1)[torch.arange(len(labels)), labels]


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_beside_cross_entropy_distillation_is_a_weight_of_each_image() -> None:
    """∇(λ1·CE + λ2·LD) = w·∇(λ1·CE) with w = 1 - λ2/λ1·p·L'(p), as the page of the algorithm says."""
    generator = torch.Generator().manual_seed(8)
    logits = (2 * torch.randn(6, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    labels, slopes = torch.tensor([0, 3, 1, 4, 2, 2]), torch.tensor([-2.0, 9.0, 8.0, -0.5, 3.0, 4.0]).double()
    p = logits.softmax(-1)[torch.arange(6), labels]
    both = 0.7 * F.cross_entropy(logits, labels) + 3.0 * distillation_loss(slopes, p)
    weights = 1 - 3.0 / 0.7 * (p * slopes).detach()
    weighted = 0.7 * (weights * F.cross_entropy(logits, labels, reduction="none")).mean()
    (found,) = torch.autograd.grad(both, logits, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(weighted, logits)[0])
    assert (weights < 0).any()
    assert (weights > 1).any()


def test_gradient_of_the_loss_is_slope_times_gradient_of_confidence(images: torch.Tensor) -> None:
    model, labels = SmallClassifier(), torch.tensor([4, 0, 2])
    slopes = torch.tensor([0.7, -1.3, 0.02], dtype=torch.float64, requires_grad=True)
    by_hand = sum(
        slopes[i].item() * gradient(model.confidence(images[i : i + 1], labels[i : i + 1])[0], model) / 3
        for i in range(3)
    )
    loss = distillation_loss(slopes, model.confidence(images, labels))
    torch.testing.assert_close(gradient(loss, model), by_hand)
    assert not torch.autograd.grad(
        distillation_loss(slopes, model.confidence(images, labels)), slopes, allow_unused=True
    )[0]


@pytest.mark.parametrize("corruption", ["contrast", "mask"])
def test_gradient_of_the_loss_is_algorithm_2_back_propagated_whole(
    ldm: LatentDiffusion, images: torch.Tensor, corruption: str
) -> None:
    """∇_θ L = L'(p)·∇_θ p: back-propagation through U-Net, encoder, corruption and classifier gives the same."""
    model, labels = SmallClassifier(), torch.tensor([4, 0, 2])
    config = DistillConfig(estimator="autograd", corruption=corruption, samples=2)
    estimator, draws = SlopeEstimator(ldm, config), make_draws(ldm, config)
    p = model.confidence(images, labels)
    whole = gradient(estimator.losses(images, PROMPTS, p, draws).mean(), model)
    p = model.confidence(images, labels)
    split = gradient(distillation_loss(estimator.slopes(images, PROMPTS, p, draws), p), model)
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-14)
    assert whole.abs().max() > 1e-6
