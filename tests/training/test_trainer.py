"""Whole runs of the trainer: that they learn, what they leave in their folder, and runs without a target."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.algorithms.classifier import build_classifier
from domainfusion.config import DataConfig
from domainfusion.errors import UsageError
from domainfusion.experiments import runs
from domainfusion.experiments.runs import build_algorithm, build_context
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.results.collect import collect
from domainfusion.tensors import load_state
from domainfusion.training import measuring, trainer
from domainfusion.training.schedule import learning_rate
from short_runs import options, run


def test_training_learns(images: Path, tmp_path: Path) -> None:
    plain = DataConfig(size=32, crop=1, flip=False, jitter=0, grayscale=0)
    result = run(images, tmp_path / "run", steps=30, evaluations=3, batch_size=8, data=plain)
    records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    losses = [record["raw_loss"] for record in records]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.5 * math.log(3)  # half of what guessing costs
    assert result["validation_accuracy"] > 0.6  # chance: 1/3


def test_the_folder_of_a_run_tells_all(images: Path, whole: Path) -> None:
    names = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert names == {
        "config.toml", "environment.json", "data.json", "metrics.jsonl", "result.json", "predictions.csv",
        "results.jsonl", "done", "model.safetensors", "model.json", "checkpoints/last.safetensors",
        "checkpoints/previous.safetensors", "calibration.json", ".lock", "SHA256SUMS",
    }  # fmt: skip
    records = read_json_lines(whole / "metrics.jsonl")
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    assert [record["lr"] for record in records] == [learning_rate(step - 1, 8, 1e-3) for step in (2, 4, 6, 8)]
    described = read_json(whole / "data.json")
    assert (described["images"], described["train"], described["validation"], described["test"]) == (
        108, {"cartoon": 29, "photo": 29}, {"cartoon": 7, "photo": 7}, 29,
    )  # fmt: skip
    result = read_json(whole / "result.json")
    assert result["steps"] == 8
    assert np.sum(result["confusion"]) == result["test_images"] == 29
    assert result["target_images"] == 36
    assert result["target_accuracy"] == pytest.approx(np.trace(result["confusion"]) / 29)
    best = max(records, key=lambda record: (record["validation_accuracy"], record["step"]))
    assert result["selected_step"] == best["step"]
    assert result["validation_accuracy"] == best["validation_accuracy"]
    assert result["target_accuracy"] == best["target_accuracy"]


def test_test_images_are_looked_for_among_all_that_train_or_validate(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(runs, "overlap_notes", lambda _, *rows: asked.append([sorted(r.tolist()) for r in rows]) or [])
    run(images, tmp_path / "run", steps=1, evaluations=1)
    context = build_context(str(images), options(), tmp_path / "run", progress=False)
    sources = np.flatnonzero(context.dataset.domain_of < 2)
    assert asked == [[sources.tolist(), sorted(context.split.test.tolist())]]


def test_initial_weights_are_a_function_of_the_seed(images: Path, tmp_path: Path) -> None:
    context = build_context(str(images), options(), tmp_path / "run", progress=False)
    other = dataclasses.replace(context, config=options(seed=1))
    weights = [build_algorithm(c).classifier.head.weight for c in (context, context, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_unknown_backbone_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown backbone 'resnet10tt'; did you mean 'resnet10t'"):
        build_classifier(options(backbone="resnet10tt"), 3)


def test_a_run_without_target_validates_and_tests_nothing(images: Path, tmp_path: Path) -> None:
    result = run(images, tmp_path / "run", target=None, steps=2, evaluations=1)
    assert set(result["validation"]) == {"cartoon", "photo", "sketch"}
    assert "target_accuracy" not in result
    (record,) = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert "target_accuracy" not in record
    json.dumps(result, allow_nan=False)


def test_predictions_of_every_test_image_are_written(images: Path, tmp_path: Path) -> None:
    result = run(images, tmp_path / "run", target="sketch")
    with open(tmp_path / "run/predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["test_images"]
    assert all(row["source"].startswith("sketch/" + row["class"]) for row in rows)
    right = [row["class"] == row["prediction"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(result["target_accuracy"])


def test_results_are_records_that_domainbed_reads(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(images, folder, evaluate_training=True, trial=1)
    assert (folder / "done").exists()
    records = read_json_lines(folder / "results.jsonl")
    metrics = read_json_lines(folder / "metrics.jsonl")
    assert [r["step"] for r in records] == [2, 4, 6, 8]
    context = build_context(str(images), options(trial=1, evaluate_training=True), folder, progress=False)
    domains = context.dataset.domains
    for found, metric in zip(records, metrics, strict=True):
        assert found["args"]["algorithm"] == "ERM"
        assert found["args"]["test_envs"] == [domains.index("sketch")]
        assert (found["args"]["trial_seed"], found["args"]["steps"]) == (1, 8)
        assert {f"env{i}_{part}_acc" for i in range(3) for part in ("in", "out")} <= set(found)
        assert found[f"env{domains.index('sketch')}_in_acc"] == metric["target_accuracy"]
        for domain, share in metric["validation"].items():
            assert found[f"env{domains.index(domain)}_out_acc"] == share
        assert found["loss"] == pytest.approx(metric["raw_loss"])
    # The last weights, evaluated here: each part is the split's.
    algorithm = build_algorithm(context)
    state = load_state(folder / "checkpoints" / "last.safetensors")
    algorithm.load_state_dict(state["model"])
    algorithm.eval()
    parts = {"in": context.split.train, "out": context.split.validation}
    for i, domain in enumerate(domains):
        for part, rows in parts.items():
            if domain != "sketch":
                assert records[-1][f"env{i}_{part}_acc"] == measuring.accuracy_on(algorithm, rows[domain])
    assert records[-1]["env2_out_acc"] == measuring.accuracy_on(algorithm, context.split.oracle)
    assert not set(context.split.oracle) & set(context.split.test)
    (table,) = collect([tmp_path], ["training-domain"])[0]
    assert table.accuracy["ERM"]["sketch"][0] in [m["target_accuracy"] for m in metrics]
    assert max(m["validation_accuracy"] for m in metrics) == result["validation_accuracy"]


def test_a_meter_reads_many_steps_at_once_and_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(len(self)) or original(self))
    losses = torch.rand(2 * trainer.READ_EVERY + 7, 2, generator=torch.Generator().manual_seed(0))
    meter = trainer.Meter(seconds=3.0)
    for number, (raw, other) in enumerate(losses):
        meter.add({"raw_loss": raw, "other_loss": other} if number else {"raw_loss": raw})
    assert len(reads) == 2 * trainer.READ_EVERY
    state = meter.state()
    assert state == {
        "steps": len(losses), "seconds": 3.0,
        "totals": pytest.approx({
            "raw_loss": float(losses[:, 0].double().sum()), "other_loss": float(losses[1:, 1].double().sum()),
        }),
    }  # fmt: skip
    again = trainer.Meter(**state)
    assert again.means() == meter.means()
