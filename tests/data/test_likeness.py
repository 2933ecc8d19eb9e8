"""Near duplicates: what people take for the same picture is found, and what only resembles it is not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from domainfusion.config import DataConfig
from domainfusion.data.domains import load_folder
from domainfusion.data.likeness import (
    SMALL,
    digests,
    find_overlap,
    find_torn,
    look_alike,
    near_pairs,
    overlap_notes,
    perceptual_hash,
    shrink,
)


def scene(seed: int, side: int = 96) -> Image.Image:
    """A picture with something to see: smooth random colours."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def changed(image: Image.Image, how: str) -> Image.Image:
    if how == "compressed":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=40)
        return Image.open(file)
    if how == "resized":
        return image.resize((50, 50), Image.Resampling.BILINEAR)
    if how == "brighter":
        return image.point(lambda value: min(255, value + 5))
    noise = np.random.default_rng(0).normal(0, 6, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def pixels(images: list[Image.Image], side: int = 64) -> np.ndarray:
    return np.stack([np.asarray(image.convert("RGB").resize((side, side))) for image in images])


def test_areas_are_means_of_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    expected = images.reshape(3, 16, 4, 16, 4, 3).mean((2, 4))
    np.testing.assert_allclose(shrink(images, 16), expected, rtol=1e-5)
    enlarged = shrink(images[:, :24, :24], 48)  # each pixel becomes four
    np.testing.assert_allclose(enlarged, images[:, :24, :24].repeat(2, 1).repeat(2, 2), rtol=1e-5)
    np.testing.assert_allclose(shrink(images[:, :20, :20], 8).mean((1, 2)), images[:, :20, :20].mean((1, 2)), rtol=1e-5)


def test_the_hash_is_the_signs_of_low_frequencies() -> None:
    """Against scipy's transform, the frequencies picked one by one."""
    images = pixels([scene(seed) for seed in range(4)], 32)
    order = sorted(((i, j) for i in range(9) for j in range(9) if i + j), key=lambda p: (p[0] + p[1], p))[:64]
    for image, found in zip(images, perceptual_hash(images), strict=True):
        table = dctn(image @ np.array([0.299, 0.587, 0.114]), type=2)
        low = [table[pair] for pair in order]
        assert int(found) == sum(1 << n for n, value in enumerate(low) if value > np.median(low))


@pytest.mark.parametrize("how", ["compressed", "resized", "brighter", "noisy"])
def test_a_changed_copy_is_found_and_nothing_else(how: str) -> None:
    originals = [scene(seed) for seed in range(40)]
    copies = pixels([changed(image, how) for image in originals[:10]])
    first, second = perceptual_hash(pixels(originals)), perceptual_hash(copies)
    pairs = near_pairs(first, second)
    assert [pair for pair in pairs if pair[0] == pair[1]] == [(i, i) for i in range(10)]
    assert pairs == [(i, i) for i in range(10)]
    assert look_alike(shrink(pixels(originals[:10]), SMALL), shrink(copies, SMALL)).all()
    assert not look_alike(shrink(pixels(originals[10:20]), SMALL), shrink(copies, SMALL)).any()


def test_how_unlike_one_picture_may_be() -> None:
    """A mean difference of 8 of 255, and a correlation of 0.95."""
    columns = np.tile([1.0, -1.0], SMALL // 2)
    pattern = np.broadcast_to(columns[None, :, None], (SMALL, SMALL, 3))  # two that have nothing in common
    other = np.broadcast_to(columns[:, None, None], (SMALL, SMALL, 3))
    for step, same in ((7.9, True), (8.1, False)):
        assert look_alike((100 + 50 * pattern)[None], (100 + step + 50 * pattern)[None]).tolist() == [same]
    for share, same in ((0.96, True), (0.94, False)):
        blend = share * pattern + np.sqrt(1 - share**2) * other
        assert look_alike((100 + 4 * pattern)[None], (100 + 4 * blend)[None]).tolist() == [same]


def test_pairs_are_those_of_all_comparisons() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(1, 2**63, 60, dtype=np.uint64)
    second = first[rng.integers(0, 60, 80)]
    for i, flips in enumerate(rng.integers(0, 8, 80)):
        for bit in rng.permutation(64)[:flips]:
            second[i] ^= np.uint64(1) << np.uint64(bit)
    expected = [(i, j) for i in range(60) for j in range(80) if (int(first[i]) ^ int(second[j])).bit_count() <= 4]
    assert near_pairs(first, second) == expected
    assert 20 < len(expected) < 80


def test_flat_pictures_are_like_nothing() -> None:
    flat = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 128, 255)])
    assert perceptual_hash(flat).tolist() == [0, 0, 0]
    assert near_pairs(perceptual_hash(flat), perceptual_hash(flat)) == []


@pytest.fixture
def leaking(make_image_folder: Callable[..., Path]) -> Path:
    """`sketch/cat/08.png` is `photo/cat/00.png`, `sketch/dog/08.jpg` nearly `photo/dog/01.png`; one label is torn."""
    root = make_image_folder("leaking", count=8)
    for domain, label, number, seed in (("photo", "cat", 0, 1), ("photo", "dog", 1, 2), ("photo", "house", 0, 3)):
        scene(seed).save(root / domain / label / f"{number:02d}.png")
    scene(1).save(root / "sketch" / "cat" / "08.png")
    changed(scene(2), "compressed").save(root / "sketch" / "dog" / "08.jpg", quality=70)
    scene(3).save(root / "cartoon" / "cat" / "08.png")
    return root


def test_overlap_of_training_and_test(leaking: Path, cache: Path) -> None:
    dataset = load_folder(leaking, DataConfig(size=32))
    keys = {key: i for i, key in enumerate(dataset.keys)}
    test = dataset.rows(2)
    used = np.concatenate([dataset.rows(0), dataset.rows(1)])
    equal, near = find_overlap(dataset, used, test)
    assert equal == [(keys["photo/cat/00.png"], keys["sketch/cat/08.png"])]
    assert near == [(keys["photo/dog/01.png"], keys["sketch/dog/08.jpg"])]
    assert find_torn(dataset, used) == [(keys["cartoon/cat/08.png"], keys["photo/house/00.png"])]
    said = overlap_notes(dataset, used, test)
    assert said[0].startswith("1 of 26 test images are also in the source domains")
    assert "sketch/cat/08.png = photo/cat/00.png" in said[0]
    assert "look like pictures in the source domains" in said[1]
    assert "photo/house/00.png = cartoon/cat/08.png" in said[2]
    assert overlap_notes(dataset, used, test[:0]) == said[2:]
    (kept,) = cache.glob("digests/*-1.npy")
    before = digests(dataset)
    for content in (b"", b"no array", kept.read_bytes()[:-8]):
        kept.write_bytes(content)
        assert np.array_equal(digests(dataset), before)
