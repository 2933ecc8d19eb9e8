"""The images that a worker is given: those that training has, whole, and no copy where a file will do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from domainfusion.config import DataConfig, GenerateConfig
from domainfusion.data.domains import MultiDomainDataset, load_folder
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.files import read_json
from domainfusion.fusion.ahead import Order

CONFIG = GenerateConfig(candidates=2, steps=2, batch_size=4)


def test_a_worker_reads_the_images_that_training_has(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tmp_path: Path
) -> None:
    other = np.lib.format.open_memmap(tmp_path / "other.npy", "w+", np.uint8, dataset.images.shape)
    raw = np.memmap(tmp_path / "raw", np.uint8, "w+", shape=dataset.images.shape)
    for array in (other, raw):
        array[:] = 255 - dataset.images
    for name, images, copied in (
        ("whole file", dataset.images, False), ("another", other, False), ("backwards", dataset.images[::-1], True),
        ("a part", dataset.images[3:], True), ("no file", np.array(dataset.images), True), ("not .npy", raw, True),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        given = dataclasses.replace(dataset, images=images)
        Order(ldm, given, np.arange(4), CONFIG, (), {}).write(folder, "cpu")
        assert (folder / "images.npy").exists() == copied, name
        assert np.array_equal(np.load(read_json(folder / "order.json")["images"]), images), name


def test_what_is_damaged_in_the_cache_is_mended_before_a_worker_reads_it(
    ldm: LatentDiffusion, make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The worker reads the file, and has neither checksums nor the images that it was made from."""
    dataset = load_folder(make_image_folder("odd", count=2), DataConfig(size=16))
    sound = np.array(dataset.images)
    path = Path(dataset.images.filename)
    damaged = np.load(path, mmap_mode="r+")
    damaged[5, 2, 3, 1] ^= 16
    damaged.flush()
    again = load_folder(tmp_path / "odd", DataConfig(size=16))
    Order(ldm, again, np.arange(3, 9), CONFIG, (), {}).write(tmp_path, "cpu")
    assert read_json(tmp_path / "order.json")["images"] == str(path.resolve())
    assert np.array_equal(np.load(path), sound)
