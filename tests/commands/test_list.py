"""`domainfusion list`: names and facts, as text and JSON."""

from __future__ import annotations

import json

import pytest

from domainfusion import cli


def test_list_takes_one_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "algorithms", "erm", "mixup"]) == 2
    assert "one pattern" in capsys.readouterr().err
    assert cli.run(["list", "algorithms", "x*"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no name among the algorithms matches x*" in printed.err


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "algorithms", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"domainfusion", "erm"} <= {entry["name"] for entry in found}
    assert [entry["name"] for entry in found] == sorted(entry["name"] for entry in found)
    assert all(set(entry) == {"name", "summary", "source"} for entry in found)
    assert cli.run(["list", "backbones", "resnet1*", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["resnet10t", "resnet18"]


def test_list_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "datasets"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("pictograms")
    assert "PACS, VLCS, OfficeHome, TerraIncognita, DomainNet: domainfusion data download NAME" in told


def test_the_list_of_data_sets_has_the_facts_of_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list", "datasets"]) == 0
    told = capsys.readouterr().out
    for line in (
        "PACS, a folder PACS [Li et al., ICCV 2017]",
        "  domains: art_painting 2048, cartoon 2344, photo 1670, sketch 3929; 9,991 images in all",
        "  classes: 7 (dog, elephant, giraffe, guitar, horse, house, person)",
        "OfficeHome, a folder office_home [Venkateswara et al., CVPR 2017]", "  classes: 65",
        "  origin:  https://lila.science/datasets/caltech-camera-traps",
        "  licence: Community Data License Agreement, permissive variant 1.0",
    ):  # fmt: skip
        assert line in told.splitlines()
    assert cli.run(["list", "datasets", "Terra*"]) == 0
    told, said = capsys.readouterr()
    assert told.startswith("TerraIncognita, a folder terra_incognita")
    assert "PACS, a folder" not in told
    assert said == ""
    assert cli.run(["list", "datasets", "x*"]) == 0
    assert "no name among the datasets matches x*" in capsys.readouterr().err
    assert cli.run(["list", "datasets", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["pictograms"]
