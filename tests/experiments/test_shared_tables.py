"""Tables of curves that runs share: when they are made, for which runs, and what is refused before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.diffusion.labelled_corpus import SEEN
from domainfusion.distillation.curve_choice import table_passes, training_passes
from domainfusion.distillation.curves import CurveStore, store_of
from domainfusion.errors import UsageError
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.experiments.paper_tables import ERM, OURS, TABLES, Table
from domainfusion.experiments.reproducing import reproduce
from domainfusion.experiments.runs import train_run
from domainfusion.experiments.shared_tables import Asked, Inquiry, make_shared_tables, tables_worth_making
from domainfusion.files import cache_folder, read_json, write_json


@pytest.fixture
def images(make_image_folder: Callable[..., Path]) -> Path:
    """3 domains x 3 classes x 2 images."""
    return make_image_folder("few", count=2)


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    """A run of 24 passes of the U-Net by `score`; a table of its 10 images takes 640."""
    return TrainConfig(
        target="sketch", steps=3, batch_size=4, ldm=str(tiny_pipeline), precision="float32", evaluations=1,
        device="cpu", backbone="test_resnet", synthetic_weight=0, data=DataConfig(size=32),
        generate=GenerateConfig(candidates=2, steps=2), distill=DistillConfig(curve_samples=2, curve_rounds=2),
    )  # fmt: skip


def asked(images: Path, config: TrainConfig, count: int, **changes: Any) -> list[Asked]:
    inquiry = Inquiry()
    found = [inquiry.ask(str(images), dataclasses.replace(config, seed=seed, **changes)) for seed in range(count)]
    return [run for run in found if run is not None]


def pairs(config: TrainConfig, folder: Path, count: int) -> list[tuple[TrainConfig, Path]]:
    return [(dataclasses.replace(config, seed=seed), folder / str(seed)) for seed in range(count)]


def tabulated(images: Path, config: TrainConfig) -> int:
    """How many images' slopes are in the table that runs with `config` read."""
    return int((store_of(config, load_dataset(str(images), config.data)).load().rounds > 0).sum())


def test_a_table_is_worth_making_where_runs_together_take_its_passes(images: Path, config: TrainConfig) -> None:
    (run,) = asked(images, config, 1)
    one, table = training_passes(run.config, run.batch), table_passes(len(run.rows), run.config.distill)
    assert (one, table, len(run.rows)) == (3 * 8, 10 * 16 * 2 * 2, 10)
    needed = -(-table // one)
    assert tables_worth_making(asked(images, config, needed - 1)) == []
    (found,) = tables_worth_making(asked(images, config, needed))
    assert found.rows.tolist() == run.rows.tolist()
    # Runs without distillation, with a way of their own or with other options have no part in it.
    assert tables_worth_making(asked(images, config, needed, distill_weight=0.0)) == []
    for distill in (DistillConfig(estimator="curve"), DistillConfig(corruption="blur")):
        others = asked(images, config, 5, distill=distill)
        assert tables_worth_making([*asked(images, config, needed - 1), *others]) == []
    # Another target's runs have other images, which are to be tabulated too.
    half = needed // 2
    both = [*asked(images, config, half, target="photo"), *asked(images, config, half)]
    assert tables_worth_making(both) == []
    (found,) = tables_worth_making([*both, *asked(images, config, needed)])
    assert len(found.rows) > 10
    assert Inquiry().ask(str(images), dataclasses.replace(config, algorithm="erm")) is None


def test_the_order_of_runs_does_not_matter(images: Path, config: TrainConfig) -> None:
    """A run so long that it would make its own table counts among those that share it, first or last."""
    long, short = asked(images, config, 1, target="photo", steps=200), asked(images, config, 4)
    assert tables_worth_making(short) == []
    for runs in ([*long, *short], [*short, *long]):
        (found,) = tables_worth_making(runs)
        assert found.rows.tolist() == np.union1d(long[0].rows, short[0].rows).tolist()


def test_it_is_made_ahead_and_read(images: Path, config: TrainConfig, tmp_path: Path, capsys: Any) -> None:
    make_shared_tables(str(images), pairs(config, tmp_path, 20), progress=False)
    assert tabulated(images, config) == 0
    make_shared_tables(str(images), pairs(config, tmp_path, 27), progress=False)
    said = capsys.readouterr().err
    assert "tabulating slopes of 10 images" in said
    assert "curves:" not in said  # no bar
    assert tabulated(images, config) == 10
    assert tables_worth_making(asked(images, config, 27)) == []
    train_run(str(images), config, tmp_path / "0", progress=False)
    assert read_json(tmp_path / "0" / "data.json")["slopes"] == "curve"


def test_runs_that_began_by_score_have_the_others_follow(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    train_run(str(images), config, tmp_path / "0", progress=False)
    assert read_json(tmp_path / "0" / "data.json")["slopes"] == "score"
    make_shared_tables(str(images), pairs(config, tmp_path, 40), progress=False)
    assert tabulated(images, config) == 0
    other = dataclasses.replace(config, generate=dataclasses.replace(config.generate, plain_template="a {label}"))
    make_shared_tables(str(images), [*pairs(config, tmp_path, 1), *pairs(other, tmp_path / "o", 40)], progress=False)
    assert (tabulated(images, config), tabulated(images, other)) == (0, 10)


def test_what_the_runs_refuse_is_refused_before_a_table_is_made(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CurveStore, "fill", None)
    erm = dataclasses.replace(config, algorithm="erm")
    train_run(str(images), erm, tmp_path / "erm", progress=False)
    runs = [*pairs(config, tmp_path, 40), (dataclasses.replace(erm, lr=0.5), tmp_path / "erm")]
    with pytest.raises(UsageError, match="holds a run with lr"):
        make_shared_tables(str(images), runs)
    ldm = Path(config.ldm_source)
    write_json(ldm / SEEN, {images.name: ["sketch"]})
    try:
        with pytest.raises(UsageError, match="trained on images of sketch"):
            make_shared_tables(str(images), pairs(config, tmp_path, 40))
    finally:
        (ldm / SEEN).unlink()


def test_an_ldm_that_cannot_be_loaded_stops_nobody_else(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    """Whatever the cache holds: tables of other LDMs are looked at only where this one's fingerprint is known."""
    (cache_folder() / "curves" / "a" / "b").mkdir(parents=True)
    nowhere = dataclasses.replace(config, ldm=str(tmp_path / "nowhere"))
    make_shared_tables(str(images), pairs(nowhere, tmp_path, 40))
    found = Inquiry().ask(str(images), nowhere)
    assert found is not None
    assert not found.there


def test_a_table_is_of_the_data_that_runs_read(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    small = dataclasses.replace(config, data=DataConfig(size=24))
    make_shared_tables(str(images), pairs(small, tmp_path, 40), progress=False)
    assert (tabulated(images, small), tabulated(images, config)) == (10, 0)


class Stopped(Exception):
    """What the first run ends in."""


def test_benchmarks_and_reproductions_ask_for_all_their_runs(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[tuple[str, Path]]] = []

    def note(data: str, runs: Any, **_: object) -> None:
        given.append([(each.algorithm, folder) for each, folder in runs])

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    for made, asked_by in (("benchmark", "benchmark"), ("table_runs", "reproducing")):
        monkeypatch.setattr(f"domainfusion.experiments.{asked_by}.make_shared_tables", note)
        monkeypatch.setattr(f"domainfusion.experiments.{made}.train_run", stop)
    out = tmp_path / "b"
    with pytest.raises(Stopped):
        run_benchmark(str(images), config, ["erm", "domainfusion"], [0], ["photo"], out, progress=False)
    assert given.pop() == [("erm", out / "erm/photo/trial-0"), ("domainfusion", out / "domainfusion/photo/trial-0")]
    tables = {
        "one": Table("one", "One", (ERM, OURS), reference="erm"),
        "two": Table("two", "Two", (OURS, TABLES["table2"].arm("without-sampling")), reference="domainfusion"),
    }
    monkeypatch.setattr("domainfusion.experiments.paper_tables.TABLES", tables)
    monkeypatch.setattr("domainfusion.experiments.reproducing.TABLES", tables)
    with pytest.raises(Stopped):
        reproduce(["one", "two"], [str(images)], config, 1, ["photo"], tmp_path / "r")
    folders = [folder.relative_to(tmp_path / "r" / images.name).parts[0] for _, folder in given.pop()]
    assert folders == ["erm", "domainfusion", "domainfusion", "without-sampling"]
    with pytest.raises(Stopped):
        reproduce(["one"], [str(images)], config, 1, ["photo"], tmp_path / "r", minutes=5)
    assert given == []  # a table may take longer than what was given
