from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm

from domainfusion.config import DataConfig
from domainfusion.data.transforms import augment, crop_and_flip, hue_rotation, jitter_colours, normalize, to_float

OFF = DataConfig(crop=1, flip=False, jitter=0, grayscale=0)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's and torchvision's grey


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int = 4, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=seeded(seed))


def ramps(count: int, side: int) -> torch.Tensor:
    """Images whose first channel is the column and whose second the row, so that a crop can be read off them."""
    x, y = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="xy")
    return torch.stack([x, y, torch.zeros_like(x)]).expand(count, 3, side, side).clone()


def test_bytes_become_fractions_channels_first() -> None:
    stored = torch.arange(2 * 2 * 3 * 3, dtype=torch.uint8).reshape(2, 2, 3, 3) * 7
    found = to_float(stored)
    assert found.shape == (2, 3, 2, 3)
    for b in range(2):
        for row in range(2):
            for column in range(3):
                for channel in range(3):
                    expected = int(stored[b, row, column, channel]) / 255
                    assert found[b, channel, row, column].item() == pytest.approx(expected, abs=1e-7)


def test_normalize_is_torchvisions() -> None:
    from torchvision.transforms.functional import normalize as reference

    images = random_images()
    expected = reference(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(normalize(images), expected, atol=1e-6)


def test_everything_switched_off_changes_nothing() -> None:
    images = random_images(side=9)
    assert torch.allclose(augment(images, OFF, seeded(0)), images, atol=1e-5)


@given(st.integers(0, 1000))
def test_augmented_images_stay_images(seed: int) -> None:
    images = random_images(seed=seed)
    found = augment(images, DataConfig(), seeded(seed))
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1


def test_augmentation_is_a_function_of_the_generator_and_leaves_its_input_alone() -> None:
    images = random_images()
    kept = images.clone()
    first, again, other = (augment(images, DataConfig(), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, kept)


def test_augmentation_stays_on_the_device_of_its_images() -> None:
    """As on a GPU: tensors of PyTorch's device without memory do not mix with those of the CPU, either."""
    images = random_images().to("meta")
    assert augment(images, DataConfig(jitter=0.3, grayscale=0.5), seeded(1)).device == images.device


def test_augmentation_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    augment(random_images(), DataConfig(), seeded(0))
    assert torch.equal(torch.rand(3), expected)


def test_images_have_parameters_of_their_own() -> None:
    images = random_images(1).expand(6, -1, -1, -1)
    found = augment(images, DataConfig(flip=False, grayscale=0), seeded(0))
    assert all(not torch.allclose(found[i], found[j]) for i in range(6) for j in range(i))


@pytest.mark.parametrize("smallest", [0.08, 0.7, 0.9, 0.99])
def test_crops_keep_the_area_and_aspect_that_are_asked_for(smallest: float) -> None:
    side, count = 32, 400
    found = crop_and_flip(ramps(count, side), smallest, False, seeded(0)).double()
    width = found[:, 0, 16, 16] - found[:, 0, 16, 15]  # the crop's share of the columns
    height = found[:, 1, 16, 16] - found[:, 1, 15, 16]
    area, aspect = width * height, width / height
    assert area.min() >= smallest - 1e-4
    assert area.max() <= 1 + 1e-4
    assert aspect.min() >= 3 / 4 - 1e-4
    assert aspect.max() <= 4 / 3 + 1e-4
    # They fill the range, and lie anywhere inside of the image.
    assert area.min() < smallest + 0.1 * (1 - smallest)
    assert area.max() > 1 - 0.1 * (1 - smallest)
    centre = (found[:, 0, 16, 16] + found[:, 0, 16, 15]) / 2
    assert (centre - width * side / 2).min() >= -0.5 - 1e-3
    assert (centre + width * side / 2).max() <= side - 0.5 + 1e-3
    assert centre.std() > 0.1 * (1 - math.sqrt(smallest))


@pytest.mark.parametrize("smallest", [0.08, 0.7, 0.97])
def test_crops_are_distributed_as_torchvisions(smallest: float) -> None:
    """Areas and places: the fit is by rejection, so crops that touch two sides are as rare as there."""
    from torchvision.transforms import RandomResizedCrop

    count, side = 4000, 10**6  # torchvision counts in whole pixels
    torch.manual_seed(0)
    image = torch.empty(3, 1, 1).expand(3, side, side)
    drawn = [RandomResizedCrop.get_params(image, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    top, left, height, width = (torch.tensor(values) / side for values in zip(*drawn, strict=True))
    expected = {"area": width * height, "aspect": (width / height).log(), "x": left + width / 2, "y": top + height / 2}

    mine = crop_and_flip(ramps(count, 8), smallest, False, seeded(0)).double()
    width, height = mine[:, 0, 4, 4] - mine[:, 0, 4, 3], mine[:, 1, 4, 4] - mine[:, 1, 3, 4]
    centre = (mine[:, :, 3, 3] + mine[:, :, 4, 4]) / 2 + 0.5
    found = {"area": width * height, "aspect": (width / height).log(), "x": centre[:, 0] / 8, "y": centre[:, 1] / 8}

    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    for name, values in expected.items():
        spread = values.double().std()
        quantiles = found[name].quantile(levels), values.double().quantile(levels)
        assert torch.allclose(*quantiles, atol=0.15 * float(spread), rtol=0), name
    whole = [float((values > 0.999).double().mean()) for values in (found["area"], expected["area"])]
    assert whole[0] == pytest.approx(whole[1], abs=0.03)  # the fallback, where no draw fits


def test_a_crop_is_bilinear_sampling() -> None:
    images, side = random_images(3, 6), 6
    found = crop_and_flip(images, 0.5, True, seeded(1)).numpy()
    where = crop_and_flip(ramps(3, 96), 0.5, True, seeded(1))  # the same draws, read off a fine ramp
    for b in range(3):
        # Affine map from output to input in units of the image, from two points near the middle.
        x0, y0 = float(where[b, 0, 48, 47]), float(where[b, 1, 47, 48])
        dx = float(where[b, 0, 48, 48]) - x0
        dy = float(where[b, 1, 48, 48]) - y0
        for row in range(side):
            for column in range(side):
                u = ((x0 + 0.5) + dx * ((column + 0.5) * 96 / side - 47.5)) / 96 * side - 0.5
                v = ((y0 + 0.5) + dy * ((row + 0.5) * 96 / side - 47.5)) / 96 * side - 0.5
                u, v = min(max(u, 0), side - 1), min(max(v, 0), side - 1)
                i, j = min(int(v), side - 2), min(int(u), side - 2)
                a, c = v - i, u - j
                image = images[b].numpy()
                expected = (
                    (1 - a) * ((1 - c) * image[:, i, j] + c * image[:, i, j + 1])
                    + a * ((1 - c) * image[:, i + 1, j] + c * image[:, i + 1, j + 1])
                )  # fmt: skip
                assert found[b, :, row, column] == pytest.approx(expected, abs=2e-3)


def test_crops_bring_no_edge_in() -> None:
    assert torch.allclose(crop_and_flip(torch.ones(100, 3, 8, 8), 0.7, True, seeded(0)), torch.ones(1), atol=1e-6)


def test_flips_mirror_about_half_of_the_images() -> None:
    images = random_images(1).expand(200, -1, -1, -1)
    found = crop_and_flip(images, 1, True, seeded(0))
    mirrored = torch.stack([torch.allclose(image, images[0].flip(-1), atol=1e-5) * torch.ones(()) for image in found])
    kept = torch.stack([torch.allclose(image, images[0], atol=1e-5) * torch.ones(()) for image in found])
    assert torch.equal(mirrored + kept, torch.ones(200))
    assert 70 < mirrored.sum() < 130


def test_grayscale_takes_its_share_and_weighs_as_bt601() -> None:
    images = random_images(300)
    found = augment(images, DataConfig(crop=1, flip=False, jitter=0, grayscale=0.3), seeded(0))
    grey = torch.einsum("bchw,c->bhw", images, torch.tensor(LUMA, dtype=torch.float32))
    turned = 0
    for before, after, expected in zip(images, found, grey, strict=True):
        if torch.allclose(after, before, atol=1e-5):
            continue
        assert torch.allclose(after, expected.expand(3, -1, -1), atol=1e-5)
        turned += 1
    assert 60 < turned < 120
    everything = augment(images, DataConfig(crop=1, flip=False, jitter=0, grayscale=1), seeded(0))
    assert torch.allclose(everything, grey[:, None].expand_as(images), atol=1e-5)


@given(st.floats(-10, 10))
def test_hue_rotation_is_the_rotation_about_grey(angle: float) -> None:
    (found,) = hue_rotation(torch.tensor([angle], dtype=torch.float64)).numpy()
    axis = np.ones(3) / math.sqrt(3)
    generator = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    assert found == pytest.approx(expm(angle * generator), abs=1e-9)
    assert found @ found.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(found) == pytest.approx(1)
    assert found @ np.full(3, 0.37) == pytest.approx(np.full(3, 0.37))


def test_a_third_of_a_turn_moves_red_to_green_to_blue() -> None:
    (matrix,) = hue_rotation(torch.tensor([2 * math.pi / 3]))
    assert torch.allclose(matrix @ torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]), atol=1e-6)
    assert torch.allclose(matrix @ torch.tensor([0, 1.0, 0]), torch.tensor([0, 0, 1.0]), atol=1e-6)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_jitter_is_what_it_says_image_by_image(seed: int, strength: float) -> None:
    images = random_images(3, 4, seed)
    found = jitter_colours(images, strength, seeded(seed)).double().numpy()
    draws = seeded(seed)
    # In this order: three factors from 1 - s to 1 + s, then an angle from -s to s turns.
    brightness, contrast, saturation = (
        [1 + strength * (2 * u - 1) for u in torch.rand(3, generator=draws).tolist()] for _ in range(3)
    )
    angles = [2 * math.pi * strength * (2 * u - 1) for u in torch.rand(3, generator=draws).tolist()]
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    for b in range(3):
        image = images[b].double().numpy()
        image = np.clip(image * brightness[b], 0, 1)
        mean = np.mean([LUMA @ image[:, i, j] for i in range(4) for j in range(4)])
        image = np.clip(mean + contrast[b] * (image - mean), 0, 1)
        turn = expm(angles[b] * axis)
        for i in range(4):
            for j in range(4):
                pixel = image[:, i, j]
                grey = LUMA @ pixel
                pixel = np.clip(grey + saturation[b] * (pixel - grey), 0, 1)
                assert found[b, :, i, j] == pytest.approx(np.clip(turn @ pixel, 0, 1), abs=1e-4)


def test_no_jitter_changes_nothing() -> None:
    images = random_images()
    assert torch.allclose(jitter_colours(images, 0, seeded(0)), images, atol=1e-6)
