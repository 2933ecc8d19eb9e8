"""DSI: which images its LDMs are fine-tuned on, and which are tested."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domainfusion.config import TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.diffusion import finetuning
from domainfusion.experiments import testing
from domainfusion.experiments.evaluation import evaluate_run
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.json_lines import read_json_lines
from domainfusion.model import load
from domainfusion.results.collect import collect
from domainfusion.training.checkpoint import Progress
from dsi_runs import with_options


def test_the_target_takes_no_part_in_fine_tuning(
    images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    train = finetuning.train_pipeline
    monkeypatch.setattr(finetuning, "train_pipeline", lambda corpus, *a: seen.append(corpus) or train(corpus, *a))
    train_run(str(images), with_options(config, held_out=False), tmp_path / "run", progress=False)
    dataset = load_dataset(str(images), config.data)
    split = build_split(dataset, config.data, "photo", 0)
    assert len(seen) == 2
    for corpus, domain in zip(seen, ("cartoon", "sketch"), strict=True):
        assert np.array_equal(corpus.images, dataset.images[split.train[domain]])
        assert set(corpus.text + corpus.category + corpus.style) == {""}
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_a_second_target_is_recorded_and_takes_no_part_in_fine_tuning(
    make_image_folder: Callable[..., Path], config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_image_folder("four", domains=("art", "cartoon", "photo", "sketch"), count=5)
    config = dataclasses.replace(config, second_target="sketch", evaluate_every=2)
    run = tmp_path / "run"
    result = train_run(str(images), config, run, progress=False)
    (record,) = read_json_lines(run / "results.jsonl")
    assert record["args"]["test_envs"] == [2, 3]
    assert record["args"]["checkpoint_freq"] == 2
    assert record["env2_in_acc"] == result["target_accuracy"]
    dataset = load_dataset(str(images), config.data)
    model = load(run, device="cpu")
    for domain, number in (("photo", 2), ("sketch", 3)):
        split = build_split(dataset, config.data, domain, 0)
        for part, rows in (("in", split.test), ("out", split.oracle)):
            labels = model.predict([images / dataset.keys[row] for row in rows]).labels
            right = [label == dataset.classes[dataset.labels[row]] for label, row in zip(labels, rows, strict=True)]
            assert record[f"env{number}_{part}_acc"] == np.mean(right)
    (table,), notes = collect([run], ["leave-one-domain-out"])
    assert "DSI" in table.accuracy  # the record is whole
    assert notes == []

    # LDMs that are gone are fine-tuned again, on the sources alone.
    seen: list[np.ndarray] = []
    train = finetuning.train_pipeline
    monkeypatch.setattr(finetuning, "train_pipeline", lambda corpus, *a: seen.append(corpus) or train(corpus, *a))
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "empty"))
    assert evaluate_run(run, device_name="cpu")["photo"]["accuracy"] == result["target_accuracy"]
    trained = build_split(dataset, config.data, "photo", 0, "sketch").train
    for corpus, domain in zip(seen, ("art", "cartoon"), strict=True):
        assert np.array_equal(corpus.images, dataset.images[trained[domain]])


def test_in_strict_splits_no_part_is_tested_twice(config: TrainConfig, tmp_path: Path) -> None:
    """There the target's reported part is that held out: its accuracy is not that of the test."""
    config = dataclasses.replace(config, algorithm="erm", target="ink", second_target="flat")
    context = build_context("pictograms", config, tmp_path, progress=False)
    algorithm = build_algorithm(context)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "raw_loss": 1.0}\n')
    tested: list[np.ndarray] = []

    def answer(algorithm: Any, rows: np.ndarray) -> Any:
        tested.append(rows)
        return types.SimpleNamespace(accuracy=0.1 * len(tested))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "evaluate_test", answer)
        result = {"validation": {}, "target_accuracy": 0.9}
        testing.write_final_record(algorithm, result, Progress(step=3, best_step=3))
    (record,) = read_json_lines(tmp_path / "results.jsonl")
    numbers = {name: context.dataset.index_of(name) for name in ("ink", "flat")}
    assert record[f"env{numbers['ink']}_in_acc"] == record[f"env{numbers['ink']}_out_acc"] == 0.1
    assert len(tested) == len({tuple(rows) for rows in tested})
