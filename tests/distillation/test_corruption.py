"""Corruption by confidence, against literal implementations and scipy's Gaussian filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from domainfusion.distillation.corruption import corrupt, degrade, gaussian_blur

KINDS = ["contrast", "blur", "pepper", "mask"]


def random_images(count: int, side: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(side), dtype=dtype) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_is_differentiable_in_confidence_and_image(kind: str) -> None:
    images = random_images(2, 8).requires_grad_(True)
    p = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, p: corrupt(x, degrade(x, kind, seeded()), p), (images, p))


@pytest.mark.parametrize("kind", KINDS)
def test_slope_of_the_corrupted_image_is_what_the_corruption_takes(kind: str) -> None:
    images = random_images(3, 16)
    degraded = degrade(images, kind, seeded())
    p = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    _, tangent = torch.func.jvp(lambda p: corrupt(images, degraded, p), (p,), (torch.ones_like(p),))
    torch.testing.assert_close(tangent, images - degraded)
    corrupted = corrupt(images, degraded, p)
    torch.testing.assert_close(corrupted[0], degraded[0])
    assert torch.equal(corrupted[2], images[2])
    for row, column in ((0, 0), (7, 11)):
        x, d = float(images[1, 2, row, column]), float(degraded[1, 2, row, column])
        assert float(corrupted[1, 2, row, column]) == pytest.approx(0.4 * x + 0.6 * d)


def test_contrast_fades_to_mid_grey() -> None:
    images = random_images(2, 8)
    assert torch.equal(degrade(images, "contrast"), torch.zeros_like(images))
    assert torch.equal(
        corrupt(images, degrade(images, "contrast"), torch.tensor([0.25, 1.0])),
        images * torch.tensor([0.25, 1.0], dtype=torch.float64).view(2, 1, 1, 1),
    )


@pytest.mark.parametrize("side", [8, 16, 32])
def test_blur_is_scipys_gaussian_filter(side: int) -> None:
    images = random_images(2, side)
    expected = gaussian_filter(images.numpy(), (0, 0, side / 16, side / 16), mode="mirror", truncate=3.0)
    np.testing.assert_allclose(degrade(images, "blur").numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.4, 1.3, 2.5])
def test_blur_of_images_that_are_not_square(sigma: float) -> None:
    images = random_images(1, 24)[..., :17]
    expected = gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=max(1, round(3 * sigma)))
    np.testing.assert_allclose(gaussian_blur(images, sigma).numpy(), expected, rtol=0, atol=1e-12)


def test_blur_keeps_brightness_and_a_constant() -> None:
    constant = torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64)
    torch.testing.assert_close(degrade(constant, "blur"), constant)
    point = torch.zeros(1, 3, 33, 33, dtype=torch.float64)
    point[..., 16, 16] = 1
    blurred = degrade(point, "blur")
    torch.testing.assert_close(blurred.sum((-2, -1)), torch.ones(1, 3, dtype=torch.float64))
    assert blurred.max() < 0.1


def test_pepper_blackens_three_in_ten_pixels_whole() -> None:
    images = random_images(16, 64)
    peppered = degrade(images, "pepper", seeded())
    black = (peppered == -1).all(dim=1)  # a pixel's three channels together
    kept = torch.where(black.unsqueeze(1), -torch.ones_like(images), images)
    assert torch.equal(peppered, kept)
    assert black.float().mean() == pytest.approx(0.3, abs=4 * (0.21 / black.numel()) ** 0.5)
    assert not torch.equal(black[0], black[1])  # each image has its own


def test_mask_greys_half_of_the_cells() -> None:
    images = random_images(64, 32)
    masked = degrade(images, "mask", seeded())
    hidden = 0
    for image, result in zip(images, masked, strict=True):
        for row in range(0, 32, 4):
            for column in range(0, 32, 4):
                cell, now = image[:, row : row + 4, column : column + 4], result[:, row : row + 4, column : column + 4]
                hidden += int((now == 0).all())
                assert (now == 0).all() or torch.equal(now, cell)
    assert hidden / 64**2 == pytest.approx(0.5, abs=4 * 0.5 / 64)


@pytest.mark.parametrize("kind", ["pepper", "mask"])
def test_random_corruptions_are_functions_of_their_generator(kind: str) -> None:
    images = random_images(3, 16, torch.float32)
    assert torch.equal(degrade(images, kind, seeded(1)), degrade(images, kind, seeded(1)))
    assert not torch.equal(degrade(images, kind, seeded(1)), degrade(images, kind, seeded(2)))
    assert degrade(images, kind, seeded(1)).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_range_is_kept(kind: str) -> None:
    images = random_images(4, 16).sign()
    p = torch.tensor([0.0, 0.1, 0.6, 1.0])
    assert corrupt(images, degrade(images, kind, seeded()), p).abs().max() <= 1 + 1e-12


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'fog' is not contrast, blur, pepper or mask"):
        degrade(torch.zeros(1, 3, 8, 8), "fog")
