"""The training loss: its gradient by hand, as a weight of each image, and by Algorithm 2 back-propagated whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from domainfusion.config import DistillConfig
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.slopes import SlopeEstimator, distillation_loss
from draws import PROMPTS, make_draws


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
    exact_ldm: LatentDiffusion, images: torch.Tensor, corruption: str
) -> None:
    """∇_θ L = L'(p)·∇_θ p: back-propagation through U-Net, encoder, corruption and classifier gives the same."""
    model, labels = SmallClassifier(), torch.tensor([4, 0, 2])
    config = DistillConfig(estimator="autograd", corruption=corruption, samples=2)
    estimator, draws = SlopeEstimator(exact_ldm, config), make_draws(exact_ldm, config)
    p = model.confidence(images, labels)
    whole = gradient(estimator.losses(images, PROMPTS, p, draws).mean(), model)
    p = model.confidence(images, labels)
    split = gradient(distillation_loss(estimator.slopes(images, PROMPTS, p, draws), p), model)
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-14)
    assert whole.abs().max() > 1e-6
