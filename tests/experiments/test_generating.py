"""Candidates made ahead: the ones that a run would make, in shards, and as a data set of pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import UsageError
from domainfusion.experiments.generating import (
    candidates_address,
    candidates_part,
    generate_candidates,
    generation_text,
)
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.files import cache_folder
from domainfusion.fusion import candidates as candidates_module
from domainfusion.fusion.candidates import candidates_of


@pytest.fixture
def images(make_image_folder: Callable[..., Path]) -> Path:
    return make_image_folder("few", count=2)


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    generate = GenerateConfig(candidates=2, steps=2, batch_size=8, updating=False)
    return TrainConfig(
        ldm=str(tiny_pipeline), precision="float32", device="cpu", data=DataConfig(size=32), generate=generate
    )


def test_a_run_finds_all_of_them(images: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generate_candidates(str(images), config, generations=2, shard=(0, 2))
    second = generate_candidates(str(images), config, generations=2, shard=(1, 2))
    dataset = load_dataset(str(images), config.data)
    assert first["images"] + second["images"] == len(dataset)
    assert first["candidates"] == first["images"] * 2 * 2

    def nothing(*arguments: object) -> None:
        raise AssertionError("a candidate was made again")

    monkeypatch.setattr(candidates_module, "make_candidates", nothing)
    ldm = LatentDiffusion.load(config.ldm, precision="float32")
    for number in range(2):
        rows = np.arange(len(dataset))
        parts = candidates_of(
            ldm, dataset, rows, dataset.images, config.generate, number=number, styles=ldm.styles, stored=True
        )
        assert sum(len(found) for _, _, found in parts) == len(dataset)
    again = generate_candidates(str(images), config, generations=2)
    assert again["candidates"] == len(dataset) * 2 * 2
    assert "72 candidates of 18 images" in generation_text(again)


def test_other_machines_make_what_a_run_asks_for(
    make_image_folder: Callable[..., Path], config: TrainConfig, tmp_path: Path
) -> None:
    """Address and candidates, where no more candidates are needed than one, and two domains are held out."""
    data = str(make_image_folder("styled", domains=("flat", "ink", "photo"), count=2))
    generate = dataclasses.replace(config.generate, sampling=False)
    options = dataclasses.replace(
        config, target="ink", second_target="flat", steps=4, backbone="test_resnet", distill_weight=0.0,
        generate=generate,
    )  # fmt: skip
    algorithm = build_algorithm(build_context(data, options, tmp_path / "run", progress=False))
    assert isinstance(algorithm, DomainFusion)
    algorithm.before_step(3, 3)
    folder = cache_folder() / "candidates"
    made = {path.name.removesuffix(".done.npy") for path in folder.glob("*.done.npy")}
    assert {Path(candidates_address(data, options, number)).stem for number in range(3)} == made
    kept = np.load(folder / candidates_address(data, options, 1))[algorithm.rows]
    assert np.array_equal(candidates_part(data, options, 1, algorithm.rows), kept)
    generate_candidates(data, options, generations=3)
    assert len(list(folder.glob("*.done.npy"))) == 3


def test_as_a_data_set_of_pictures(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    found = generate_candidates(str(images), config, output=tmp_path / "made")
    made = load_dataset(str(tmp_path / "made"), config.data)
    original = load_dataset(str(images), config.data)
    assert len(made) == found["files"] == 2 * len(original)
    assert made.domains == original.domains
    assert made.classes == original.classes
    assert np.bincount(made.labels).tolist() == (2 * np.bincount(original.labels)).tolist()
    with Image.open(next((tmp_path / "made").rglob("*-g0-c1.png"))) as image:
        assert image.size == (32, 32)


def test_what_cannot_be_made_ahead_is_refused(images: Path, config: TrainConfig) -> None:
    updating = TrainConfig(ldm=config.ldm, data=config.data, generate=GenerateConfig(updating=True))
    with pytest.raises(UsageError, match=r"--generate\.no-updating"):
        generate_candidates(str(images), updating, generations=2)
    with pytest.raises(UsageError, match="--shard 2 2 is not I N"):
        generate_candidates(str(images), config, shard=(2, 2))
    with pytest.raises(UsageError, match="--generations 0"):
        generate_candidates(str(images), config, generations=0)
