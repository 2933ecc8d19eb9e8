"""Training that reads slopes from a table, and when it does."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import DistillConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.diffusion import ldm as ldm_module
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.distillation import curves as curves_module
from domainfusion.distillation.curve_choice import reads_curves
from domainfusion.distillation.curve_rounds import GRID, confidences
from domainfusion.distillation.curves import CurveStore
from domainfusion.experiments.planning import plan_run
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.experiments.tabulating import tabulate_curves, tabulation_text
from domainfusion.files import cache_folder, read_json, write_json
from domainfusion.training.step import make_batch


def test_training_reads_the_table_and_loads_no_ldm(
    few_images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tabulate_curves(str(few_images), config)
    assert found["computed"] == found["images"] == 18
    assert tabulate_curves(str(few_images), config)["computed"] == 0
    assert "18 of 18 images" in tabulation_text(found)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the LDM was loaded")

    monkeypatch.setattr(ldm_module.LatentDiffusion, "load", refuse)
    result = train_run(str(few_images), config, tmp_path / "run", progress=False)
    assert result["steps"] == 3
    algorithm = build_algorithm(build_context(str(few_images), config, tmp_path / "other", progress=False))
    assert isinstance(algorithm, DomainFusion)
    batch = make_batch(algorithm, 0)
    logits = algorithm.predict(batch.images)
    p = logits.softmax(-1)[torch.arange(len(batch.labels)), batch.labels]
    table = algorithm.curves
    assert table is not None
    slopes = [
        np.interp(float(q), GRID, table.slopes[row].numpy()) for q, row in zip(p.detach(), batch.rows, strict=True)
    ]
    expected = (torch.tensor(slopes, dtype=torch.float32) * p).mean()
    loss = algorithm.distill(batch, logits)
    torch.testing.assert_close(loss, expected)
    (by_loss,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (by_hand,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(by_loss, by_hand)
    assert by_loss.abs().max() > 0


def test_curves_of_another_data_set_serve_training_without_the_ldm(
    few_images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(few_images, grown)
    image = sorted((grown / "sketch").rglob("*.png"))[0]  # one more of the target, so that the data set is another
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(image.with_name("aaa.png"))
    tabulate_curves(str(few_images), config)
    assert plan_run(str(grown), config)["counts"]["curves"] > 9  # all: images that are not decoded are not known again
    load_dataset(str(grown), config.data)
    assert plan_run(str(grown), config)["counts"]["curves"] == 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the LDM was loaded")

    monkeypatch.setattr(ldm_module.LatentDiffusion, "load", refuse)
    assert train_run(str(grown), config, tmp_path / "run", progress=False)["steps"] == 3


def test_training_tabulates_what_is_missing(few_images: Path, config: TrainConfig, tmp_path: Path) -> None:
    algorithm = build_algorithm(build_context(str(few_images), config, tmp_path / "run", progress=False))
    assert isinstance(algorithm, DomainFusion)
    assert algorithm.curves is not None
    known = set((algorithm.curves.rounds > 0).nonzero().flatten().tolist())
    assert known == set(algorithm.rows.tolist())  # the target's images, and the held-out ones, are left alone


def test_a_table_of_more_detail_is_read_at_all_its_confidences(
    few_images: Path, config: TrainConfig, tmp_path: Path
) -> None:
    finer = dataclasses.replace(config, distill=dataclasses.replace(config.distill, curve_detail=2))
    assert tabulate_curves(str(few_images), config)["computed"] == 18
    assert tabulate_curves(str(few_images), finer)["computed"] == 18  # another table
    algorithm = build_algorithm(build_context(str(few_images), finer, tmp_path / "run", progress=False))
    assert isinstance(algorithm, DomainFusion)
    assert algorithm.curves is not None
    points = confidences(2)[1]
    assert algorithm.curves.grid.tolist() == pytest.approx(points)
    between = points.index(0.02) + 1  # no point of the coarser table
    found = algorithm.curves.slopes_at(algorithm.rows[:1], torch.tensor([points[between]]))
    assert found.item() == pytest.approx(float(algorithm.curves.slopes[algorithm.rows[0], between]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 100}, False),  # a short run asks for fewer slopes than a table has
        ({"steps": 10**6}, True),
        ({"distill_weight": 0.0, "steps": 10**6}, False),
        ({"distill": DistillConfig(estimator="curve")}, True),
        ({"distill": DistillConfig(estimator="score"), "steps": 10**6}, False),
        # The table's passes: 6 images x 16 knots x 2 draws x 2 rounds = 384; training's: 48 steps x 8 images.
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2), "steps": 48}, True),
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2), "steps": 47}, False),
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2, curve_detail=2), "steps": 93}, True),  # 31 knots
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2, curve_detail=2), "steps": 92}, False),
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2, images_per_step=0), "steps": 24}, True),
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2, images_per_step=0), "steps": 23}, False),
    ],
)
def test_auto_takes_the_way_with_fewer_passes(
    dataset: MultiDomainDataset, tiny_pipeline: Path, changes: dict[str, Any], expected: bool
) -> None:
    config = TrainConfig(**{"ldm": str(tiny_pipeline), **changes})
    assert reads_curves(config, dataset, np.arange(6), 16) is expected


def test_auto_reads_a_table_that_comes_with_the_package(
    dataset: MultiDomainDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(steps=1)
    assert not reads_curves(config, dataset, np.arange(6), 16)
    monkeypatch.setattr(curves_module, "TABLES", tmp_path)
    store = CurveStore(dataset, source_fingerprint("embedded"), config.distill, config.generate.plain_template, 0)
    store.shipped.write_bytes(b"")
    assert reads_curves(config, dataset, np.arange(6), 16)
    assert not reads_curves(dataclasses.replace(config, distill_weight=0.0), dataset, np.arange(6), 16)


def test_auto_reads_a_table_that_was_made_and_a_begun_run_goes_on_as_it_began(
    few_images: Path, config: TrainConfig, tmp_path: Path
) -> None:
    auto = dataclasses.replace(config, distill=dataclasses.replace(config.distill, estimator="auto"))
    dataset = load_dataset(str(few_images), config.data)

    def run(name: str, options: TrainConfig = auto) -> tuple[str, bool]:
        train_run(str(few_images), options, tmp_path / name, progress=False)
        algorithm = build_algorithm(build_context(str(few_images), options, tmp_path / name, progress=False))
        assert isinstance(algorithm, DomainFusion)
        return read_json(tmp_path / name / "data.json")["slopes"], algorithm.curves is not None

    assert run("before") == ("score", False)
    tabulate_curves(str(few_images), auto)
    assert reads_curves(auto, dataset, np.arange(6), 4)
    assert not reads_curves(auto, dataset, np.arange(6), 4, made=False)
    assert run("before") == ("score", False)
    assert run("after") == ("curve", True)
    recorded = read_json(tmp_path / "after" / "data.json")
    write_json(tmp_path / "after" / "data.json", {name: recorded[name] for name in recorded if name != "slopes"})
    algorithm = build_algorithm(build_context(str(few_images), auto, tmp_path / "after", progress=False))
    assert isinstance(algorithm, DomainFusion)
    assert algorithm.curves is None  # begun before that was recorded: no tables but the package's were read
    assert "slopes" not in read_json_of(few_images, dataclasses.replace(auto, distill_weight=0.0), tmp_path / "none")
    shutil.rmtree(cache_folder() / "curves")
    assert run("after that") == ("score", False)


def read_json_of(images: Path, options: TrainConfig, folder: Path) -> dict[str, Any]:
    train_run(str(images), options, folder, progress=False)
    return read_json(folder / "data.json")
