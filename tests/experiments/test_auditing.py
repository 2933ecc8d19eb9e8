"""The audit: scores by hand, planted labels, classifiers that have not seen an image, and the files it writes."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.cli import run
from domainfusion.config import AuditConfig, DataConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import DataError, UsageError
from domainfusion.experiments.auditing import audit_labels, audit_planted, audit_text, planted_text, score_labels
from domainfusion.experiments.evaluation import load_run
from domainfusion.experiments.label_losses import ModelVerdict, combine, find_runs, losses_of_runs
from domainfusion.experiments.planting import plant_labels
from domainfusion.experiments.runs import train_run
from domainfusion.files import read_json


@pytest.fixture
def config(tiny_pipeline: Path) -> AuditConfig:
    return AuditConfig(
        ldm=str(tiny_pipeline), precision="float32", device="cpu", confidences=(0.5, 1.0), pairs=1, rounds=2, keep=1,
        data=DataConfig(size=32),
    )  # fmt: skip


def test_scores_are_differences_to_the_best_rival_that_had_every_round() -> None:
    # Two images, three labels, two rounds, two strata.
    misfit = np.array([
        [[[5.0, 7], [6, 10]], [[1, 2], [3, 4]], [[-9, -9], [np.nan, np.nan]]],
        [[[0, 0], [0, 0]], [[2, 2], [2, 2]], [[1, 1], [1, 3]]],
    ])  # fmt: skip
    found = score_labels(misfit, np.array([0, 0]))
    assert found.rival.tolist() == [1, 2]  # the third label of the first image was given up after a round
    np.testing.assert_allclose(found.score, [7 - 2.5, -1.5])
    # Differences of image 0: strata (4, 3) and (5, 6) over the rounds: variances 0.5 and 0.5.
    np.testing.assert_allclose(found.error[0], np.sqrt((0.5 + 0.5) / 2) / 2)


def test_the_standard_error_is_the_spread_of_repetitions() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=(1, 2, 1, 4)) * 5  # strata differ by much more than their members
    draws = level + rng.normal(size=(4000, 2, 3, 4))
    draws[:, 1] += 100  # never the better label
    found = score_labels(draws, np.zeros(4000, dtype=int))
    assert found.error.mean() == pytest.approx(found.score.std(), rel=0.1)


def test_planted_labels_are_wrong_seeded_and_in_number() -> None:
    labels = np.arange(1000) % 7
    rows = np.arange(0, 1000, 5)
    wrong, planted = plant_labels(labels, 7, 0.05, 3, rows)
    assert planted[rows].sum() == 10
    assert planted.sum() == 50
    assert (wrong[planted] != labels[planted]).all()
    assert (wrong[~planted] == labels[~planted]).all()
    assert set(wrong) <= set(range(7))
    again, _ = plant_labels(labels, 7, 0.05, 3, rows)
    other, _ = plant_labels(labels, 7, 0.05, 4, rows)
    assert (again == wrong).all()
    assert (other != wrong).any()
    with pytest.raises(UsageError, match="plants no wrong label"):
        plant_labels(labels, 7, 0.001, 0, rows)


def test_models_speak_of_images_they_were_not_trained_on() -> None:
    values = np.log(np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    others = np.log(np.array([[0.25, 0.75], [0.4, 0.6], [0.1, 0.9]]))
    both = combine([
        ModelVerdict(values, np.array([True, False, True])), ModelVerdict(others, np.array([False, False, True]))
    ])  # fmt: skip
    labels = np.array([0, 1, 1])
    expected = [-np.log(0.25), -(np.log(0.1) + np.log(0.6)) / 2, -(np.log(0.8) + np.log(0.9)) / 2]
    np.testing.assert_allclose(both.losses(labels), expected)
    assert both.trained_on.tolist() == [False, False, True]
    assert both.suggestions(labels).tolist() == [1, 0, 0]


def test_of_two_held_out_domains_a_model_was_trained_on_neither(image_folder: Path, tmp_path: Path) -> None:
    options = TrainConfig(
        algorithm="erm", target="sketch", second_target="photo", steps=1, evaluations=1, batch_size=2,
        backbone="test_resnet", precision="float32", device="cpu", data=DataConfig(size=32),
    )  # fmt: skip
    train_run(str(image_folder), options, tmp_path / "run", progress=False)
    dataset = load_dataset(str(image_folder), options.data)
    found = losses_of_runs([tmp_path / "run"], str(image_folder), dataset, torch.device("cpu"))
    trained = {dataset.domains[number] for number in dataset.domain_of[found.trained_on]}
    assert trained == {"cartoon"}
    assert found.trained_on.sum() == 29  # 36 less the held-out fifth


def test_an_audit_with_a_run_writes_its_table_and_page(
    trained_run: Path, tiny_pipeline: Path, tmp_path: Path, config: AuditConfig
) -> None:
    images = trained_run.parent / "images"
    found = audit_labels(str(images), config, tmp_path / "out", runs=(trained_run.parent,), top=5, progress=False)
    dataset = load_dataset(str(images), config.data)
    entries = read_json(tmp_path / "out" / "audit.json")["labels"]
    assert [entry["rank"] for entry in entries] == list(range(1, len(dataset) + 1))
    scores = [entry["score"] for entry in entries]
    assert scores == sorted(scores, reverse=True)
    assert all(entry["given"] != entry["suggested"] for entry in entries)
    assert len(found["labels"]) == 5
    assert (found["fingerprint"], found["size"]) == (dataset.fingerprint, 32)
    # The run held `sketch` out: only images of its sources' training parts were trained on.
    run_config, _, _ = load_run(trained_run)
    split = build_split(dataset, run_config.data, run_config.target, run_config.trial)
    trained = set(np.concatenate(list(split.train.values())).tolist())
    assert {entry["row"] for entry in entries if entry["trained_on"]} == trained
    ranked = sorted(entries, key=lambda entry: entry["classifier_rank"])
    losses = [entry["classifier_loss"] for entry in ranked]
    assert losses == sorted(losses, reverse=True)
    with open(tmp_path / "out" / "audit.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [int(line["row"]) for line in table] == [entry["row"] for entry in entries]
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert "<script" not in page
    assert f"{len(dataset)} of {len(dataset)} labels ranked by both" in audit_text(found)


def test_names_are_escaped_on_the_page(
    make_image_folder: Callable[..., Path], tmp_path: Path, config: AuditConfig
) -> None:
    images = make_image_folder("odd", classes=("cat", "<b>dog"), count=1)
    audit_labels(str(images), config, tmp_path / "out", top=6, progress=False)
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;dog" in page
    assert "<b>dog" not in page.replace("<b>&lt;", "")


def test_planting_measures_every_ranking(
    make_image_folder: Callable[..., Path], tmp_path: Path, config: AuditConfig
) -> None:
    images = make_image_folder("some", count=5)
    options = {"share": 0.2, "repeats": 2, "trials": (0, 1), "steps": 3, "backbone": "test_resnet", "progress": False}
    found = audit_planted(str(images), dataclasses.replace(config, images=20), tmp_path / "out", **options)
    assert found["planted"] == 4
    assert {name: len(figures) for name, figures in found["rankings"].items()} == {
        "both": 2, "slopes": 2, "losses": 2, "classifier": 1
    }  # fmt: skip
    for figures in found["rankings"].values():
        for entry in figures:
            assert entry["precision"] == entry["recall"]
            assert 0 < entry["average_precision"] <= 1
            assert entry["recall_twice"] >= entry["recall"]
    text = planted_text(found)
    assert "precision at 4" in text
    assert "recall at 8" in text
    # Trained models are read, not trained again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert audit_planted(str(images), dataclasses.replace(config, images=20), tmp_path / "out", **options) == found
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}


def test_what_cannot_be_audited_is_refused(
    trained_run: Path, make_image_folder: Callable[..., Path], tmp_path: Path, config: AuditConfig
) -> None:
    single = make_image_folder("single", classes=("cat",), count=1)
    with pytest.raises(UsageError, match="one class only"):
        audit_labels(str(single), config, tmp_path)
    with pytest.raises(UsageError, match="--plant 2 is not a share"):
        audit_planted(str(single), config, tmp_path, share=2)
    with pytest.raises(UsageError, match="no finished run"):
        find_runs([tmp_path])
    images = make_image_folder("others", count=2)
    with pytest.raises(DataError, match="trained on other images"):
        audit_labels(str(images), config, tmp_path, runs=(trained_run,))


def test_the_command_prints_what_it_found(
    make_image_folder: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_image_folder("few", count=1)
    words = ["audit", str(images), "--ldm", str(tiny_pipeline), "--precision", "float32", "--data.size", "32",
             "--pairs", "1", "--rounds", "2", "--output", str(tmp_path / "out")]  # fmt: skip
    assert run([*words, "--json", "--top", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["labels"]) == 2
    assert run([*words, "--keep", "0"]) == 2
    assert "--keep 0" in capsys.readouterr().err
