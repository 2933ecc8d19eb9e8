"""Loading a run's model and asking it: what it says is what evaluation says, and what is no model is refused."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import domainfusion
from domainfusion import cli
from domainfusion.data.domains import load_dataset
from domainfusion.data.images import read_image
from domainfusion.errors import DataError, DomainFusionError, FileError, UsageError
from domainfusion.experiments.runs import build_context
from domainfusion.files import read_json, write_json
from domainfusion.training.calibration import negative_log_likelihood
from domainfusion.training.evaluation import collect_logits


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage; its images stay where they were."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def test_predictions_are_those_of_the_evaluation(trained_run: Path) -> None:
    with open(trained_run / "predictions.csv", newline="") as file:
        evaluated = list(csv.DictReader(file))
    images = trained_run.parent / "images"
    model = domainfusion.load(trained_run)
    labels, confidences = model.predict([images / row["source"] for row in evaluated], batch_size=7)
    assert labels == [row["prediction"] for row in evaluated]
    p = model.logits(np.stack([read_image(images / row["source"], 32) for row in evaluated])).softmax(-1).amax(1)
    assert p.numpy() == pytest.approx([float(row["probability"]) for row in evaluated], abs=6e-5)
    assert len(set(labels)) > 1
    assert model.temperature != 1.0
    assert not np.allclose(confidences, p.numpy(), atol=1e-3)  # calibrated
    assert confidences == pytest.approx([float(row["calibrated"]) for row in evaluated], abs=6e-5)


def test_the_temperature_is_the_minimum_on_source_validation(trained_run: Path) -> None:
    kept = read_json(trained_run / "calibration.json")
    model = domainfusion.load(trained_run)
    data = read_json(trained_run / "data.json")["data"]
    context = build_context(data, model.config, trained_run, progress=False)
    assert kept["domains"] == ["cartoon", "photo"]  # not the target
    rows = np.concatenate([context.split.validation[name] for name in kept["domains"]])
    assert kept["images"] == len(rows) == 14
    logits = collect_logits(model.classifier, context.dataset, rows, device=torch.device("cpu"), dtype=torch.float32)
    grid = np.geomspace(0.05, 20, 1001)
    found = [negative_log_likelihood(logits, context.dataset.labels[rows], t) for t in grid]
    assert model.temperature == kept["temperature"] == pytest.approx(grid[np.argmin(found)], rel=0.01)
    assert kept["accuracy"] == pytest.approx((logits.argmax(1) == context.dataset.labels[rows]).mean())
    assert kept["confidence"] == [
        pytest.approx(torch.from_numpy(logits / t).softmax(1).amax(1).mean().item()) for t in (1, model.temperature)
    ]
    assert kept["nll"] == [
        pytest.approx(negative_log_likelihood(logits, context.dataset.labels[rows], t)) for t in (1, model.temperature)
    ]


def test_an_older_run_is_calibrated_when_it_is_first_used(
    run: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "calibration.json").unlink()
    assert domainfusion.load(run).temperature == pytest.approx(domainfusion.load(trained_run).temperature)
    assert read_json(run / "calibration.json") == read_json(trained_run / "calibration.json")
    # A temperature belongs to its weights: other weights get their own.
    tensors = load_file(run / "model.safetensors")
    tensors["head.weight"] *= 3
    tensors["head.bias"] *= 3
    save_file(tensors, run / "model.safetensors")
    tripled = domainfusion.load(run).temperature
    assert tripled == pytest.approx(3 * domainfusion.load(trained_run).temperature, rel=1e-4)
    assert capsys.readouterr().err == ""


def test_without_the_images_confidences_are_plain_and_it_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "calibration.json").unlink()
    described = read_json(run / "data.json")
    write_json(run / "data.json", described | {"data": str(run / "gone")})
    assert domainfusion.load(run).temperature == 1.0
    assert "confidences are not calibrated" in capsys.readouterr().err
    assert not (run / "calibration.json").exists()


def test_paths_pictures_and_arrays_are_one(trained_run: Path) -> None:
    model = domainfusion.load(trained_run)
    path = trained_run.parent / "images" / "photo" / "cat" / "00.png"
    with Image.open(path) as image:
        image.load()
    array = np.asarray(image)
    rgba = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    p = model.probabilities([path, str(path), image, array, array.astype(np.float64) / 255, rgba])
    assert (p == p[0]).all()
    assert p.sum(1) == pytest.approx(1)
    assert p.shape == (6, 3)
    assert model.predict([]) == ([], pytest.approx(np.zeros(0)))


def test_it_judges_candidates_by_features_and_plain_confidences(trained_run: Path) -> None:
    model = domainfusion.load(trained_run)
    path = next((trained_run.parent / "images").rglob("*.png"))
    pixels = np.stack([read_image(path, model.size), np.full((model.size, model.size, 3), 70, dtype=np.uint8)])
    images, labels = torch.from_numpy(pixels).movedim(-1, 1).float() / 255, torch.tensor([2, 1])
    features, confidences = model.judge(images, labels)
    with torch.no_grad():
        assert torch.allclose(features, model.classifier.features(images), atol=1e-4)
    plain = model.logits(pixels).softmax(-1)  # the temperature is no part of training
    assert torch.allclose(confidences, plain[torch.arange(2), labels], atol=1e-4)
    large = torch.full((1, 3, 2 * model.size, 2 * model.size), 70 / 255)
    assert torch.allclose(model.judge(large, labels[1:])[1], confidences[1:], atol=1e-4)


def test_what_is_no_picture_is_named(trained_run: Path, tmp_path: Path) -> None:
    model = domainfusion.load(trained_run)
    good = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(DataError, match=r"image 1 .*\[0, 1\]"):
        model.predict([good, np.full((4, 4, 3), 7.0)])
    with pytest.raises(DataError, match=r"image 0 .*\[0, 1\]"):
        model.predict([np.full((4, 4, 3), -0.5)])  # as the LDM has pixels
    with pytest.raises(DataError, match=r"image 2 .*\(3, 5, 5\)"):
        model.predict([good, good, np.zeros((3, 5, 5), np.uint8)], batch_size=2)
    with pytest.raises(DataError, match=r"absent\.png"):
        model.predict([tmp_path / "absent.png"])
    with pytest.raises(UsageError, match="list"):
        model.predict(str(tmp_path))


class TestRefused:
    def test_a_pickle_in_whatever_dress(self, run: Path, tmp_path: Path) -> None:
        weights = {"weight": torch.ones(2)}
        torch.save(weights, tmp_path / "model.pt")
        with pytest.raises(FileError, match=r"model\.pt is a pickle"):
            domainfusion.load(tmp_path / "model.pt")
        with pytest.raises(FileError, match=r"model\.pt, a pickle"):
            domainfusion.load(tmp_path / ".")
        torch.save(weights, run / "model.safetensors")
        with pytest.raises(FileError, match="is a pickle"):
            domainfusion.load(run)
        (run / "model.safetensors").write_bytes(pickle.dumps({"weight": 1}))
        with pytest.raises(FileError, match="is a pickle"):
            domainfusion.load(run)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("head.bias"), r"lacks head\.bias"),
            (lambda t: t.update(extra=torch.ones(1)), "unknown extra"),
            (lambda t: t.update({"head.bias": torch.ones(7)}), r"head\.bias has the shape \[7\], not \[3\]"),
            (lambda t: t["head.bias"].fill_(float("nan")), r"head\.bias holds values that are not finite"),
        ],
    )
    def test_other_weights(self, run: Path, change: object, message: str) -> None:
        tensors = load_file(run / "model.safetensors")
        change(tensors)
        save_file(tensors, run / "model.safetensors")
        with pytest.raises(FileError, match=message) as caught:
            domainfusion.load(run)
        assert "\n" not in str(caught.value)

    def test_damage(self, run: Path) -> None:
        path = run / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(FileError, match="truncated or not a safetensors file"):
            domainfusion.load(run)
        path.unlink()
        with pytest.raises(FileError, match="no trained model yet"):
            domainfusion.load(run)

    @pytest.mark.parametrize("command", ["predict", "export", "evaluate"])
    def test_a_run_that_trained_nothing(self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "config.toml").write_text('algorithm = "diffusion_classifier"\n')
        more = {"predict": ["image.png"], "export": ["--output", str(tmp_path / "model")], "evaluate": []}[command]
        assert cli.run([command, str(tmp_path), *more]) == 2
        assert "of diffusion_classifier, which is not trained: there is no model" in capsys.readouterr().err

    @pytest.mark.parametrize("value", [0, -1, "2", None, True and float("1e999")])
    def test_a_temperature_that_is_none(self, run: Path, value: object) -> None:
        write_json(run / "calibration.json", read_json(run / "calibration.json") | {"temperature": value})
        with pytest.raises(FileError, match="temperature is a number above 0"):
            domainfusion.load(run)

    def test_what_is_no_model(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no model"):
            domainfusion.load(tmp_path / "absent")
        with pytest.raises(FileError, match=f"a run below it is {run}"):
            domainfusion.load(tmp_path)
        with pytest.raises(DomainFusionError, match="is a file"):
            domainfusion.load(run / "config.toml")
        write_json(tmp_path / "other" / "config.json", {"architecture": "resnet18"})
        with pytest.raises(FileError, match="was not written by `domainfusion export`"):
            domainfusion.load(tmp_path / "other")


def test_an_unfinished_run_is_used_with_a_remark(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "result.json").unlink()
    assert domainfusion.load(run / "model.safetensors").size == 32
    assert "has not finished" in capsys.readouterr().err


def test_data_sets_read_as_before(trained_run: Path) -> None:
    """Reading a file alone gives the pixels that training read."""
    config = domainfusion.load(trained_run).config
    dataset = load_dataset(str(trained_run.parent / "images"), config.data)
    path = trained_run.parent / "images" / dataset.keys[40]
    assert (read_image(path, 32) == dataset.images[40]).all()
    assert json.loads((trained_run / "model.json").read_text())["classes"] == list(dataset.classes)
