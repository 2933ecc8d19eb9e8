"""Convolutions that compute in single precision under a CPU's autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from domainfusion.algorithms.classifier import build_classifier
from domainfusion.algorithms.cpu_convolutions import all_reached, in_single_precision_where_needed, is_slow
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
    ],
)
def test_which_convolutions_are_slow(module: nn.Conv2d, slow: bool) -> None:
    assert is_slow(module) is slow


def test_under_autocast_forward_and_gradients_are_those_of_single_precision() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6)
    quick = nn.Sequential(copy.deepcopy(plain))
    in_single_precision_where_needed(quick)
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
    in_single_precision_where_needed(quick)
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
    for name, module in network.named_modules():
        mine = classifier.backbone.get_submodule(name)
        assert isinstance(mine, type(module))
        assert type(mine).__name__ == type(module).__name__
        assert (type(mine) is type(module)) == (not isinstance(module, nn.Conv2d) or module.kernel_size == (1, 1))


KERNELS = [
    (size, dilation, stride, padding)
    for size in (2, 3, 5) for dilation in (1, 2) for stride in (1, 2, 3) for padding in (0, 1, 2, 3, "same", "valid")
    if padding != "same" or (stride == 1 and size % 2)  # PyTorch has no others, or pads them on one side more
]  # fmt: skip


@pytest.mark.parametrize(("size", "dilation", "stride", "padding"), KERNELS)
def test_a_kernel_is_reached_where_its_gradient_is_not_zero(
    size: int, dilation: int, stride: int, padding: int | str
) -> None:
    plain = nn.Conv2d(1, 1, size, stride, padding, dilation, bias=False)
    for extent in range(1, 9):
        images = torch.ones(1, 1, extent, 20)
        if isinstance(padding, int) and extent + 2 * padding < dilation * (size - 1) + 1:
            continue
        if padding == "valid" and extent < dilation * (size - 1) + 1:
            continue
        plain.zero_grad()
        plain(images).sum().backward()
        assert all_reached(plain, images.shape) == bool((plain.weight.grad[0, 0] != 0).all()), extent


@pytest.mark.parametrize("channels", [(64, 64), (24, 32), (256, 512)])
def test_gradients_of_kernels_beyond_the_input_are_not_what_memory_held(channels: tuple[int, int]) -> None:
    """A stage of 1 × 1, among memory that held NaN: in bfloat16 more than half of such gradients have some."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(*channels, 3, stride=2, padding=1, bias=False)).to(
        memory_format=torch.channels_last
    )
    in_single_precision_where_needed(layer)
    for turn in range(30):
        held = [torch.full((size,), torch.nan) for size in (2**22, 2**20, 2**18, 2**16, 513 * 512 * 9)]
        images = torch.randn(4, channels[0], 1, 1).bfloat16().to(memory_format=torch.channels_last)
        del held
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(images)
        layer.zero_grad()
        found.sum().backward()
        gradient = layer[0].weight.grad
        assert gradient.isfinite().all(), turn
        assert (gradient[:, :, 1, 1] != 0).any()
        assert (gradient.flatten(2)[:, :, [0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()  # of what sees padding alone


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
