"""Style and content: round trips, statistics after AdaIN, both divergences against scipy and numeric integration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.integrate import quad
from scipy.special import softmax
from scipy.stats import entropy, norm

from domainfusion.data.transforms import from_uint8, to_uint8
from domainfusion.fusion.style import fuse, recombine, split_style, style_divergence

PIXELS = arrays(
    np.float64, array_shapes(min_dims=3, max_dims=5, min_side=1, max_side=4), elements=st.floats(-1, 1, width=32)
)


@given(PIXELS)
def test_fuse_inverts_split(pixels: np.ndarray) -> None:
    images = torch.from_numpy(pixels)
    content, mean, std = split_style(images)
    assert content.shape == images.shape
    assert mean.shape == std.shape == images.shape[:-2]
    torch.testing.assert_close(fuse(content, mean, std), images, rtol=0, atol=1e-12)
    assert (std > 0).all()  # constant channels too


def test_split_is_numpys_mean_and_standard_deviation() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 3, 7, 5))
    content, mean, std = split_style(torch.from_numpy(images))
    np.testing.assert_allclose(mean.numpy(), images.mean((-2, -1)))
    np.testing.assert_allclose(std.numpy(), images.std((-2, -1)), rtol=1e-4)
    expected = (images - images.mean((-2, -1), keepdims=True)) / images.std((-2, -1), keepdims=True)
    np.testing.assert_allclose(content.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_fused_images_have_the_style_they_were_given() -> None:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.uniform(-1, 1, (3, 3, 16, 16)))
    mean, std = torch.from_numpy(rng.uniform(-0.5, 0.5, (3, 3))), torch.from_numpy(rng.uniform(0.1, 0.6, (3, 3)))
    fused = fuse(split_style(images)[0], mean, std).numpy()
    np.testing.assert_allclose(fused.mean((-2, -1)), mean.numpy(), atol=1e-12)
    np.testing.assert_allclose(fused.std((-2, -1)), std.numpy(), rtol=1e-4)
    # The content stays: within a channel the pixels keep their order.
    for before, after in zip(images.numpy().reshape(9, -1), fused.reshape(9, -1), strict=True):
        assert np.array_equal(before.argsort(), after.argsort())


def random_styles(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(-1, 1, (2, 3)),
        rng.uniform(0.2, 1, (2, 3)),
        rng.uniform(-1, 1, (2, 4, 3)),
        rng.uniform(0.2, 1, (2, 4, 3)),
    )


def test_softmax_divergence_is_scipys_relative_entropy() -> None:
    mean0, std0, mean, std = random_styles(0)
    found = style_divergence(*map(torch.from_numpy, (mean0, std0, mean, std)), "softmax")
    assert found.shape == (2, 4)
    for i in range(2):
        for j in range(4):
            expected = entropy(softmax(mean0[i]), softmax(mean[i, j])) + entropy(softmax(std0[i]), softmax(std[i, j]))
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-9)


def test_gaussian_divergence_is_the_integral() -> None:
    mean0, std0, mean, std = random_styles(1)
    found = style_divergence(*map(torch.from_numpy, (mean0, std0, mean, std)), "gaussian")

    def divergence(a: object, b: object) -> float:
        return quad(lambda x: a.pdf(x) * (a.logpdf(x) - b.logpdf(x)), a.ppf(1e-14), a.ppf(1 - 1e-14))[0]

    for i in range(2):
        for j in range(4):
            channels = [divergence(norm(mean0[i, c], std0[i, c]), norm(mean[i, j, c], std[i, j, c])) for c in range(3)]
            assert float(found[i, j]) == pytest.approx(np.mean(channels), rel=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "gaussian"])
@given(seed=st.integers(0, 10_000))
def test_divergence_is_zero_at_the_style_itself_and_nowhere_negative(kind: str, seed: int) -> None:
    mean0, std0, mean, std = map(torch.from_numpy, random_styles(seed))
    mean[:, 2], std[:, 2] = mean0, std0
    found = style_divergence(mean0, std0, mean, std, kind)
    assert found[:, 2].abs().max() < 1e-12
    assert (found[:, [0, 1, 3]] > 0).all()


def test_recombined_images_have_the_content_of_one_and_the_statistics_of_the_other() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(90, 160, (4, 8, 8, 3), dtype=np.uint8)  # far from both ends: nothing is clipped
    other = (100 + rng.normal(0, 20, (4, 8, 8, 3)) * [1, 0.5, 0.8]).clip(0, 255).astype(np.uint8)
    found = recombined(one, other).astype(float)
    np.testing.assert_allclose(found.mean((1, 2)), other.mean((1, 2)), atol=0.3)
    np.testing.assert_allclose(found.std((1, 2)), other.std((1, 2)), atol=0.3)
    for i in range(4):
        for c in range(3):
            assert np.corrcoef(found[i, ..., c].ravel(), one[i, ..., c].ravel())[0, 1] > 0.999
    assert np.array_equal(recombined(one, one), one)


def recombined(content_of: np.ndarray, style_of: np.ndarray) -> np.ndarray:
    return recombine(torch.from_numpy(content_of), torch.from_numpy(style_of)).numpy()


def test_recombining_is_fusing_what_was_split() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (6, 9, 9, 3), dtype=np.uint8) for _ in range(2))
    one[0, ..., 0] = 17  # without content
    other[1, ..., 1] = 200  # without variance
    content, _, _ = split_style(from_uint8(one).double())
    _, mean, std = split_style(from_uint8(other).double())
    expected = to_uint8(fuse(content, mean, std)).astype(int)
    assert np.abs(recombined(one, other) - expected).max() <= 1  # where a value lies half-way
    assert (recombined(one, other) == expected).mean() > 0.99
