"""`domainfusion data splits`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from domainfusion import cli


@pytest.fixture
def ten_images(tmp_path: Path) -> Path:
    """Two domains, the first of ten images in two classes: DomainBed's order for n = 10 is known."""
    for domain, classes in {"a": {"x": 4, "y": 6}, "b": {"x": 3, "y": 2}}.items():
        for name, count in classes.items():
            (tmp_path / "data" / domain / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "data" / domain / name / f"{number}.png")
    return tmp_path / "data"


def test_data_splits_are_domainbeds(ten_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "splits", str(ten_images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["a"] == {"out": [2, 3], "in": [8, 1, 4, 5, 0, 9, 6, 7]}  # golden, see PROTOCOL.md
    # Numbers count from 0 in every domain; one image of five is held out.
    assert sorted(found["b"]["in"] + found["b"]["out"]) == [0, 1, 2, 3, 4]
    assert len(found["b"]["out"]) == 1


def test_data_splits_differ_by_trial_and_print_counts(ten_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "splits", str(ten_images), "--trial", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["a"]["out"] != [2, 3]
    assert cli.run(["data", "splits", str(ten_images)]) == 0
    assert capsys.readouterr().out == "domainbed splits, trial 0\na: in 8, out 2\nb: in 4, out 1\n"


def test_splits_are_those_that_training_takes(ten_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "splits", str(ten_images), "--data.holdout-fraction", "0.5"]) == 0
    assert capsys.readouterr().out == "domainbed splits, trial 0\na: in 5, out 5\nb: in 3, out 2\n"
    assert cli.run(["data", "splits", "pictograms", "--trial", "1"]) == 0
    assert capsys.readouterr().out.startswith("strict splits, trial 1\nclipart: in ")
    assert cli.run(["data", "splits", "pictograms", "--trial", "7"]) == 2
    assert "the strict protocol has the trials 0 to 4" in capsys.readouterr().err
    assert cli.run(["data", "splits", str(ten_images), "--data.holdout-fraction", "2"]) == 2
    assert "holdout" in capsys.readouterr().err
