"""`domainfusion predict`: files, folders and patterns in; CSV, JSON and Parquet out; bad files are rows."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import domainfusion
from domainfusion.cli import run
from domainfusion.predict import Row, list_images, write_rows
from file_names import byte_names

COLOURS = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A folder of odd images: every one of them readable but `broken.png`."""
    folder = tmp_path / "new"
    (folder / "deep" / "er").mkdir(parents=True)
    picture = Image.fromarray(COLOURS)
    picture.save(folder / "plain.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    picture.convert("P").save(folder / "palette.gif")
    Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "deep" / "turned.jpg", exif=turned, quality=95)
    alpha = picture.convert("RGBA")
    alpha.putalpha(0)
    alpha.save(folder / "deep" / "er" / 'a "quoted", name\nof two lines.png')
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("no image")
    return folder


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_as_csv(trained_run: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(trained_run), str(new), "--batch-size", "2"]) == 0
    printed = capsys.readouterr()
    rows = table(printed.out)
    names = [Path(row["file"]).name for row in rows]
    assert names == [
        "broken.png", "cmyk.jpg", "a \"quoted\", name\nof two lines.png", "turned.jpg", "palette.gif", "plain.png",
        "sixteen.png",
    ]  # fmt: skip
    model = domainfusion.load(trained_run)
    for row in rows:
        if row["error"]:
            assert row["label"] == row["confidence"] == ""
            continue
        labels, confidences = model.predict([row["file"]])
        assert row["label"] == labels[0]
        assert float(row["confidence"]) == pytest.approx(confidences[0], abs=1e-5)
    assert [name for name, row in zip(names, rows, strict=True) if row["error"]] == ["broken.png"]
    assert printed.err.count("\n") == 1
    assert "broken.png cannot be read" in printed.err


def test_pixels_are_those_of_training(trained_run: Path, new: Path) -> None:
    """Upright, transparency on white, sixteen bits scaled."""
    model = domainfusion.load(trained_run)
    transparent = next((new / "deep" / "er").iterdir())
    assert (model.pixels(transparent) == 255).all()
    upright = np.asarray(Image.fromarray(np.rot90(COLOURS, -1)).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(model.pixels(new / "deep" / "turned.jpg").astype(int) - upright).mean() < 25  # JPEG of noise
    grey = Image.fromarray(COLOURS[..., 0]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(model.pixels(new / "sixteen.png").astype(int) - np.asarray(grey)).max() <= 2


def test_top_classes_as_json_and_parquet(
    trained_run: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(trained_run), str(new / "plain.png"), str(new / "broken.png"), "--top-k", "99"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in found] == [str(new / "plain.png"), str(new / "broken.png")]
    p = domainfusion.load(trained_run).probabilities([new / "plain.png"])[0]
    best = {entry["label"]: entry["confidence"] for entry in found[0]["predictions"]}
    assert list(best.values()) == sorted(best.values(), reverse=True)
    assert [best[name] for name in ("cat", "dog", "house")] == pytest.approx(p.tolist(), abs=1e-5)
    assert found[1]["predictions"] == []
    assert "cannot be read as an image" in found[1]["error"]
    output = tmp_path / "made" / "table.parquet"
    assert run([*words, "--output", str(output)]) == 0
    frame = pd.read_parquet(output)
    assert list(frame.columns) == [
        "file", "label", "confidence", "label_2", "confidence_2", "label_3", "confidence_3", "error",
    ]  # fmt: skip
    assert frame["confidence"].dtype == np.float64
    assert frame.loc[0, "label"] == found[0]["predictions"][0]["label"]
    assert frame.loc[0, "confidence_3"] == pytest.approx(found[0]["predictions"][2]["confidence"], abs=1e-5)
    assert pd.isna(frame.loc[1, "label"])
    assert capsys.readouterr().out == ""


def test_the_ending_chooses_the_form(trained_run: Path, new: Path, tmp_path: Path) -> None:
    words = ["predict", str(trained_run), str(new / "plain.png"), "--output"]
    assert run([*words, str(tmp_path / "a.CSV")]) == 0
    assert len(table((tmp_path / "a.CSV").read_text())) == 1
    assert run([*words, str(tmp_path / "a.json")]) == 0
    assert len(json.loads((tmp_path / "a.json").read_text())) == 1
    assert run([*words, str(tmp_path / "a.txt"), "--format", "json"]) == 0
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "a.json").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "a.txt"], "name the form by --format"),
        (["--format", "parquet"], "name it by --output"),
        (["--top-k", "0"], "at least 1"),
        (["--fromat", "csv"], "did you mean --format"),
    ],
)
def test_wrong_usage(
    trained_run: Path, new: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(trained_run), str(new), *more]) == 2
    assert message in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_known_before_a_model_is_loaded(
    new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").mkdir()
    assert run(["predict", str(tmp_path / "no-model"), str(new), "--output", str(tmp_path / "t.csv")]) == 1
    assert "t.csv: it is a folder; name a file in it" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_table_that_is_not_whole_does_not_replace_one(tmp_path: Path, form: str) -> None:
    output = tmp_path / f"table.{form}"
    output.write_text("of yesterday")

    def rows() -> Iterator[Row]:
        yield Row("a.png", (("cat", 0.5),))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_rows(rows(), 1, form, output)
    assert output.read_text() == "of yesterday"
    assert os.listdir(tmp_path) == [output.name]


def test_it_fails_only_where_nothing_can_be_read(
    trained_run: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    bad = [str(new / "broken.png"), str(new / "absent.png"), str(tmp_path / "empty"), str(new / "*.webp")]
    assert run(["predict", str(trained_run), *bad]) == 1
    printed = capsys.readouterr()
    errors = {row["file"]: row["error"] for row in table(printed.out)}
    assert errors[bad[2]] == "holds no image"
    assert errors[bad[3]] == "matches no file"
    assert "does not exist" in errors[bad[1]]
    assert printed.err.count("note: ") == 4
    assert run(["predict", str(trained_run), *bad, str(new / "plain.png")]) == 0


def test_nothing_named_is_wrong_usage(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(trained_run)]) == 2
    printed = capsys.readouterr()
    assert "name the images" in printed.err
    assert printed.out == ""


def test_a_picture_in_another_form_is_a_row_too(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "phone"
    folder.mkdir()
    (folder / "IMG_1.HEIC").write_bytes(b"what a phone writes")
    Image.fromarray(COLOURS).save(folder / "IMG_2.png")
    assert run(["predict", str(trained_run), str(folder)]) == 0
    rows = {Path(row["file"]).name: row for row in table(capsys.readouterr().out)}
    assert "cannot be read" in rows["IMG_1.HEIC"]["error"]
    assert rows["IMG_2.png"]["label"]


def test_what_words_name(new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(new)
    (new / "plain[1].png").write_bytes((new / "plain.png").read_bytes())
    assert list_images(["*.jpg", "plain.png", "./plain.png", "plain[1].png", "cmyk.jpg"]) == (
        [Path("cmyk.jpg"), Path("plain.png"), Path("plain[1].png")], [],
    )  # fmt: skip
    assert list_images(["**/*.jpg"])[0][:2] == [Path("cmyk.jpg"), Path("deep/turned.jpg")]
    os.symlink(new, new / "deep" / "loop")
    found, bad = list_images(["."])
    assert (len(found), bad) == (8, [])


@byte_names
def test_a_name_that_is_not_utf8(trained_run: Path, new: Path, tmp_path: Path) -> None:
    path = os.fsencode(new) + b"/caf\xe9.png"
    os.rename(new / "plain.png", path)
    for ending in ("csv", "json", "parquet"):
        output = tmp_path / f"table.{ending}"
        assert run(["predict", str(trained_run), os.fsdecode(path), "--output", str(output)]) == 0
        assert rb"caf\udce9.png" in output.read_bytes().replace(rb"\\", b"\\")
