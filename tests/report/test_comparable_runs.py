"""Which runs the report takes for one arm, and what it pairs: epochs, seeds of runs, idle options, equal arms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from domainfusion.config import CDGAConfig, GenerateConfig, ZeroShotConfig
from domainfusion.errors import FileError
from domainfusion.report.answer import build_answer
from domainfusion.report.classes import build_class_parts
from domainfusion.report.reading import read_runs
from domainfusion.report.study import Study, build_studies
from report.written_runs import write_pictures, write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


def study_of(folder: Path) -> Study:
    (study,) = build_studies(read_runs([folder]))
    return study


def with_seed(folder: Path, seed: int) -> None:
    """Give a written run another seed."""
    path = folder / "config.toml"
    path.write_text(re.sub(r"(?m)^seed = \d+", f"seed = {seed}", path.read_text(), count=1))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"seed": seed}))


def test_runs_of_as_many_epochs_are_one_arm_whatever_their_steps(root: Path, tmp_path: Path) -> None:
    """Steps follow from epochs and the sources' images, and so differ from target to target."""
    for target, steps in (("ink", 12), ("photo", 18), ("pixel", 20)):
        for name, accuracy in (("erm", 0.25), ("domainfusion", 0.5)):
            write_run(tmp_path / "r" / name / target, root, name, accuracy, target=target, epochs=2, steps=steps)
    study = study_of(tmp_path / "r")
    assert [arm.title for arm in study.arms] == ["ERM", "DomainFusion"]
    assert study.targets == ("ink", "photo", "pixel")
    assert study.accuracy()["ERM"]["ink"] == [25.0]
    write_run(tmp_path / "r" / "other", root, "erm", 0.25, target="ink", steps=12)
    assert len(study_of(tmp_path / "r").arms) == 3


def test_seeds_of_every_run_are_paired_by_trial(root: Path, tmp_path: Path) -> None:
    """As with `--run-seeds domainbed`."""
    seed = 100
    for trial in (0, 1):
        for target in ("ink", "pixel"):
            for name, accuracy in (("erm", 0.25), ("domainfusion", 0.5)):
                folder = tmp_path / "r" / name / target / str(trial)
                write_run(folder, root, name, accuracy + trial / 8, target=target, trial=trial)
                with_seed(folder, seed := seed + 1)
    study = study_of(tmp_path / "r")
    assert (study.targets, len(study.units), study.by_trial) == (("ink", "pixel"), 2, True)
    assert study.accuracy()["DomainFusion"] == {"ink": [50.0, 62.5], "pixel": [50.0, 62.5]}
    assert "DomainFusion is right on 56" in build_answer(study).headline.striptags()


def test_two_seeds_of_a_trial_stay_two_units(root: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        for name in ("erm", "domainfusion"):
            folder = tmp_path / "r" / name / str(seed)
            write_run(folder, root, name, 0.5)
            with_seed(folder, seed)
    study = study_of(tmp_path / "r")
    assert (study.units, study.by_trial) == (((0, 0), (0, 1)), False)


@pytest.mark.parametrize(
    "options",
    [{"cdga": CDGAConfig(candidates=3)}, {"zero_shot": ZeroShotConfig(images=4)}, {"device": "cpu"},
     {"generate": GenerateConfig(worker="off", batch_size=8)}],
)  # fmt: skip
def test_options_without_effect_make_no_arms(root: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    write_run(tmp_path / "r" / "a", root, "erm", 0.25)
    write_run(tmp_path / "r" / "b", root, "erm", 0.5, trial=1, **options)
    (arm,) = study_of(tmp_path / "r").arms
    assert (arm.title, len(arm.runs)) == ("ERM", 2)


def test_arms_that_are_equal_have_no_p_value(root: Path, tmp_path: Path) -> None:
    for trial in (0, 1, 2):
        for name in ("erm", "mixstyle"):
            write_run(tmp_path / "r" / name / str(trial), root, name, 0.5, trial=trial)
    headline = build_answer(study_of(tmp_path / "r")).headline.striptags()
    assert "(difference +0.0 ± 0.0 points, 72 images" in headline
    assert "p <" not in headline
    assert "p =" not in headline


def test_variants_with_one_title_keep_their_own_figures(root: Path, tmp_path: Path) -> None:
    """A title names three options at most."""
    for number in range(4):
        more: dict[str, Any] = {"dropout": 0.3, "evaluations": 9, "lr": 0.1} if number else {}
        for trial in (0, 1):
            write_run(
                tmp_path / "r" / f"{number}-{trial}",
                root,
                "erm",
                number / 8,
                trial=trial,
                weight_decay=number / 8,
                **more,
            )
    study = study_of(tmp_path / "r")
    accuracy = study.accuracy()
    assert len(accuracy) == 4
    assert sorted(by_target["pixel"][0] for by_target in accuracy.values()) == [0.0, 12.5, 25.0, 37.5]


def test_figures_of_fewer_images_have_their_own_counts_and_errors(root: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "r" / "erm", root, "erm", 0.5)
    folder = write_run(tmp_path / "r" / "dc", root, "diffusion_classifier", 0.25)
    result = json.loads((folder / "result.json").read_text())
    result |= {"target_accuracy": 0.25, "test_images": 4, "confusion": [[1, 3, 0], [0, 0, 0], [0, 0, 0]]}
    (folder / "result.json").write_text(json.dumps(result))
    study = study_of(tmp_path / "r")
    answer = build_answer(study)
    rows = {row[0]: row for row in answer.table}
    assert rows["ERM"][2:4] == ["10.2", "12 of 24"]
    assert rows["Diffusion Classifier"][2:4] == ["21.7", "1 of 4"]
    assert "4 and 24 images" in answer.headline.striptags()
    assert answer.sure[0].startswith("One image more or less is 25.0 or 4.2 points. With 4 and 24 images, the standard")
    parts = build_class_parts(study)
    assert parts is not None
    assert not parts["change"]  # of other images


@pytest.mark.parametrize(
    ("field", "value"), [("confusion", [[1, 2], [3, 4]]), ("confusion", 5), ("seconds", "long"), ("test_images", 0)]
)
def test_a_damaged_result_is_one_line(root: Path, tmp_path: Path, field: str, value: Any) -> None:
    folder = write_run(tmp_path / "r", root, "erm", 0.5)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {field: value}))
    with pytest.raises(FileError, match=f"result.json: {field} is damaged or was altered"):
        read_runs([folder])
