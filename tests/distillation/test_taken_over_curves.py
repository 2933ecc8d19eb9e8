"""Curves that a data set takes over from the tables of others, and from those of the package."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distillation.stores import make_store
from domainfusion.config import TrainConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.distillation import curves as curves_module
from domainfusion.distillation.curve_rounds import curves_of
from domainfusion.distillation.curves import CurveStore
from domainfusion.distillation.slopes import SlopeEstimator
from domainfusion.experiments.tabulating import tabulate_curves, tabulation_text
from draws import FEW_ROUNDS


def part_of(dataset: MultiDomainDataset, rows: list[int], labels: list[int] | None = None) -> MultiDomainDataset:
    """Some images of a data set, in the order given, as a data set of their own."""
    return dataclasses.replace(
        dataset, images=dataset.images[rows], labels=dataset.labels[rows] if labels is None else np.array(labels),
        domain_of=dataset.domain_of[rows], keys=tuple(dataset.keys[row] for row in rows), fingerprint=f"part {rows}",
    )  # fmt: skip


def test_a_data_set_takes_over_what_another_one_has_of_its_images(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tiny_pipeline: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Wherever they stand in it; not under another label, another LDM or other settings."""
    monkeypatch.setattr("domainfusion.distillation.curves.SHARD", 4)
    whole = make_store(dataset, tiny_pipeline).tabulate(ldm, np.arange(12), progress=False)
    rows = [13, 11, 2, 5, 0, 7, 2]  # one of them twice
    store = make_store(part_of(dataset, rows), tiny_pipeline)
    assert store.elsewhere(np.array([6, 3, 0]))[0].tolist() == [3, 6]
    assert store.elsewhere(np.arange(7))[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert store.missing(np.arange(7)).tolist() == list(range(7))  # to look is not to take
    found = store.tabulate(ldm, np.arange(7), progress=False)
    assert (store.taken_over, store.computed) == (6, 1)
    for name in ("slopes", "errors", "rounds"):
        assert torch.equal(getattr(found, name)[1:], getattr(whole, name)[rows[1:]])
    fresh = curves_of(SlopeEstimator(ldm, FEW_ROUNDS), dataset, np.array([13]), list(dataset.words()), 16)
    torch.testing.assert_close(found.slopes[:1], fresh["slopes"], rtol=1e-4, atol=1e-6)

    label = int(dataset.labels[2])
    relabelled = make_store(part_of(dataset, [2, 5], [(label + 1) % 2, int(dataset.labels[5])]), tiny_pipeline)
    assert relabelled.elsewhere(np.arange(2))[0].tolist() == [1]
    again = part_of(dataset, [2, 5])
    for other in (
        make_store(again, tiny_pipeline, residual="contrast"),
        CurveStore(again, "another LDM", FEW_ROUNDS, "{label}", 0),
        CurveStore(again, source_fingerprint(str(tiny_pipeline)), FEW_ROUNDS, "a photo of a {label}", 0),
        CurveStore(again, source_fingerprint(str(tiny_pipeline)), FEW_ROUNDS, "{label}", 32),
    ):
        assert not len(other.elsewhere(np.arange(2))[0])


def test_curves_are_taken_over_from_a_table_that_comes_with_the_package(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tiny_pipeline: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(curves_module, "TABLES", tmp_path)
    store = make_store(dataset, tiny_pipeline)
    whole = store.tabulate(ldm, np.arange(18), progress=False)
    store.export(store.shipped)
    for path in store.folder.glob("shard-*"):
        path.unlink()
    part = make_store(part_of(dataset, [17, 3]), tiny_pipeline)
    assert not len(part.take_over(np.arange(2)))
    torch.testing.assert_close(part.load().slopes, whole.slopes[[17, 3]], rtol=1e-3, atol=1e-6)


def test_a_summary_tells_what_was_taken_over(few_images: Path, config: TrainConfig, tmp_path: Path) -> None:
    tabulate_curves(str(few_images), config)
    grown = tmp_path / "grown"
    shutil.copytree(few_images, grown)
    first = sorted(grown.rglob("*.png"))[0]
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(first.with_name("aaa.png"))
    found = tabulate_curves(str(grown), config)
    assert (found["computed"], found["taken_over"], found["tabulated"]) == (1, 18, 19)
    assert ", 18 taken over from tables of other data sets; " in tabulation_text(found)
