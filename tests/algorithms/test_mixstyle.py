from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch

from domainfusion.algorithms import mixstyle
from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.mixstyle import find_stages, mix_statistics
from domainfusion.config import MixStyleConfig
from domainfusion.data.transforms import normalize
from domainfusion.errors import UsageError
from domainfusion.seeding import derive_numpy_rng
from domainfusion.training.step import make_batch

Make = Callable[..., Algorithm]


def literal_mix(maps: np.ndarray, partner: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Image by image and channel by channel."""
    mixed = np.zeros_like(maps)
    for i, j in enumerate(partner):
        for c in range(maps.shape[1]):
            mean, other_mean = maps[i, c].mean(), maps[j, c].mean()
            deviation, other_deviation = (np.sqrt(maps[k, c].var() + 1e-6) for k in (i, j))
            gamma = share[i] * deviation + (1 - share[i]) * other_deviation
            beta = share[i] * mean + (1 - share[i]) * other_mean
            mixed[i, c] = gamma * (maps[i, c] - mean) / deviation + beta
    return mixed


def test_statistics_are_mixed_as_in_the_paper() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(5, 3, 4, 6)) * rng.uniform(0.5, 3, (5, 3, 1, 1)) + rng.normal(size=(5, 3, 1, 1))
    partner, share = np.array([2, 0, 4, 3, 1]), np.array([0.1, 0.9, 0.5, 0.3, 1.0])
    found = mix_statistics(torch.from_numpy(maps).float(), torch.from_numpy(partner), torch.from_numpy(share).float())
    assert np.allclose(found.numpy(), literal_mix(maps, partner, share), atol=1e-5)
    assert np.allclose(found[4].numpy(), maps[4], atol=1e-5)  # λ = 1: itself
    assert np.allclose(found[3].numpy(), maps[3], atol=1e-5)  # mixed with itself


def test_no_gradient_goes_through_the_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 4, generator=generator, requires_grad=True)
    upstream = torch.randn(3, 2, 4, 4, generator=generator)
    partner, share = torch.tensor([1, 2, 0]), torch.tensor([0.2, 0.5, 0.7])
    (found,) = torch.autograd.grad((mix_statistics(x, partner, share) * upstream).sum(), x)
    deviation = (x.detach().var((2, 3), correction=0, keepdim=True) + 1e-6).sqrt()
    mixed = share.view(-1, 1, 1, 1) * deviation + (1 - share.view(-1, 1, 1, 1)) * deviation[partner]
    assert torch.allclose(found, upstream * mixed / deviation, atol=1e-6)


def test_half_precision_maps_stay_half_precision() -> None:
    maps = (100 + torch.randn(4, 2, 8, 8)).bfloat16()
    found = mix_statistics(maps, torch.arange(4), torch.full((4,), 0.5))
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), maps.float(), atol=0.5)


@pytest.mark.parametrize("partner", ["any", "other_domain"])
def test_the_loss_is_the_network_written_out(make_algorithm: Make, partner: str) -> None:
    options = MixStyleConfig(probability=0.6, alpha=0.4, stages=3, partner=partner)
    algorithm = make_algorithm("mixstyle", mixstyle=options)
    algorithm.eval()  # each image by itself: BatchNorm would mix them too
    net = algorithm.classifier.backbone
    mixed_at = []
    for step in range(4):
        batch = make_batch(algorithm, step)
        rng = derive_numpy_rng("mixstyle", algorithm.config.seed, step)
        with torch.no_grad():
            x = net.maxpool(net.act1(net.bn1(net.conv1(normalize(batch.images)))))
            for number, layer in enumerate([net.layer1, net.layer2, net.layer3, net.layer4]):
                x = layer(x)
                if number < 3 and rng.random() < 0.6:
                    order = rng.permutation(12)
                    if partner == "other_domain":  # two domains of six: the circle leads from one to the other
                        circle = rng.permutation(2)
                        for left in circle:
                            order[6 * left : 6 * left + 6] = 6 * (1 - left) + rng.permutation(6)
                    share = rng.beta(0.4, 0.4, 12)
                    x = torch.from_numpy(literal_mix(x.double().numpy(), order, share)).float()
                    mixed_at.append(number)
            log_p = algorithm.classifier.head(net.global_pool(x)).log_softmax(1)
        terms = algorithm.losses(batch)
        expected = -log_p[torch.arange(12), batch.labels].mean().item()
        assert terms["raw_loss"].item() == pytest.approx(expected, rel=1e-4)
    assert 0 < len(mixed_at) < 12


def test_nothing_is_mixed_outside_the_loss(make_algorithm: Make) -> None:
    options = MixStyleConfig(probability=1.0)
    mixing, erm = make_algorithm("mixstyle", mixstyle=options), make_algorithm("erm")
    batch = make_batch(erm, 0)
    assert mixing.losses(batch)["raw_loss"].item() != pytest.approx(erm.losses(batch)["raw_loss"].item(), abs=1e-4)
    mixing, erm = make_algorithm("mixstyle", mixstyle=options), make_algorithm("erm")
    for training in (True, False):
        mixing.train(training), erm.train(training)
        assert torch.equal(mixing.predict(batch.images), erm.predict(batch.images))
    assert list(mixing.state_dict()) == list(erm.state_dict())


def test_with_probability_0_it_is_erm(make_algorithm: Make) -> None:
    mixing, erm = make_algorithm("mixstyle", mixstyle=MixStyleConfig(probability=0)), make_algorithm("erm")
    batch = make_batch(erm, 0)
    assert torch.equal(mixing.losses(batch)["raw_loss"], erm.losses(batch)["raw_loss"])


def test_partners_of_another_domain_are_of_another_domain(
    make_algorithm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    partners = []

    def recording(maps: torch.Tensor, partner: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        partners.append(partner.numpy())
        return maps

    monkeypatch.setattr(mixstyle, "mix_statistics", recording)
    options = MixStyleConfig(probability=1.0, partner="other_domain")
    algorithm = make_algorithm("mixstyle", mixstyle=options, target=None)
    batch = make_batch(algorithm, 0)
    algorithm.losses(batch)
    domain_of = algorithm.context.dataset.domain_of[batch.rows]
    assert len(partners) == 3
    for partner in partners:
        assert (domain_of[partner] != domain_of).all()


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        ("test_resnet", ["layer1", "layer2", "layer3"]),
        ("resnet10t", ["layer1", "layer2", "layer3"]),
        ("regnety_002", ["s1", "s2", "s3"]),
        ("test_efficientnet", ["blocks.1", "blocks.2", "blocks.3"]),
        ("test_convnext", ["stages.0", "stages.1", "stages.2"]),
    ],
)
def test_stages_are_found(backbone: str, names: list[str]) -> None:
    model = timm.create_model(backbone, num_classes=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = find_stages(model, backbone, 3, 64)
    modules = dict(model.named_modules())
    assert all(stage is modules[name] for stage, name in zip(found, names, strict=True))
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("backbone", "count", "message"),
    [
        ("test_vit", 3, r"stage blocks\.0 of the backbone test_vit yields no .*needs a convolutional backbone such as"),
        ("test_resnet", 5, r"--mixstyle\.stages 5: the backbone test_resnet names 4 stages"),
    ],
)
def test_a_backbone_without_stages_is_refused(backbone: str, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_stages(timm.create_model(backbone, num_classes=0), backbone, count, 160)


def test_stages_of_torchvisions_models_are_not_known() -> None:
    with pytest.raises(UsageError, match=r"--backbone torchvision:resnet18: mixstyle finds the stages of timm's"):
        find_stages(torch.nn.Identity(), "torchvision:resnet18", 2, 64)


def test_an_image_size_that_the_backbone_refuses_is_named() -> None:
    with pytest.raises(UsageError, match=r"takes no images of --data\.size 64"):
        find_stages(timm.create_model("vit_tiny_patch16_224", num_classes=0), "vit_tiny_patch16_224", 1, 64)
