"""What an error suggests can be typed: every option that it names is one of the command's, and helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from domainfusion import cli
from domainfusion.commands.words import commands

FLAGS = {
    command.name: {option.flag for option in command.options} for command in commands(cli.COMMANDS, cli.PLACES)
}  # fmt: skip


@pytest.fixture
def damaged(make_image_folder: Callable[..., Path]) -> Path:
    """An image folder in which one file is no image."""
    root = make_image_folder("damaged")
    (root / "photo" / "cat" / "broken.png").write_bytes(b"not an image")
    return root


def suggested(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z.-]*", text))


@pytest.mark.parametrize(
    "words",
    [
        "train DATA --algorithm erm --output OUT",
        "benchmark DATA --algorithms erm --output OUT",
        "reproduce table3 --dataset DATA --output OUT",
        "generate DATA",
        "distill DATA",
        "audit DATA --output OUT",
        "judge DATA --output OUT",
        "evaluate RUN DATA",
        "data splits DATA",
    ],
)
def test_an_image_that_cannot_be_read_stops_with_an_option_that_the_command_has(
    words: str, damaged: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DATA": str(damaged), "RUN": str(trained_run), "OUT": str(tmp_path / "out")}
    assert cli.run([places.get(word, word) for word in words.split()]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "photo/cat/broken.png cannot be read as an image" in told
    assert suggested(told) == {"--data.bad-images"}
    name = words.split(" DATA")[0].removesuffix(" RUN").split(" table")[0]
    assert "--data.bad-images" in FLAGS[name]


def test_evaluate_leaves_out_images_that_cannot_be_read(
    damaged: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["evaluate", str(trained_run), str(damaged), "--data.bad-images", "skip"]) == 0
    printed = capsys.readouterr()
    assert "note: left out 1 unreadable images: photo/cat/broken.png" in printed.err
    assert re.search(r"^photo +36 ", printed.out, re.MULTILINE)
    assert cli.run(["evaluate", str(trained_run), "--data.bad-images", "skip"]) == 2
    assert "--data.bad-images is about DATA" in capsys.readouterr().err


def test_data_splits_leaves_out_images_that_cannot_be_read(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "splits", str(damaged), "--data.bad-images", "skip"]) == 0
    printed = capsys.readouterr()
    assert "left out 1 unreadable images" in printed.err
    assert "photo: in 29, out 7" in printed.out


def test_judge_hands_on_how_images_are_read(damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from domainfusion.experiments import judging

    given = {}
    monkeypatch.setattr(judging, "judge_ldm", lambda *_, **options: given.update(options))
    monkeypatch.setattr(judging, "judgement_text", lambda _: "")
    words = [
        "--data.bad-images",
        "skip",
        "--data.size",
        "32",
        "--data.holdout-fraction",
        "0.4",
        "--generate.steps",
        "3",
    ]
    assert cli.run(["judge", str(damaged), *words]) == 0
    reading = given["reading"]
    assert (reading.bad_images, reading.size, reading.holdout_fraction) == ("skip", 32, 0.4)
    assert given["generate"].steps == 3


def test_strict_splits_of_a_folder_name_the_option_of_the_command(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (
        ("data splits", ["--data.protocol", "strict"]),
        ("train", ["--data.protocol", "strict", "--algorithm", "erm", "--output", str(tmp_path / "run")]),
    ):
        assert cli.run([*name.split(), str(image_folder), *words]) == 2
        told = capsys.readouterr().err
        assert "has no folds of its own" in told
        assert suggested(told) == {words[0]} <= FLAGS[name]


@pytest.mark.parametrize("words", ["data prepare PACS SOURCE OUT", "benchmark SOURCE --algorithms erm --output OUT"])
def test_a_folder_that_cannot_be_made_names_no_option(
    words: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = {"SOURCE": str(image_folder), "OUT": str(tmp_path / "file" / "out")}
    assert cli.run([places.get(word, word) for word in words.split()]) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'file'}" in told
    assert "choose another" in told
    assert suggested(told) <= FLAGS[" ".join(words.split()[: 2 if words.startswith("data") else 1])]
