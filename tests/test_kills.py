"""Every stage, killed again and again, at operations on files, inside writes and by the clock: it ends as if not.

The default tests kill a few times, `-m slow` many times.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainfusion.config import AverageConfig, DataConfig, GenerateConfig, PretrainConfig, TrainConfig, ZeroShotConfig
from domainfusion.diffusion import denoiser_training, pretraining
from domainfusion.experiments import runs, tabulating
from domainfusion.fusion.synthetic import load_generation
from domainfusion.json_lines import read_json_lines
from domainfusion.tensors import load_state
from killing import run
from same_run import assert_same_run, tensors_of, without_clocks

Work = Callable[[Path], object]
AMOUNTS = [pytest.param((1, 4), id="few"), pytest.param((12, 6), id="many", marks=pytest.mark.slow)]


def survive(work: Work, tmp_path: Path, compare: Callable[[Path, Path], None], amount: tuple[int, int]) -> None:
    """Do `work` whole, and in chains with kills in between; `compare` what is there in the end.

    `work` is given a folder of its own, below which everything it writes lies.
    """
    whole = tmp_path / "whole"
    whole.mkdir()
    started = time.monotonic()
    total = run(in_folder(work, whole), whole).moments
    seconds = time.monotonic() - started
    assert total > 10
    chains, kills = amount
    for chain in range(chains):
        rng = np.random.default_rng([chain, total])
        folder = tmp_path / f"chain-{chain}"
        folder.mkdir()
        killed = 0
        for number in range(kills):
            by_clock = number % 3 == 2
            ending = run(
                in_folder(work, folder), folder, moment=0 if by_clock else int(rng.integers(1, total * 2 // 3)),
                share=rng.random(), seconds=seconds * rng.uniform(0.05, 0.6) if by_clock else 0,
            )  # fmt: skip
            assert "damaged" not in ending.said, ending.said  # a kill leaves nothing half written under its name
            if not ending.killed:
                break
            killed += 1
        ending = run(in_folder(work, folder), folder)
        assert "damaged" not in ending.said, ending.said
        assert killed > 0
        compare(whole, folder)


def in_folder(work: Work, folder: Path) -> Callable[[], object]:
    def inside() -> object:
        os.environ["DOMAINFUSION_CACHE"] = str(folder / "cache")
        return work(folder)

    return inside


@pytest.fixture(scope="module")
def images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", count=3)


@pytest.fixture(scope="module")
def config(tiny_pipeline: Path) -> TrainConfig:
    return TrainConfig(
        algorithm="domainfusion", target="sketch", steps=4, evaluations=2, batch_size=4, backbone="test_resnet",
        ldm=str(tiny_pipeline), precision="float32", device="cpu", data=DataConfig(size=16, holdout_fraction=0.4),
        generate=GenerateConfig(candidates=2, steps=2, interval=1, generations=2, batch_size=8),
    )  # fmt: skip


@pytest.mark.parametrize("amount", AMOUNTS)
def test_training(images: Path, config: TrainConfig, tmp_path: Path, amount: tuple[int, int]) -> None:
    config = dataclasses.replace(config, algorithm="erm", steps=8, evaluations=4, average=AverageConfig(method="ema"))
    survive(
        lambda folder: runs.train_run(str(images), config, folder / "run", progress=False), tmp_path,
        lambda whole, killed: assert_same_run(whole / "run", killed / "run"), amount,
    )  # fmt: skip


@pytest.mark.parametrize("updating", [False, True])
@pytest.mark.parametrize("amount", AMOUNTS)
def test_generations(
    images: Path, config: TrainConfig, tmp_path: Path, amount: tuple[int, int], updating: bool
) -> None:
    """Killed while candidates are made and generations written; they are equal, and so is what is learnt from them."""
    config = dataclasses.replace(config, generate=dataclasses.replace(config.generate, updating=updating))

    def compare(whole: Path, killed: Path) -> None:
        for number in range(2):
            a, b = (load_generation(f / "run" / "synthetic" / f"generation-{number:02d}") for f in (whole, killed))
            assert np.array_equal(a.images, b.images)
            assert a.lineage == b.lineage
        for name in ("model.safetensors", "checkpoints/last.safetensors"):
            assert (whole / "run" / name).exists() == (killed / "run" / name).exists()
        a, b = (load_state(f / "run" / "checkpoints" / "last.safetensors") for f in (whole, killed))
        for part in ("model", "optimizer"):
            first, second = tensors_of(a[part]), tensors_of(b[part])
            assert [name for name in first if not first[name].equal(second[name])] == []
        records = [
            [without_clocks(record) for record in read_json_lines(f / "run" / "metrics.jsonl")] for f in (whole, killed)
        ]
        assert records[0] == records[1]

    survive(
        lambda folder: runs.train_run(str(images), config, folder / "run", progress=False), tmp_path, compare, amount
    )


@pytest.mark.parametrize("amount", AMOUNTS)
def test_curves(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: tuple[int, int]
) -> None:
    from domainfusion.distillation import curves

    monkeypatch.setattr(curves, "SHARD", 8)

    def compare(whole: Path, killed: Path) -> None:
        found = [sorted((f / "cache" / "curves").rglob("*.safetensors")) for f in (whole, killed)]
        assert [path.name for path in found[0]] == [path.name for path in found[1]]
        assert len(found[0]) == 4
        for first, second in zip(*found, strict=True):
            a, b = tensors_of(load_state(first)), tensors_of(load_state(second))
            assert [name for name in a if not a[name].equal(b[name])] == []

    distill = dataclasses.replace(config.distill, curve_samples=2, curve_rounds=2)
    survive(
        lambda folder: tabulating.tabulate_curves(str(images), dataclasses.replace(config, distill=distill)),
        tmp_path, compare, amount,
    )  # fmt: skip


@pytest.mark.parametrize("amount", AMOUNTS)
def test_zero_shot_evaluation(images: Path, config: TrainConfig, tmp_path: Path, amount: tuple[int, int]) -> None:
    """Predictions are equal, errors up to rounding: images are batched by what is still missing."""
    config = dataclasses.replace(
        config, algorithm="diffusion_classifier",
        zero_shot=ZeroShotConfig(samples=(2, 4), keep=(2, 1), batch_size=8, validation=True),
    )  # fmt: skip

    def compare(whole: Path, killed: Path) -> None:
        tables = []
        for folder in (whole, killed):
            with open(folder / "run" / "predictions.csv", newline="", encoding="utf-8") as file:
                tables.append(
                    [[line[name] for name in ("row", "class", "prediction")] for line in csv.DictReader(file)]
                )
        assert tables[0] == tables[1]
        scores = []
        for folder in (whole, killed):
            (path,) = (folder / "cache" / "zero_shot").rglob("images.jsonl")
            scores.append({record["key"]: record for record in read_json_lines(path)})
        assert scores[0].keys() == scores[1].keys()
        for key, record in scores[0].items():
            assert record["draws"] == scores[1][key]["draws"]
            np.testing.assert_allclose(record["errors"], scores[1][key]["errors"], rtol=1e-5)
        assert len(read_json_lines(killed / "run" / "results.jsonl")) == 1

    survive(
        lambda folder: runs.train_run(str(images), config, folder / "run", progress=False), tmp_path, compare, amount
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "style"])
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", f"thing {number % 3}", ["flat", "ink"][number % 2]])
    return folder


@pytest.mark.parametrize("amount", AMOUNTS)
def test_pretraining(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: tuple[int, int]) -> None:
    config = PretrainConfig(
        size=16, latent_channels=4, vae_channels=(8, 16), vae_steps=4, vae_batch_size=4, unet_channels=(32,),
        unet_steps=4, unet_batch_size=4, vocabulary=256, text_length=8, text_width=32, text_layers=1, pool_size=8,
        pool_epochs=1, save_every=2, log_every=1,
    )  # fmt: skip
    # Samples of twenty steps are most of the time here, and part of no state.
    monkeypatch.setattr(denoiser_training, "save_samples", lambda *arguments: None)

    def compare(whole: Path, killed: Path) -> None:
        for stage in ("autoencoder", "denoiser"):
            a, b = (tensors_of(load_state(f / "ldm" / f"{stage}-state.safetensors")) for f in (whole, killed))
            assert [name for name in a if not a[name].equal(b[name])] == []
        for name in ("scaling.json", "corpus.json", "pretrain.toml"):
            assert (whole / "ldm" / name).read_bytes() == (killed / "ldm" / name).read_bytes()
        for path in sorted((whole / "ldm" / "pipeline").rglob("*.*")):
            here, there = path.read_bytes(), (killed / path.relative_to(whole)).read_bytes()
            # diffusers writes down where a part was loaded from
            assert here.replace(bytes(whole), b"") == there.replace(bytes(killed), b""), path
        records = [
            [without_clocks(record) for record in read_json_lines(f / "ldm" / "metrics.jsonl")] for f in (whole, killed)
        ]
        assert records[0] == records[1]

    survive(lambda folder: pretraining.pretrain(corpus, config, folder / "ldm"), tmp_path, compare, amount)
