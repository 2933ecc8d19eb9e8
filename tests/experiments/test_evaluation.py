"""Evaluating a finished run, on its own target and on another folder."""

import json

import pytest
from PIL import Image

from domainfusion.cli import run
from domainfusion.config import DataConfig, TrainConfig
from domainfusion.errors import DataError
from domainfusion.experiments.evaluation import evaluate_run
from domainfusion.experiments.runs import train_run


@pytest.fixture
def finished(image_folder, tmp_path):
    config = TrainConfig(
        algorithm="erm", target="sketch", steps=4, batch_size=4, precision="float32", data=DataConfig(size=32)
    )
    folder = tmp_path / "run"
    return folder, train_run(str(image_folder), config, folder, progress=False)


def test_own_target_agrees_with_the_result(finished):
    folder, result = finished
    found = evaluate_run(folder)
    assert found == {
        "sketch": {
            "images": result["test_images"],
            "accuracy": pytest.approx(result["target_accuracy"]),
            "class_accuracy": pytest.approx(result["class_accuracy"]),
        }
    }


def test_another_folder_is_matched_by_class_name(finished, make_image_folder):
    folder, _ = finished
    other = make_image_folder("other", classes=("dog", "house"))  # "cat", the first class, is missing
    same = make_image_folder("same")
    fewer, full = evaluate_run(folder, str(other)), evaluate_run(folder, str(same))
    assert set(fewer) == {"cartoon", "photo", "sketch"}
    # The pictures of make_image_folder depend on the class's place, so only counts and names can be compared here.
    assert fewer["photo"]["images"] == 24
    assert full["photo"]["images"] == 36
    assert set(fewer["photo"]["class_accuracy"]) == {"dog", "house"}


def test_the_images_trained_on_are_told(finished, image_folder, make_image_folder, capsys):
    folder, _ = finished
    evaluate_run(folder, str(image_folder))
    assert "the images that the run was trained on" in capsys.readouterr().err
    copied = make_image_folder("copied")  # the same pictures elsewhere
    evaluate_run(folder, str(copied))
    assert "the images that the run was trained on" in capsys.readouterr().err
    Image.new("RGB", (16, 16), "red").save(next(copied.rglob("*.png")))
    evaluate_run(folder)
    evaluate_run(folder, str(copied))
    assert capsys.readouterr().err == ""


def test_a_run_that_has_not_got_so_far_is_told(finished, capsys):
    folder, _ = finished
    for name in ("model.json", "model.safetensors", "result.json"):
        (folder / name).unlink()
    assert run(["evaluate", str(folder)]) == 1
    assert "no trained model yet" in capsys.readouterr().err


def test_command_prints_classes(finished, capsys):
    folder, result = finished
    assert run(["evaluate", str(folder)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, accuracy in result["class_accuracy"].items():
        assert [name, f"{100 * accuracy:.1f}", "%"] in rows


def test_unknown_class_is_named(finished, make_image_folder):
    folder, _ = finished
    with pytest.raises(DataError, match="'zebra'"):
        evaluate_run(folder, str(make_image_folder("zoo", classes=("cat", "zebra"))))


def test_command_prints_json(finished, capsys):
    folder, result = finished
    assert run(["evaluate", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sketch"]["images"] == result["test_images"]


def test_a_folder_without_a_run_is_wrong_usage(tmp_path, capsys):
    assert run(["evaluate", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_images_that_are_others_by_now_are_told(finished, image_folder, capsys):
    """The run's split would be of other images: what it trained on might be tested."""
    folder, _ = finished
    Image.new("RGB", (20, 20), "red").save(image_folder / "sketch" / "cat" / "another.png")
    assert run(["evaluate", str(folder)]) == 1
    assert f"the images of {image_folder} have changed since the run in {folder} began" in capsys.readouterr().err


def test_images_that_are_gone_are_told_by_their_folder(finished, image_folder, capsys):
    folder, _ = finished
    (image_folder / "sketch" / "cat" / "00.png").write_bytes(b"no image any more")
    assert run(["evaluate", str(folder)]) == 1
    told = capsys.readouterr().err
    assert f"{image_folder}/sketch/cat/00.png cannot be read" in told
    assert told.endswith("restore it, or give the data set to evaluate on as a second argument\n")
    assert "--" not in told  # no option helps
    image_folder.rename(image_folder.with_name("elsewhere"))
    assert run(["evaluate", str(folder)]) == 1
    assert capsys.readouterr().err == (
        f"domainfusion: the images of the run in {folder} are gone: there is no folder {image_folder}; put it back, "
        "or give the data set to evaluate on as a second argument\n"
    )
