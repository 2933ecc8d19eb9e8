"""The section on slopes: of tables written by hand, whose figures are known, and of runs that read none."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domainfusion.config import DataConfig, DistillConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.splits import build_split
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.distillation.curve_rounds import GRID
from domainfusion.distillation.curves import Curves, CurveStore
from domainfusion.distillation.shards import SHARD
from domainfusion.report.html import write_report
from domainfusion.report.reading import read_runs
from domainfusion.report.slopes_section import build_slopes, find_tables, summarize
from domainfusion.report.study import build_studies
from report.written_runs import SIZE, write_pictures, write_run

CURVE = DistillConfig(estimator="curve")


@pytest.fixture(autouse=True)
def no_ldm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report loads no LDM to show slopes."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an LDM was loaded")

    monkeypatch.setattr(LatentDiffusion, "load", refuse)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def dataset(root: Path) -> MultiDomainDataset:
    return load_dataset(str(root), DataConfig(size=SIZE))


def store_of(dataset: MultiDomainDataset, ldm: Path, config: DistillConfig = CURVE) -> CurveStore:
    return CurveStore(dataset, source_fingerprint(str(ldm)), config, "{label}", 0)


def lines_of(row: int) -> tuple[float, float]:
    """a and b of row's slope a + b·p: both signs, and some that change theirs on the way."""
    return 0.01 * ((row * 7) % 11 - 5), 0.015 * ((row * 5) % 7 - 3)


def write_table(store: CurveStore, rows: np.ndarray, *, alien: frozenset[int] = frozenset()) -> None:
    """The slopes of rows; those of `alien` are of a size that would spoil every figure."""
    grid = torch.tensor(GRID)
    for number in np.unique(rows // SHARD):
        mine = rows[rows // SHARD == number]
        slopes = torch.stack([lines_of(row)[0] + lines_of(row)[1] * grid for row in mine.tolist()])
        slopes[[row in alien for row in mine.tolist()]] = 1e3
        store.folder.mkdir(parents=True, exist_ok=True)
        rounds = torch.full((len(mine),), 2)
        found = {"slopes": slopes, "errors": 0.1 * slopes.abs(), "rounds": rounds}
        store.table.write(int(number), torch.from_numpy(mine), found)


def training_rows(dataset: MultiDomainDataset, target: str = "pixel", trial: int = 0) -> list[int]:
    split = build_split(dataset, DataConfig(size=SIZE), target, trial)
    return sorted(int(row) for domain in split.sources for row in split.train[domain])


def section(dataset: MultiDomainDataset | None, *folders: Path) -> list[dict[str, Any]]:
    (study,) = build_studies(read_runs(folders))
    return build_slopes(study, dataset)


def test_figures_of_lines_are_known(
    tmp_path: Path, root: Path, dataset: MultiDomainDataset, tiny_pipeline: Path
) -> None:
    run = write_run(tmp_path / "run", root, "domainfusion", 0.5, ldm=str(tiny_pipeline), distill=CURVE)
    rows = training_rows(dataset)
    others = frozenset(range(len(dataset))) - frozenset(rows)  # of the target, or held out
    write_table(store_of(dataset, tiny_pipeline), np.arange(len(dataset)), alien=others)
    (found,) = section(dataset, run)
    lines = [lines_of(row) for row in rows]
    tips = re.findall(r"p = ([\d.]+): mean slope (\S+), negative for (\d+) %", str(found["charts"][0][1]))
    assert [float(p) for p, _, _ in tips] == list(GRID)
    for p, mean, share in ((float(p), float(mean), int(share)) for p, mean, share in tips):
        values = [a + b * p for a, b in lines]
        assert mean == pytest.approx(statistics.fmean(values), abs=1e-4, rel=0.01)
        below = [value for value in values if abs(value) > 1e-6 and value < 0]
        zero = sum(abs(value) <= 1e-6 for value in values)  # of either sign by rounding
        assert len(below) - 0.5 <= share * len(values) / 100 + 0.005 * len(values)
        assert share * len(values) / 100 - 0.005 * len(values) <= len(below) + zero + 0.5
    # The mean of a line over p from 0.02 to 1 is its value in the middle.
    overall = [a + b * 0.51 for a, b in lines]
    negative = round(100 * sum(value < 0 for value in overall) / len(overall))
    assert 0 < negative < 100
    assert f"negative for {negative} % of the images." in found["sentences"][1]
    half = 0.5 * statistics.fmean(a + b * 0.5 for a, b in lines)  # λ2 = 0.5
    assert f"times the mean slope is {half:+.2g};" in found["sentences"][1]
    assert f"-λ1/p, is -2 there, about {float(f'{2 / abs(half):.2g}'):,.0f} times as much" in found["sentences"][1]
    assert f"mean over {len(rows)} training images" in found["note"]


def test_the_band_is_the_middle_half(
    tmp_path: Path, root: Path, dataset: MultiDomainDataset, tiny_pipeline: Path
) -> None:
    run = write_run(tmp_path / "run", root, "domainfusion", 0.5, ldm=str(tiny_pipeline), distill=CURVE)
    rows = training_rows(dataset)
    store = store_of(dataset, tiny_pipeline)
    write_table(store, np.array(rows))
    (study,) = build_studies(read_runs([run]))
    (read,) = find_tables(study, dataset)
    assert read.rows == set(rows)
    found = summarize(read.store.load(), np.array(rows))
    for i, p in enumerate(GRID):
        quarters = statistics.quantiles(
            (lines_of(row)[0] + lines_of(row)[1] * p for row in rows), n=4, method="inclusive"
        )
        assert [found.low[i], found.high[i]] == pytest.approx([quarters[0], quarters[2]], abs=1e-6)


def test_the_average_over_p_is_the_area_under_lines_between_the_points() -> None:
    slopes = torch.from_numpy(np.random.default_rng(0).normal(size=(50, len(GRID)))).float()
    curves = Curves(torch.tensor(GRID), slopes, slopes.abs(), torch.ones(50, dtype=torch.int64))
    areas = [
        sum((GRID[i + 1] - GRID[i]) * (row[i + 1] + row[i]) / 2 for i in range(len(GRID) - 1))
        for row in slopes.tolist()
    ]
    assert summarize(curves, np.arange(50)).negative_overall == sum(area < 0 for area in areas) / 50
    plain = sum(sum(row) < 0 for row in slopes.tolist()) / 50
    assert summarize(curves, np.arange(50)).negative_overall != plain  # the grid is not even


def test_runs_on_several_targets_read_one_table(
    tmp_path: Path, root: Path, dataset: MultiDomainDataset, tiny_pipeline: Path
) -> None:
    options = {"ldm": str(tiny_pipeline), "distill": CURVE}
    folders = [
        write_run(tmp_path / target, root, "domainfusion", 0.5, target=target, **options) for target in ("ink", "pixel")
    ]
    write_table(store_of(dataset, tiny_pipeline), np.arange(0, len(dataset), 2))  # half of it was computed
    (found,) = section(dataset, *folders)
    rows = {row for target in ("ink", "pixel") for row in training_rows(dataset, target) if row % 2 == 0}
    assert f"mean over {len(rows)} training images" in found["note"]
    page = write_report(folders, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What the diffusion model tells through the confidence" in page
    assert 'href="#s1-slopes"' in page


def test_variants_have_a_table_each(
    tmp_path: Path, root: Path, dataset: MultiDomainDataset, tiny_pipeline: Path
) -> None:
    blurred = DistillConfig(estimator="curve", corruption="blur")
    folders = [
        write_run(tmp_path / str(i), root, "domainfusion", 0.5, ldm=str(tiny_pipeline), **options)
        for i, options in enumerate(
            ({"distill": CURVE}, {"distill": CURVE, "distill_weight": 0.1}, {"distill": blurred})
        )
    ]
    for config in (CURVE, blurred):
        write_table(store_of(dataset, tiny_pipeline, config), np.arange(len(dataset)))
    found = section(dataset, *folders)
    assert sorted(len(part["arms"]) for part in found) == [1, 2]
    assert {"Corruption blur" in part["note"] for part in found} == {True, False}


def test_without_a_table_that_was_read_there_is_no_section(
    tmp_path: Path, root: Path, dataset: MultiDomainDataset, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, algorithm: str = "domainfusion", **options: Any) -> Path:
        return write_run(
            tmp_path / name, root, algorithm, 0.5, **{"ldm": str(tiny_pipeline), "distill": CURVE} | options
        )

    assert section(dataset, run("none yet")) == []
    write_table(store_of(dataset, tiny_pipeline), np.arange(len(dataset)))
    assert len(section(dataset, tmp_path / "none yet")) == 1
    assert section(None, tmp_path / "none yet") == []
    assert section(dataset, run("erm", "erm")) == []
    assert section(dataset, run("off", distill_weight=0.0)) == []
    assert section(dataset, run("score", distill=DistillConfig(estimator="score"))) == []
    # `auto` computes a table where training would otherwise compute more.
    assert section(dataset, run("short", distill=DistillConfig(), steps=10)) == []
    assert len(section(dataset, run("long", distill=DistillConfig(), steps=100_000))) == 1
    assert section(dataset, run("gone", ldm=str(tmp_path / "gone"))) == []
    assert section(dataset, run("hub", ldm="somebody/model")) == []
    assert capsys.readouterr().err == ""
