"""Depthwise convolutions that compute in single precision under a CPU's autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from domainfusion.algorithms.classifier import build_classifier
from domainfusion.algorithms.depthwise import is_slow, speed_up_depthwise
from domainfusion.config import TrainConfig


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("module", "slow"),
    [
        (nn.Conv2d(8, 8, 5, groups=8), True),
        (nn.Conv2d(8, 16, 3, stride=2, groups=8), True),
        (nn.Conv2d(8, 8, (1, 7), groups=8), True),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), False),  # as fast in bfloat16
        (nn.Conv2d(8, 8, 5, groups=4), False),  # not depthwise
        (nn.Conv2d(1, 8, 5), False),  # one channel is every channel
        (nn.Linear(8, 8), False),
    ],
)
def test_which_convolutions_are_slow(module: nn.Module, slow: bool) -> None:
    assert is_slow(module) is slow


def test_under_autocast_forward_and_gradients_are_those_of_single_precision() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6)
    quick = nn.Sequential(copy.deepcopy(plain))
    speed_up_depthwise(quick)
    images = draw(4, 6, 11, 11).bfloat16()  # a layer before has given them in bfloat16
    weigh = draw(4, 6, 6, 6).bfloat16()

    mine = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = quick(mine)
    assert found.dtype == torch.bfloat16
    (found * weigh).sum().backward()

    reference = images.float().requires_grad_()
    expected = plain(reference)
    assert torch.equal(found, expected.bfloat16())
    (expected * weigh.float()).sum().backward()
    assert torch.equal(quick[0].weight.grad, plain.weight.grad)  # bfloat16's own is 1 % off
    assert torch.equal(mine.grad, reference.grad.bfloat16())


def test_without_autocast_and_on_other_devices_nothing_changes() -> None:
    plain = nn.Conv2d(6, 6, 5, groups=6)
    quick = nn.Sequential(copy.deepcopy(plain))
    speed_up_depthwise(quick)
    images = draw(2, 6, 9, 9)
    assert torch.equal(quick(images), plain(images))
    on_meta = copy.deepcopy(quick).to("meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert on_meta(images.to("meta")).dtype == torch.float32  # the CPU's autocast is not the meta device's


def test_a_classifiers_network_keeps_the_names_of_its_weights_and_its_types() -> None:
    import timm

    classifier = build_classifier(TrainConfig(backbone="efficientnet_lite0"), 5)
    network = timm.create_model("efficientnet_lite0", num_classes=0)
    assert classifier.backbone.state_dict().keys() == network.state_dict().keys()
    slow = [name for name, module in network.named_modules() if is_slow(module)]
    changed = [
        name
        for name, module in classifier.backbone.named_modules()
        if type(module) is not type(network.get_submodule(name))
    ]
    assert changed == slow
    assert len(slow) > 8
    assert all(isinstance(classifier.backbone.get_submodule(name), nn.Conv2d) for name in slow)


def test_a_classifiers_step_in_bfloat16_stays_near_single_precision() -> None:
    torch.manual_seed(0)
    classifier = build_classifier(TrainConfig(backbone="mobilenetv3_small_050"), 5).train()
    images, labels = draw(8, 3, 64, 64).sigmoid(), torch.arange(8) % 5

    def gradients(mixed: bool) -> dict[str, torch.Tensor]:
        classifier.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = nn.functional.cross_entropy(classifier(images), labels)
        loss.backward()
        return {name: value.grad.clone() for name, value in classifier.named_parameters()}

    single, mixed = gradients(False), gradients(True)
    assert all(value.dtype == torch.float32 for value in mixed.values())
    flat = [torch.cat([value.flatten() for value in found.values()]) for found in (single, mixed)]
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) > 0.9
