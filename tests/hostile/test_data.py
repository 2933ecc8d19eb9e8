"""Data sets that are odd as a whole: class and domain counts, leaks, wrong labels; and options and archives."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainfusion.files import read_json
from domainfusion.training import step as one_step


def test_one_image_in_a_class(image_folder: Path, command: Any, train: Any, tmp_path: Path) -> None:
    for path in sorted((image_folder / "photo" / "cat").iterdir())[1:]:
        path.unlink()
    assert train(image_folder).code == 0
    assert command("report", tmp_path / "run", "--output", tmp_path / "report.html").code == 0


def test_one_image_in_a_domain(make_image_folder: Callable[..., Path], train: Any, tmp_path: Path) -> None:
    root = make_image_folder("few", classes=("cat",), count=1)
    said = train(root)
    assert said.code == 2
    assert "domain cartoon has too few images (1)" in said.err
    assert not (tmp_path / "run").exists()


def test_domains_with_different_classes(make_image_folder: Callable[..., Path], train: Any, command: Any) -> None:
    root = make_image_folder("different", domains=("cartoon", "photo"), count=6)
    shutil.copytree(root / "photo" / "dog", root / "sketch" / "zebra")
    said = train(root)
    assert said.code == 0
    assert "domain sketch has no images of 3 of 4 classes: cat, dog, house" in said.err
    verified = command("data", "verify", root)
    assert verified.code == 1
    assert "domain sketch lacks 3 of 4 classes" in verified.out


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_classes(tmp_path: Path, command: Any, train: Any, count: int) -> None:
    """In metadata, for thousands of folders would take longer than what is tested; each class has one image."""
    root = tmp_path / "many"
    (root / "x").mkdir(parents=True)
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "x" / f"{number}.png")
    with open(root / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "domain"])
        for number in range(count):
            (root / "x" / f"a{number}.png").hardlink_to(root / "x" / f"{number % 20}.png")
            writer.writerow([f"x/a{number}.png", f"class {number}", ["photo", "sketch", "cartoon"][number % 3]])
    said = train(root, "--data.size", "8")
    assert said.code == 0, said.err
    result = read_json(tmp_path / "run" / "result.json")
    assert len(result["class_accuracy"]) == count
    assert "confusion" not in result  # of ten thousand classes, a hundred million numbers
    assert (tmp_path / "run" / "result.json").stat().st_size < 2_000_000
    assert command("report", tmp_path / "run", "--output", tmp_path / "report.html").code == 0
    assert command("evaluate", tmp_path / "run").code == 0


def test_a_leak_from_source_to_target_is_reported(image_folder: Path, tmp_path: Path, train: Any, command: Any) -> None:
    rng = np.random.default_rng(0)
    scenes = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((60, 60), 3) for _ in range(3)]
    scenes[0].save(image_folder / "photo" / "cat" / "equal.png")
    scenes[0].save(image_folder / "sketch" / "cat" / "other-name.bmp")
    scenes[1].save(image_folder / "photo" / "dog" / "near.png")
    scenes[1].resize((48, 48), 2).save(image_folder / "sketch" / "dog" / "near.jpg", quality=60)
    scenes[2].save(image_folder / "photo" / "cat" / "torn.png")
    scenes[2].save(image_folder / "photo" / "dog" / "torn.png")
    said = train(image_folder, "--data.holdout-fraction", "0.1")
    assert said.code == 0
    assert "test images are also in the source domains" in said.err
    assert "sketch/cat/other-name.bmp = photo/cat/equal.png" in said.err
    assert "look like pictures in the source domains" in said.err
    assert "sketch/dog/near.jpg = photo/dog/near.png" in said.err
    assert "photo/dog/torn.png = photo/cat/torn.png" in said.err
    notes = read_json(tmp_path / "run" / "data.json")["notes"]
    assert sum("source domains" in note for note in notes) == 2
    verified = json.loads(command("data", "verify", image_folder, "--json").out)
    found = {entry["kind"]: entry["where"] for entry in [*verified["problems"], *verified["notes"]]}
    assert found["leak"] == ["photo/cat/equal.png = sketch/cat/other-name.bmp"]
    assert found["near-leak"] == ["photo/dog/near.png ~ sketch/dog/near.jpg"]
    assert found["two-labels"] == ["photo/cat/torn.png = photo/dog/torn.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('steps = "x"', "steps = 'x'"), ("steps = 0", "steps = 0"), ("steps = 2.5", "steps = 2.5"),
        ("steps = 99999999999999999999", "steps"), ("batch_size = 100000000000", "batch_size"),
        ("lr = nan", "lr = nan"), ("lr = -1", "lr = -1"), ("lr = 1e999", "lr = inf"), ("seed = -1", "seed"),
        ("stesp = 3", "did you mean 'steps'"), ("[data]\nsise = 32", "did you mean 'data.size'"), ("data = 3", "data"),
        ("[data]\nsize = 1000000", "data.size"), ("[generate]\nstrength = [0.9, 0.1]", "from low to high"),
        ("[generate]\nstrength = [0.5]", "generate.strength"), ("[generate]\ntemplate = '{x}'", "generate.template"),
        ("target = ['sketch']", "target"), ("trial = 99999999999999999999", "trial"), ("freeze_bn = 7", "freeze_bn"),
        ("steps = 10**3", "not valid TOML"), ("\x00", "not valid TOML"), ("a = " + "[" * 5000, "not valid TOML"),
        ("steps = 1\nsteps = 2", "not valid TOML"), ("x = 2020-01-01", "unknown option 'x'"),
        ("backbone = '../../x'", "unknown backbone"), ("algorithm = ''", "unknown algorithm"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(image_folder: Path, tmp_path: Path, command: Any, text: str, message: str) -> None:
    path = tmp_path / "options.toml"
    path.write_text(text)
    said = command("train", image_folder, "--config", path, "--output", tmp_path / "run")
    assert said.code == 2
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "run" / "config.toml").exists()  # nothing there insists on them


def test_options_in_no_text(image_folder: Path, tmp_path: Path, command: Any) -> None:
    (tmp_path / "options.toml").write_bytes(b"\xff\xfe\x00")
    assert command("train", image_folder, "--config", tmp_path / "options.toml").code == 2
    assert command("train", image_folder, "--config", tmp_path).code == 2  # a folder
    assert command("train", image_folder, "--config", tmp_path / "absent.toml").code == 2


def test_a_batch_that_no_memory_holds(
    image_folder: Path, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_rows(*arguments: object) -> np.ndarray:  # in earnest it would fill the machine
        raise MemoryError("Unable to allocate 8.00 TiB")

    monkeypatch.setattr(one_step, "draw_rows", draw_rows)
    said = train(image_folder)
    assert said.code == 1
    assert "out of memory at step 0: Unable to allocate 8.00 TiB; use a smaller --batch-size" in said.err


def test_an_exploding_loss_stops_and_keeps_what_was_there(
    image_folder: Path, tmp_path: Path, train: Any, untouched: Any
) -> None:
    said = train(image_folder, "--lr", "1e30", "--steps", "6", "--evaluations", "6")
    assert said.code == 1
    assert "not finite" in said.err
    assert "Lower --lr" in said.err
    before = untouched(tmp_path / "run" / "checkpoints")
    assert train(image_folder, "--lr", "1e30", "--steps", "6", "--evaluations", "6").code == 1
    assert untouched(tmp_path / "run" / "checkpoints") == before


ESCAPES = ("../evil.png", "/tmp/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png", "a/\x00b.png")


# A tar archive ends a name at a zero byte.
@pytest.mark.parametrize(
    ("form", "name"),
    [(form, name) for form in ("zip", "tar") for name in ESCAPES if form == "zip" or "\x00" not in name],
)
def test_archives_whose_members_leave_their_folder(
    image_folder: Path, tmp_path: Path, command: Any, untouched: Any, name: str, form: str
) -> None:
    path = tmp_path / "sub" / f"PACS.{form}"
    path.parent.mkdir()
    content = (image_folder / "photo" / "cat" / "00.png").read_bytes()
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("PACS/photo/dog/1.png", content)
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            archive.writestr(info, content)
    else:
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    before = untouched(tmp_path)
    said = command("data", "prepare", "PACS", path, tmp_path / "sub" / "out")
    assert said.code == 1
    assert "leads out of the folder" in said.err
    assert untouched(tmp_path) == before
