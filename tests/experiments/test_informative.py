"""Which images the LDM finds informative, from tables of curves that were filled by hand."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.commands.ldm import distill
from domainfusion.config import DataConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.diffusion import ldm as ldm_module
from domainfusion.distillation.curve_rounds import GRID
from domainfusion.distillation.curves import Curves
from domainfusion.experiments.informative import COLUMNS, describe_classes, describe_images, mean_over
from domainfusion.experiments.tabulating import curve_store, tabulate_curves, tabulation_text
from file_names import BYTE_NAMES

CLASSES = ('a, "b"', "cat", "tab\tor\nline")
# Slopes of image i are START[i] + RISE[i]·p, so that their means over a span are those at its middle.
START = np.array([0.1, -0.2, 0.05, 0.3, -0.01, 0.02, -0.5, 0.004, 0.07])
RISE = np.array([-0.1, 0.1, 0.0, -0.9, 0.03, 0.01, 0.2, 0.0, 0.5])


@pytest.fixture
def images(make_image_folder: Callable[..., Path]) -> Path:
    """3 domains x 3 classes x 1 image, with names that a table has to escape."""
    folder = make_image_folder("odd", classes=CLASSES, count=1)
    old = folder / "photo" / "cat" / "00.png"
    os.rename(old, os.fsdecode(os.fsencode(old.parent) + (b"/caf\xe9,1.png" if BYTE_NAMES else b"/cafe,1.png")))
    return folder


@pytest.fixture
def config(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """Of an LDM that nobody may load."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the LDM was loaded")

    monkeypatch.setattr(ldm_module.LatentDiffusion, "load", refuse)
    return TrainConfig(ldm=str(tiny_pipeline), data=DataConfig(size=16))


@pytest.fixture
def dataset(images: Path, config: TrainConfig) -> MultiDomainDataset:
    """The images, with a table of curves on disk."""
    store = curve_store(str(images), config)
    slopes = torch.tensor(START[:, None] + RISE[:, None] * np.array(GRID), dtype=torch.float32)
    errors = torch.linspace(0.5, 1.5, len(GRID)) * torch.linspace(0.001, 0.009, 9)[:, None]
    rounds = torch.tensor([2, 2, 3, 2, 4, 2, 2, 1, 2])
    store.table.write(0, torch.arange(9), {"slopes": slopes, "errors": errors, "rounds": rounds})
    return load_dataset(str(images), config.data)


def size_of(row: int) -> float:
    return math.sqrt(sum((START[row] + RISE[row] * p) ** 2 for p in GRID) / len(GRID))


def test_each_image_is_a_line_the_largest_slopes_first(
    images: Path, dataset: MultiDomainDataset, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / "curves.csv"
    words = [str(images), "--ldm", str(tiny_pipeline), "--data.size", "16", "--csv", str(path)]
    distill(words)
    printed = capsys.readouterr().out
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    assert tuple(reader.fieldnames or ()) == COLUMNS
    order = sorted(range(9), key=size_of, reverse=True)
    assert [int(line["row"]) for line in lines] == order
    spread = math.sqrt(sum(x * x for x in np.linspace(0.5, 1.5, len(GRID))) / len(GRID))
    for row, line in zip(order, lines, strict=True):
        assert line["image"] == dataset.keys[row].replace("\udce9", "\\udce9")
        assert line["class"] == CLASSES[row % 3] == dataset.classes[dataset.labels[row]]
        assert line["domain"] == ("cartoon", "photo", "sketch")[row // 3]
        assert float(line["size"]) == pytest.approx(size_of(row), rel=1e-5)
        assert float(line["mean_slope_below"]) == pytest.approx(START[row] + RISE[row] * 0.26, rel=1e-4)
        assert float(line["mean_slope_above"]) == pytest.approx(START[row] + RISE[row] * 0.75, rel=1e-4)
        assert line["rounds"] == str([2, 2, 3, 2, 4, 2, 2, 1, 2][row])
        if row == 7:  # one round has no error that is known
            assert line["standard_error"] == ""
        else:
            assert float(line["standard_error"]) == pytest.approx(0.001 * (row + 1) * spread, rel=1e-4)
    assert "9 of 9 images tabulated, 0 of them now" in printed
    of_class = {name: math.sqrt(sum(size_of(row) ** 2 for row in range(k, 9, 3)) / 3) for k, name in enumerate(CLASSES)}
    names = sorted(CLASSES, key=of_class.__getitem__, reverse=True)
    shown = [f"{name} {of_class[name]:.4f}".replace("\t", "\\t").replace("\n", "\\n") for name in names]
    assert f"\nmost informative classes (size of their slopes): {', '.join(shown)}\n" in printed
    shown = [f"{dataset.keys[row]} {size_of(row):.4f}".replace("\t", "\\t").replace("\n", "\\n") for row in order[:3]]
    assert f"\nmost informative images (size of their slopes): {', '.join(shown)}\n" in printed
    distill([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [entry["row"] for entry in found["largest"]["images"]] == order[:3]
    assert [(entry["class"], entry["images"]) for entry in found["largest"]["classes"]] == [(n, 3) for n in names]


def test_images_that_were_not_tabulated_are_left_out(
    images: Path, dataset: MultiDomainDataset, config: TrainConfig, tmp_path: Path
) -> None:
    store = curve_store(str(images), config)
    whole = store.load()
    known = torch.tensor([0, 0, 1, 0, 1, 0, 1, 0, 1], dtype=torch.bool)
    part = Curves(whole.grid, whole.slopes * known[:, None], whole.errors, whole.rounds * known)
    of_all = [entry for entry in describe_images(dataset, whole) if known[entry["row"]]]
    assert describe_images(dataset, part) == of_all
    assert {entry["class"]: entry["images"] for entry in describe_classes(dataset, part)} == {
        CLASSES[0]: 1, CLASSES[1]: 1, CLASSES[2]: 2,
    }  # fmt: skip
    store.table.path(0).unlink()
    found = tabulate_curves(str(images), config, shard=(1, 2), csv=tmp_path / "none.csv")  # a share without images
    assert found["largest"] == {"classes": [], "images": []}
    assert "informative" not in tabulation_text(found)
    assert (tmp_path / "none.csv").read_text(encoding="utf-8").split() == [",".join(COLUMNS)]


def test_the_half_lies_on_the_line_between_two_confidences() -> None:
    """The triangle over 0.44, 0.55 and 0.67, cut at 0.5."""
    grid = np.array([0.02, 0.44, 0.55, 0.67, 1.0])
    slopes = (grid == 0.55).astype(float)[None]
    cut = 0.06 / 0.11
    assert mean_over(grid, slopes, 0.02, 0.5)[0] == pytest.approx(0.06 * cut / 2 / 0.48)
    assert mean_over(grid, slopes, 0.5, 1.0)[0] == pytest.approx((0.05 * (cut + 1) / 2 + 0.12 / 2) / 0.5)
