"""Runs of zero-shot classifiers: what they write, going on after a kill, sharing, and their row in the tables."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainfusion import cli
from domainfusion.algorithms.diffusion_classifier import DiffusionClassifier
from domainfusion.algorithms.zero_shot import Scores, ZeroShot
from domainfusion.config import TrainConfig
from domainfusion.data.content import image_keys
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.data.transforms import from_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import Interrupted, UsageError
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.experiments.evaluation import evaluate_run
from domainfusion.experiments.runs import train_run
from domainfusion.experiments.zero_shot import ScoreStore
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.report.html import write_report
from domainfusion.results.collect import collect
from domainfusion.results.tables import run_summary
from zero_shot_runs import changed


def records_of(cache: Path) -> list[dict[str, Any]]:
    (path,) = cache.glob("zero_shot/*/images.jsonl")
    return read_json_lines(path)


def read_predictions(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in result.items() if name not in ("seconds", "wall_seconds")}
    kept["costs"] = {name: value for name, value in result["costs"].items() if "seconds" not in name}
    return kept


def test_a_run_is_the_classifier_on_the_test_images(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    result = train_run(str(images), config, tmp_path / "run", progress=False)
    dataset = load_dataset(str(images), config.data)
    rows = build_split(dataset, config.data, "photo", 0).test
    ldm = LatentDiffusion.load(config.ldm, precision="float32")
    method = DiffusionClassifier(ldm, ["a cat", "a dog", "a house"], config.zero_shot)
    wanted = method.classify(from_uint8(dataset.images[rows]), image_keys(dataset.images[rows]).tolist())
    predictions = np.array([scores.prediction for scores in wanted])
    right = predictions == dataset.labels[rows]
    assert len(rows) == 12
    assert result["target_accuracy"] == right.mean()
    assert np.sum(result["confusion"]) == result["test_images"] == 12
    assert np.trace(result["confusion"]) == right.sum()
    assert (result["validation_accuracy"], result["validation"]) == (None, {})
    assert (result["steps"], result["selected_step"]) == (0, 0)
    assert result["costs"]["unet_passes"] == sum(scores.passes for scores in wanted) == 12 * (2 * 3 + 2 * 2)
    assert result["costs"]["classified_images"] == 12
    lines = read_predictions(tmp_path / "run")
    assert "calibrated" not in lines[0]  # there is no temperature
    assert [int(line["row"]) for line in lines] == rows.tolist()
    assert [line["prediction"] for line in lines] == [dataset.classes[k] for k in predictions]
    assert [line["source"] for line in lines] == [dataset.keys[row] for row in rows]
    assert read_json(tmp_path / "run" / "result.json") == result
    assert {"config.toml", "data.json", "environment.json", "done"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("algorithm", ["diffusion_classifier", "diffusion_net"])
def test_a_signal_ends_a_run_before_the_next_batch(
    images: Path, config: TrainConfig, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """A stage of one image can take minutes."""
    add, batch = ScoreStore.add, ZeroShot._batch
    known: list[int] = []
    seen: list[int] = []  # how many images were known at each batch

    def note(self: ScoreStore, key: int, scores: Scores) -> None:
        add(self, key, scores)
        known.append(key)

    def stop(self: ZeroShot, *args: Any) -> np.ndarray:
        seen.append(len(known))
        if sum(count > 2 for count in seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, *args)

    monkeypatch.setattr(ScoreStore, "add", note)
    monkeypatch.setattr(ZeroShot, "_batch", stop)
    with pytest.raises(Interrupted):
        train_run(str(images), changed(config, algorithm=algorithm), tmp_path / "run", progress=False)
    assert sum(count > 2 for count in seen) == 1
    assert [record["key"] for record in records_of(cache)] == known


@pytest.mark.parametrize("algorithm", ["diffusion_classifier", "diffusion_net"])
def test_a_killed_run_goes_on_to_the_same_result(
    images: Path, config: TrainConfig, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    config = changed(config, algorithm=algorithm)
    add, added = ScoreStore.add, []

    def die(self: ScoreStore, key: int, scores: Scores) -> None:
        if len(added) == 5:
            raise KeyboardInterrupt
        add(self, key, scores)
        added.append(key)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "add", die)
        with pytest.raises(KeyboardInterrupt):
            train_run(str(images), config, tmp_path / "killed", progress=False)
    assert not (tmp_path / "killed" / "result.json").exists()
    assert [record["key"] for record in records_of(cache)] == added
    (path,) = cache.glob("zero_shot/*/images.jsonl")
    with open(path, "a", encoding="utf-8") as file:  # as a kill in the middle of a write leaves it
        file.write('{"draws": [4, 4')
    again: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "add", lambda self, key, scores: again.append(key) or add(self, key, scores))
        resumed = train_run(str(images), config, tmp_path / "killed", progress=False)
    assert len(again) == 7
    assert not set(again) & set(added)
    found = {record["key"]: record for record in records_of(cache)}
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "other"))
    whole = train_run(str(images), config, tmp_path / "whole", progress=False)
    assert without_times(resumed) == without_times(whole)
    for record in records_of(tmp_path / "other"):
        assert record["draws"] == found[record["key"]]["draws"]
        np.testing.assert_allclose(record["errors"], found[record["key"]]["errors"], rtol=1e-5)
    lines = [read_predictions(tmp_path / name) for name in ("killed", "whole")]
    shares = [np.array([float(line.pop("probability")) for line in part]) for part in lines]
    assert lines[0] == lines[1]
    np.testing.assert_allclose(*shares, atol=2e-3)


def test_runs_share_the_scores_of_an_image(
    images: Path, config: TrainConfig, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_run(str(images), config, tmp_path / "first", progress=False)
    monkeypatch.setattr(LatentDiffusion, "load", None)  # nothing is left to compute
    second = train_run(str(images), changed(config, seed=5, lr=0.5), tmp_path / "second", progress=False)
    few = train_run(str(images), changed(config, images=4), tmp_path / "few", progress=False)
    assert second["target_accuracy"] == first["target_accuracy"]
    assert second["costs"] == first["costs"]
    assert (few["test_images"], few["costs"]["classified_images"]) == (4, 4)
    monkeypatch.undo()
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(cache))
    for name, other in {"draws": {"samples": (2, 5)}, "method": {"algorithm": "diffusion_net"}}.items():
        train_run(str(images), changed(config, **other), tmp_path / name, progress=False)
    assert len(list(cache.glob("zero_shot/*"))) == 3


def test_a_data_set_that_has_grown_asks_for_its_new_images_alone(
    images: Path, config: TrainConfig, tmp_path: Path, cache: Path
) -> None:
    """And images that show the same have the same scores, computed once."""
    config = changed(config, validation=True)  # all images of the target
    first = train_run(str(images), config, tmp_path / "first", progress=False)
    grown = tmp_path / "grown"
    shutil.copytree(images, grown)
    place = grown / "photo" / "cat"
    shutil.copy(min(place.iterdir()), place / "000-the-same.png")  # before all others: their rows move
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(place / "new.png")
    before = records_of(cache)
    assert len(before) == first["costs"]["classified_images"]
    second = train_run(str(grown), config, tmp_path / "second", progress=False)
    assert second["costs"]["classified_images"] == len(before) + 2
    (new,) = records_of(cache)[len(before) :]
    dataset = load_dataset(str(grown), config.data)
    (row,) = (row for row, name in enumerate(dataset.keys) if name.endswith("new.png"))
    assert new["key"] == int(image_keys(dataset.images[[row]])[0])


@pytest.mark.parametrize("damage", ["cut", "flipped", "no object", "huge"])
def test_a_damaged_line_is_named_and_its_image_classified_again(
    cache: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    store = ScoreStore("key")
    for key in range(3):
        store.add(key, Scores(np.array([1.0, 2.0]), np.array([1, 1]), 2, 0.1))
    store.close()
    lines = store.path.read_text().splitlines()
    lines[1] = {
        "cut": lines[1][:20], "flipped": lines[1].replace("2.0", "3.0"), "no object": "[]",
        "huge": lines[1].replace('"passes": 2', '"passes": 1e999'),
    }[damage]  # fmt: skip
    store.path.write_text("\n".join(lines) + "\n")
    assert ScoreStore("key").missing([0, 1, 2]) == [1]
    assert f"images.jsonl is damaged at byte {len(lines[0]) + 1} " in capsys.readouterr().err


def test_with_validation_it_has_what_a_trained_run_has(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    result = train_run(str(images), changed(config, validation=True), tmp_path / "run", progress=False)
    assert set(result["validation"]) == {"cartoon", "sketch"}
    assert result["validation_accuracy"] == pytest.approx(np.mean(list(result["validation"].values())))
    assert result["costs"]["classified_images"] == 12 + 3 + 2 * 3
    assert {name: part["images"] for name, part in result["domains"].items()} == {
        "cartoon": 3,
        "sketch": 3,
        "photo": 12,
    }
    (record,) = read_json_lines(tmp_path / "run" / "results.jsonl")
    assert record["env1_in_acc"] == result["target_accuracy"]
    assert {name for name in record if name.startswith("env")} == {
        "env0_out_acc", "env1_in_acc", "env1_out_acc", "env2_out_acc",
    }  # fmt: skip
    (table,) = collect([tmp_path], ["training-domain"])[0]
    assert table.accuracy["DiffusionClassifier"]["photo"] == [result["target_accuracy"]]


def test_without_a_target_the_validation_images_are_classified(
    images: Path, config: TrainConfig, tmp_path: Path
) -> None:
    result = train_run(str(images), changed(config, target=None), tmp_path / "run", progress=False)
    assert set(result["validation"]) == {"cartoon", "photo", "sketch"}
    assert "target_accuracy" not in result
    assert result["costs"]["classified_images"] == 9
    assert "cartoon" in run_summary(result, "x")


def test_a_benchmark_has_them_as_rows_beside_trained_ones(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    names = ["erm", "diffusion_classifier", "diffusion_net"]
    summary = run_benchmark(str(images), config, names, [1], ["photo"], tmp_path / "b")
    for name in names:
        share = read_json(tmp_path / "b" / name / "photo" / "trial-1" / "result.json")["target_accuracy"]
        assert summary["accuracy"][name] == {"photo": [round(100 * share, 3)]}
    assert summary["validation"]["diffusion_net"] == {"photo": [None]}
    assert None not in summary["validation"]["erm"]["photo"]
    json.dumps(summary, allow_nan=False)
    write_report([tmp_path / "b"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("Diffusion Classifier", "DiffusionNet", "classifying by the diffusion model"):
        assert words in page


def test_the_command_prints_accuracy_error_and_passes(
    images: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train", str(images), "--algorithm", "diffusion_classifier", "--target", "photo", "--ldm", config.ldm,
        "--data.size", "32", "--zero-shot.samples", "2", "4", "--zero-shot.keep", "2", "1", "--precision", "float32",
        "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    assert cli.run(words) == 0
    printed = capsys.readouterr().out
    share = read_json(tmp_path / "run" / "result.json")["target_accuracy"]
    error = 100 * (share * (1 - share) / 12) ** 0.5
    line = next(line for line in printed.splitlines() if line.startswith("photo (target)"))
    assert line.split()[2:] == ["12", f"{100 * share:.1f}", "%", f"{error:.1f}"]
    assert "120 passes of the U-Net, 10 an image" in printed
    stages = words.index("--zero-shot.keep")
    words[stages : stages + 3] = ["--zero-shot.keep", "2"]
    assert cli.run([*words[:-2], "--output", str(tmp_path / "x")]) == 2
    assert "samples has 2 stages and keep has 1" in capsys.readouterr().err


def test_there_is_no_model_to_evaluate(images: Path, config: TrainConfig, tmp_path: Path) -> None:
    train_run(str(images), changed(config, images=2), tmp_path / "run", progress=False)
    with pytest.raises(UsageError, match="diffusion_classifier, which is not trained"):
        evaluate_run(tmp_path / "run")
