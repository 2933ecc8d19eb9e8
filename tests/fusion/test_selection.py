"""The sampling strategy against Algorithm 1, lines 8 to 12, written out in nested loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domainfusion.config import GenerateConfig
from domainfusion.fusion.selection import content_scores, select

B, N, D = 12, 5, 6


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.2, 1, (B, N, 3, 1, 1))
    return {
        "images": rng.uniform(-1, 1, (B, 3, 8, 8)),
        "candidates": rng.uniform(-1, 1, (B, N, 3, 8, 8)) * scale + rng.uniform(-0.3, 0.3, (B, N, 3, 1, 1)),
        "features0": rng.normal(size=(B, D)),
        "features": rng.normal(size=(B, N, D)),
        "confidence": rng.uniform(0, 1, (B, N)),
    }


def kl(a: np.ndarray, b: np.ndarray) -> float:
    """KL(softmax(a)‖softmax(b))."""
    p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
    return sum(float(p[c] * np.log(p[c] / q[c])) for c in range(len(p)))


def literal(
    x: np.ndarray, candidates: np.ndarray, feature0: np.ndarray, feature: np.ndarray, confidence: np.ndarray,
    weight: float, divergence: str,
) -> tuple[np.ndarray, int, int]:  # fmt: skip
    """Lines 8 to 12 for one image: x_gen, and the candidates of its content and style."""
    mu0, sigma0 = x.mean((1, 2)), x.std((1, 2))
    best_content, best_style, content_of, style_of = -np.inf, -np.inf, -1, -1
    for j, candidate in enumerate(candidates):
        cosine = feature0 @ feature[j] / (np.linalg.norm(feature0) * np.linalg.norm(feature[j]))
        score = weight * cosine + (1 - weight) * confidence[j]
        if score > best_content:
            best_content, content_of = score, j
        mu, sigma = candidate.mean((1, 2)), candidate.std((1, 2))
        if divergence == "softmax":
            distance = kl(mu0, mu) + kl(sigma0, sigma)
        else:
            distance = np.mean(np.log(sigma / sigma0) + (sigma0**2 + (mu0 - mu) ** 2) / (2 * sigma**2) - 0.5)
        if distance > best_style:
            best_style, style_of = distance, j
    x_gen = np.empty_like(x)
    for c in range(3):
        content = candidates[content_of, c]
        style = candidates[style_of, c]
        x_gen[c] = style.std() * (content - content.mean()) / content.std() + style.mean()
    return x_gen, content_of, style_of


@pytest.mark.parametrize("divergence", ["softmax", "gaussian"])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_select_is_the_algorithms_lines(inputs: dict[str, np.ndarray], weight: float, divergence: str) -> None:
    config = GenerateConfig(content_weight=weight, style_divergence=divergence, candidates=N)
    found = select(*map(torch.from_numpy, inputs.values()), config)
    for i in range(B):
        x_gen, content, style = literal(*(value[i] for value in inputs.values()), weight, divergence)
        assert (int(found.content[i]), int(found.style[i])) == (content, style)
        np.testing.assert_allclose(found.images[i].numpy(), x_gen, rtol=0, atol=1e-3)  # σ² + 1e-5 against σ²
    assert len(set(found.content.tolist())) > 1
    assert len(set(found.style.tolist())) > 1
    assert (found.content != found.style).any()


def test_content_scores_weigh_similarity_against_confidence(inputs: dict[str, np.ndarray]) -> None:
    features0, features, confidence = (torch.from_numpy(inputs[k]) for k in ("features0", "features", "confidence"))
    torch.testing.assert_close(content_scores(features0, features, confidence, 0.0), confidence)
    similarity = content_scores(features0, features, confidence, 1.0)
    assert similarity.abs().max() <= 1
    torch.testing.assert_close(content_scores(3 * features0, 7 * features, confidence, 1.0), similarity)  # cosine
    mixed = content_scores(features0, features, confidence, 0.25)
    torch.testing.assert_close(mixed, 0.25 * similarity + 0.75 * confidence)


def test_the_same_candidate_for_both_comes_back_unchanged(inputs: dict[str, np.ndarray]) -> None:
    alone = [torch.from_numpy(inputs[k]) for k in inputs]
    alone[1], alone[3], alone[4] = alone[1][:, :1], alone[3][:, :1], alone[4][:, :1]
    found = select(*alone, GenerateConfig(candidates=1))
    torch.testing.assert_close(found.images, alone[1][:, 0])


def test_without_sampling_the_first_candidate_is_taken_as_it_is(inputs: dict[str, np.ndarray]) -> None:
    found = select(*map(torch.from_numpy, inputs.values()), GenerateConfig(sampling=False, candidates=N))
    assert torch.equal(found.images, torch.from_numpy(inputs["candidates"][:, 0]))
    assert not found.content.any()
    assert not found.style.any()
    assert found.content_scores.shape == found.style_scores.shape == (B, N)
