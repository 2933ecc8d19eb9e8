"""DSI: the ensemble image by image against the literal loop, and whole runs."""

from __future__ import annotations

import csv
import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domainfusion import cli
from domainfusion.config import TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.diffusion import finetuning
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import UsageError
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.experiments.evaluation import evaluate_run
from domainfusion.experiments.runs import train_run
from domainfusion.export import export_folder, export_onnx
from domainfusion.files import read_json, write_json
from domainfusion.fusion import inversion
from domainfusion.fusion.image_cache import ImageCache
from domainfusion.fusion.inversion import translate
from domainfusion.json_lines import read_json_lines
from domainfusion.model import load
from domainfusion.report.html import write_report
from domainfusion.results.collect import collect
from domainfusion.results.tables import run_summary
from dsi_runs import with_options
from literal_dsi import literal_order, softmax


def predictions_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@functools.cache
def parts_of(run: Path) -> tuple[torch.nn.Module, list[LatentDiffusion]]:
    named = read_json(run / "sources.json")
    assert [entry["domain"] for entry in named] == ["cartoon", "sketch"]
    ldms = [LatentDiffusion.load(f"{entry['folder']}/pipeline", precision="float32") for entry in named]
    return load(run, device="cpu").classifier, ldms


@torch.no_grad()
def literal_logits(run: Path, config: TrainConfig, image: np.ndarray) -> tuple[list[float], int]:
    """What the run's classifier and LDMs say of one image (S, S, 3)."""
    classifier, ldms = parts_of(run)

    def classify(pixels: np.ndarray) -> list[float]:
        return classifier(torch.from_numpy(pixels[None]).permute(0, 3, 1, 2) / 255)[0].tolist()

    translated = [
        [[classify(translate(ldm, image[None], start, config.dsi)[0])] for ldm in ldms] for start in config.dsi.starts
    ]
    logits, where = literal_order([classify(image)], translated, config.dsi.threshold, config.dsi.unsure)
    return logits[0], where[0]


def test_a_run_is_tested_by_the_ensemble_and_so_are_evaluate_and_predict(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    result = train_run(str(images), config, run, progress=False)
    dataset = load_dataset(str(images), config.data)
    rows = build_split(dataset, config.data, "photo", 0).test
    wanted = [literal_logits(run, config, dataset.images[row].copy()) for row in rows]
    answers = np.array([np.argmax(logits) for logits, _ in wanted])
    lines = predictions_of(run)
    assert "calibrated" not in lines[0]  # the temperature is of the classifier alone
    assert [line["prediction"] for line in lines] == [dataset.classes[k] for k in answers]
    shares = [max(softmax(logits)) for logits, _ in wanted]
    np.testing.assert_allclose([float(line["probability"]) for line in lines], shares, atol=2e-3)
    assert result["target_accuracy"] == (answers == dataset.labels[rows]).mean()
    where = [found for _, found in wanted]
    assert result["ensemble"]["accepted"] == {
        "original": where.count(0), "0.25": where.count(1), "0.75": where.count(2), "none": where.count(-1),
    }  # fmt: skip
    assert result["ensemble"]["accepted"]["original"] < 12
    assert f"accepted at start step: original {where.count(0)}, 0.25 {where.count(1)}," in run_summary(result, "x")

    # The classifier, and with it validation, is ERM's.
    erm = train_run(str(images), dataclasses.replace(config, algorithm="erm"), tmp_path / "erm", progress=False)
    assert result["validation"] == erm["validation"]
    assert result["ensemble"]["classifier_accuracy"] == erm["target_accuracy"]

    costs = result["costs"]
    assert costs["finetuning_images"] == 24
    held_out = build_split(dataset, config.data, "photo", 0).oracle
    both = where + [literal_logits(run, config, dataset.images[row].copy())[1] for row in held_out]
    # A start step that is come to costs a translation by each of the two LDMs.
    assert costs["generated_images"] == 2 * sum({0: 0, 1: 1, 2: 2, -1: 2}[found] for found in both)
    assert result["seconds"] >= costs["finetuning_seconds"] + costs["generation_seconds"] > 0

    monkeypatch.setattr(inversion, "translate", None)  # all of it is there
    monkeypatch.setattr(finetuning, "train_pipeline", None)
    found = evaluate_run(run, device_name="cpu")
    assert found["photo"]["accuracy"] == result["target_accuracy"]
    assert found["photo"]["class_accuracy"] == result["class_accuracy"]
    monkeypatch.undo()

    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "cache"))
    paths = [images / dataset.keys[row] for row in rows]
    write_json(run / "calibration.json", read_json(run / "calibration.json") | {"temperature": 2.5})
    model = load(run, device="cpu")
    assert model.temperature == 1  # the run's is of its classifier alone
    assert model.predict(paths).labels == [dataset.classes[k] for k in answers]
    for export in (export_folder, export_onnx):
        with pytest.raises(UsageError, match="a run of erm with the same options and seed"):
            export(model, tmp_path / "exported")
    assert cli.run(["export", str(run), "--output", str(tmp_path / "exported")]) == 2
    assert "run of dsi" in capsys.readouterr().err
    assert {"translations.png", "translations.txt", "sources.json"} <= {p.name for p in run.iterdir()}


def test_what_is_gone_from_the_cache_is_made_again(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train_run(str(images), config, tmp_path / "run", progress=False)
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "empty"))
    assert evaluate_run(tmp_path / "run", device_name="cpu")["photo"]["accuracy"] == result["target_accuracy"]
    counts = {name: part["images"] for name, part in evaluate_run(tmp_path / "run", str(images), "cpu").items()}
    assert counts == {"cartoon": 15, "photo": 15, "sketch": 15}


def test_a_run_killed_at_the_test_goes_on_where_it_was(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_options(config, threshold=1.0)
    whole = train_run(str(images), config, tmp_path / "whole", progress=False)
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "other"))
    trained, stored = [], []
    train, store = finetuning.train_pipeline, ImageCache.store

    def die_in_the_second(*arguments: Any) -> Path:
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(arguments)
        return train(*arguments)

    def die(self: ImageCache, places: np.ndarray, *others: Any) -> None:
        if len(stored) == 3:
            raise KeyboardInterrupt
        store(self, places, *others)
        stored.append(len(places))

    for module, name, dying in ((finetuning, "train_pipeline", die_in_the_second), (ImageCache, "store", die)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, dying)
            with pytest.raises(KeyboardInterrupt):
                train_run(str(images), config, tmp_path / "parts", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "store", lambda self, *a: stored.append(len(a[0])) or store(self, *a))
        resumed = train_run(str(images), config, tmp_path / "parts", progress=False)
    assert sum(stored) == 2 * 2 * 15  # two LDMs, two start steps, 12 test and 3 held-out images
    for name in ("target_accuracy", "validation", "ensemble", "selected_step", "confusion"):
        assert resumed[name] == whole[name]
    assert resumed["ensemble"]["accepted"]["none"] == 12
    assert len(read_json_lines(tmp_path / "parts" / "results.jsonl")) == 1


def test_a_benchmark_shares_ldms_and_has_it_in_every_table(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: list[Any] = []
    train = finetuning.train_pipeline
    monkeypatch.setattr(finetuning, "train_pipeline", lambda *a: tuned.append(a) or train(*a))
    config = dataclasses.replace(config, cdga=dataclasses.replace(config.cdga, steps=1))
    summary = run_benchmark(str(images), config, ["erm", "cdga", "dsi"], [0], ["photo", "sketch"], tmp_path / "b")
    assert len(tuned) == 3  # cartoon's serves both targets
    for name in ("erm", "cdga", "dsi"):
        assert set(summary["accuracy"][name]) == {"photo", "sketch"}
    (table,) = collect([tmp_path / "b"], ["training-domain"])[0]
    result = read_json(tmp_path / "b" / "dsi" / "photo" / "trial-0" / "result.json")
    assert table.accuracy["DSI"]["photo"] == [result["target_accuracy"]]
    assert "CDGA" in table.accuracy
    write_report([tmp_path / "b"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("CDGA", "DSI", "fine-tuning diffusion models"):
        assert words in page


def test_without_a_target_nothing_is_tuned_while_training(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "train_pipeline", None)
        result = train_run(str(images), dataclasses.replace(config, target=None), tmp_path / "run", progress=False)
    assert "target_accuracy" not in result
    assert set(evaluate_run(tmp_path / "run", device_name="cpu")) == {"cartoon", "photo", "sketch"}


def test_an_ldm_that_is_not_trained_is_refused_before_anything_is_written(
    images: Path, config: TrainConfig, tmp_path: Path, tiny_pipeline: Path
) -> None:
    other = tmp_path / "velocity"
    shutil.copytree(tiny_pipeline, other)
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"epsilon"', '"v_prediction"'))
    with pytest.raises(UsageError, match="predicts v_prediction"):
        train_run(str(images), dataclasses.replace(config, ldm=str(other)), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.toml").exists()
