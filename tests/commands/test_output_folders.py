"""Where commands may write: not among the images that they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from domainfusion import cli


@pytest.mark.parametrize(
    "words",
    [
        "train DATA --algorithm erm --output DATA",
        "train DATA --algorithm erm --output DATA/photo/run",
        "benchmark DATA --output DATA/runs",
        "reproduce table3 --dataset DATA --output DATA/runs",
        "generate DATA --output DATA/made",
        "pretrain DATA --target photo --output DATA/ldm",
        "judge DATA --output DATA/judged",
        "audit DATA --output DATA/audit",
    ],
)  # fmt: skip
def test_an_output_among_the_images_is_refused(
    words: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(image_folder.rglob("*"))
    assert cli.run([word.replace("DATA", str(image_folder)) for word in words.split()]) == 2
    assert "choose a folder beside it" in capsys.readouterr().err
    assert sorted(image_folder.rglob("*")) == before


def test_the_default_output_is_no_exception(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(image_folder)
    before = sorted(image_folder.rglob("*"))
    for words in (["train", ".", "--algorithm", "erm"], ["audit", "."], ["judge", "."]):
        assert cli.run(words) == 2
        assert "choose a folder beside it" in capsys.readouterr().err
    assert sorted(image_folder.rglob("*")) == before


def test_a_benchmarks_name_is_no_folder_that_is_read(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`data prepare PACS SOURCE PACS` goes on in the folder PACS that it has begun."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PACS").mkdir()
    cli.run(["data", "prepare", "PACS", str(image_folder), "PACS"])
    assert "choose a folder beside it" not in capsys.readouterr().err


def test_a_folder_beside_the_images_with_a_longer_name_is_fine(image_folder: Path, tmp_path: Path) -> None:
    beside = image_folder.with_name(image_folder.name + "-runs")
    options = ["--algorithm", "erm", "--steps", "1", "--evaluations", "1", "--backbone", "resnet10t"]
    words = ["train", str(image_folder), "--target", "photo", *options, "--data.size", "16", "--output", str(beside)]
    assert cli.run(words) == 0
    assert (beside / "result.json").exists()


def test_a_report_of_a_folder_that_is_not_there_is_refused(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    assert cli.run(["report", str(trained_run), str(tmp_path / "nowhere"), "--output", str(output)]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not output.exists()
    (tmp_path / "empty").mkdir()
    assert cli.run(["report", str(trained_run), str(tmp_path / "empty"), "--output", str(output)]) == 0
    assert "no finished run is at or below" in capsys.readouterr().err
