"""Runs of Diffusion Classifier: the stages that classes are ruled out in, chosen by their number, and told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from domainfusion.config import TrainConfig, ZeroShotConfig
from domainfusion.config_files import to_toml
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import UsageError
from domainfusion.experiments.run_folder import refuse_other_options
from domainfusion.experiments.runs import train_run
from domainfusion.files import write_json
from domainfusion.json_lines import read_json_lines
from domainfusion.report.reading import read_runs
from domainfusion.report.study import build_arms
from domainfusion.results.tables import run_summary
from zero_shot_runs import changed


def test_the_stages_are_chosen_by_the_classes_and_told(
    images: Path, config: TrainConfig, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domainfusion.config.zero_shot.FEW", ((2, 4), (2, 1)))
    monkeypatch.setattr("domainfusion.config.zero_shot.MANY", ((1, 2, 3), (20, 2, 1)))
    given = train_run(str(images), config, tmp_path / "given", progress=False)
    assert given["zero_shot"] == {"seed": 0, "samples": [2, 4], "keep": [2, 1]}
    assert "classes: 2 left after 2 draws, 1 left after 4 draws; " in run_summary(given, "x")
    automatic = changed(config, samples=(), keep=())
    with monkeypatch.context() as patch:
        patch.setattr(LatentDiffusion, "load", None)  # the same scores, whether the stages are given or chosen
        few = train_run(str(images), automatic, tmp_path / "few", progress=False)
    assert few["zero_shot"] == given["zero_shot"]
    assert "samples = []" in (tmp_path / "few" / "config.toml").read_text()
    train_run(str(images), changed(automatic, validation=True), tmp_path / "record", progress=False)
    (record,) = read_json_lines(tmp_path / "record" / "results.jsonl")
    assert (record["hparams"]["samples"], record["hparams"]["keep"]) == ([2, 4], [2, 1])
    assert len(list(cache.glob("zero_shot/*"))) == 1
    monkeypatch.setattr("domainfusion.config.zero_shot.MANY_CLASSES", 3)
    many = train_run(str(images), automatic, tmp_path / "many", progress=False)
    assert many["zero_shot"] == {"seed": 0, "samples": [2, 3], "keep": [2, 1]}
    assert len(list(cache.glob("zero_shot/*"))) == 2  # others are kept apart
    net = train_run(str(images), changed(automatic, algorithm="diffusion_net"), tmp_path / "net", progress=False)
    assert set(net["zero_shot"]) == {"seed", "min_scores", "max_scores", "cutoff"}
    assert "left after" not in run_summary(net, "x")


@pytest.mark.parametrize(("algorithm", "classes", "refused"), [
    ("diffusion_classifier", 7, False), ("diffusion_classifier", 65, True), ("erm", 65, False),
])  # fmt: skip
def test_runs_of_before_stages_followed_the_classes_go_on(
    tmp_path: Path, algorithm: str, classes: int, refused: bool
) -> None:
    config = TrainConfig(algorithm=algorithm, target="ink")
    old = dataclasses.replace(config, zero_shot=ZeroShotConfig(samples=(25, 250), keep=(5, 1)))
    (tmp_path / "config.toml").write_text(to_toml(old), encoding="utf-8")
    names = [f"class {k}" for k in range(classes)]
    write_json(tmp_path / "data.json", {"data": "pictograms", "fingerprint": "", "classes": names})
    if refused:
        with pytest.raises(UsageError, match=r"zero_shot.samples = \[25, 250\], not \[\]"):
            refuse_other_options(tmp_path, "pictograms", config)
    else:
        refuse_other_options(tmp_path, "pictograms", config)


def test_a_report_takes_runs_of_before_stages_followed_the_classes_for_the_same(
    images: Path, config: TrainConfig, tmp_path: Path
) -> None:
    config = changed(config, algorithm="erm", samples=(), keep=())
    for trial, stages in enumerate((((), ()), ((25, 250), (5, 1)))):
        mine = changed(config, trial=trial, samples=stages[0], keep=stages[1])
        train_run(str(images), mine, tmp_path / f"trial-{trial}", progress=False)
    assert len(build_arms(read_runs([tmp_path]))) == 1
