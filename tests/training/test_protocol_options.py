"""Options that protocols differ in: learning rate, when to evaluate, epochs, augmented validation, a second target."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domainfusion.config import DataConfig, TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.data.transforms import augment, to_float
from domainfusion.errors import UsageError
from domainfusion.experiments.evaluation import evaluate_run
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.training import measuring, trainer
from domainfusion.training import step as one_step
from domainfusion.training.averaging import build_averaging
from domainfusion.training.evaluation import Evaluation
from domainfusion.training.schedule import evaluation_steps, learning_rate
from short_runs import options as short_options


def options(**changes: Any) -> TrainConfig:
    return short_options(**{"steps": 6, "evaluations": 2, **changes})


def test_a_constant_learning_rate_stays() -> None:
    assert {learning_rate(step, 10, 0.25, "constant") for step in range(10)} == {0.25}
    assert learning_rate(0, 10, 0.25) == 0.25 > learning_rate(9, 10, 0.25)


def test_domainbeds_evaluations() -> None:
    # Its loop: `if step % checkpoint_freq == 0 or step == n_steps - 1`, after the update of that step.
    for steps, every in ((5001, 300), (15001, 1000), (7, 3), (6, 1), (1, 300), (2, 300)):
        expected = {step + 1 for step in range(steps) if step % every == 0 or step == steps - 1}
        assert evaluation_steps(steps, 8, every) == expected
    assert len(evaluation_steps(5001, 8, 300)) == 18


def test_they_are_what_a_run_does(image_folder: Path, tmp_path: Path) -> None:
    config = options(evaluate_every=2, lr_schedule="constant", lr=1e-4, hparams_seed=0)
    train_run(str(image_folder), config, tmp_path / "run", progress=False)
    metrics = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 3, 5, 6]
    assert {record["lr"] for record in metrics} == {1e-4}
    records = read_json_lines(tmp_path / "run" / "results.jsonl")
    assert {record["args"]["checkpoint_freq"] for record in records} == {2}


def test_a_constant_rate_is_plain_adam(image_folder: Path, tmp_path: Path) -> None:
    config = options(lr_schedule="constant", lr=0.01, steps=3)
    algorithm = build_algorithm(build_context(str(image_folder), config, tmp_path, progress=False))
    trainer.train(algorithm)
    other = build_algorithm(build_context(str(image_folder), config, tmp_path / "other", progress=False))
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01, weight_decay=config.weight_decay)
    for step in range(3):
        torch.manual_seed(0)
        other.train()
        one_step.descend(optimizer, other.losses(one_step.make_batch(other, step))["raw_loss"])
    for found, expected in zip(algorithm.parameters(), other.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)  # a hundredth of a step: Adam divides by tiny gradients


def test_epochs_give_the_steps(image_folder: Path, tmp_path: Path) -> None:
    config = options(epochs=2, batch_size=8, steps=999)
    folder = tmp_path / "run"
    result = train_run(str(image_folder), config, folder, progress=False)
    images = sum(read_json(folder / "data.json")["train"].values())  # of two source domains
    assert result["steps"] == 2 * round(images / (2 * 8)) == 8
    assert train_run(str(image_folder), config, folder, progress=False) == result  # steps is not held against it
    with pytest.raises(UsageError, match="epochs = 2, not 3"):
        train_run(str(image_folder), dataclasses.replace(config, epochs=3), folder, progress=False)


def test_swad_counts_the_evaluations_that_there_are(image_folder: Path, tmp_path: Path) -> None:
    few = options(average=dataclasses.replace(TrainConfig().average, method="swad"), evaluate_every=300, evaluations=50)
    with pytest.raises(UsageError, match="2 are made"):
        build_averaging(build_algorithm(build_context(str(image_folder), few, tmp_path, progress=False)), lambda i: i)


def test_validation_on_augmented_images_is_of_the_sources_alone(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(size=32, augment_validation=True, crop=0.3, jitter=0.9)
    context = build_context(str(image_folder), options(data=data, evaluate_training=True), tmp_path, progress=False)
    algorithm = build_algorithm(context)
    seen: list[torch.Tensor] = []

    def predict(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), 3)

    monkeypatch.setattr(algorithm, "predict", predict)
    measuring.measure(algorithm, 1, 0)
    split = context.split
    parts = [*split.validation.values(), split.test, split.oracle, *split.train.values()]
    assert [len(images) for images in seen] == [len(rows) for rows in parts]
    for images, rows in zip(seen, parts, strict=True):
        stored = to_float(torch.from_numpy(context.dataset.images[rows]))
        of_target = rows is split.test or rows is split.oracle
        assert torch.equal(images, stored) == of_target
        assert images.min() >= 0
        assert images.max() <= 1
    # The same views at every evaluation.
    before, seen[:] = list(seen), []
    measuring.measure(algorithm, 2, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, seen, strict=True))
    seen.clear()  # those of another seed are others
    monkeypatch.setattr(algorithm, "config", dataclasses.replace(algorithm.config, seed=9))
    measuring.validate(algorithm)
    assert not any(torch.equal(a, b) for a, b in zip(before, seen, strict=False))
    # And they are the training's augmentation.
    calls = []
    monkeypatch.setattr(measuring, "augment", lambda images, config, generator: calls.append(config) or augment(
        images, config, generator))  # fmt: skip
    measuring.validate(algorithm)
    assert calls == [data, data]


def test_every_domain_counts_alike_in_validation(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in DomainBed: the mean over the domains, however many images each has."""
    algorithm = build_algorithm(build_context(str(image_folder), options(target=None), tmp_path, progress=False))
    right = np.array([[0.9, 0.1, 0.0]])
    one = Evaluation(np.arange(1), np.zeros(1, dtype=np.int64), right)
    three = Evaluation(np.arange(3), np.ones(3, dtype=np.int64), right.repeat(3, 0))
    monkeypatch.setattr(measuring, "validate", lambda *_, **__: {"few": one, "many": three})
    found, shares = measuring.measure(algorithm, 1, 0)
    assert found["validation_accuracy"] == 0.5
    assert found["validation_loss"] == pytest.approx(-(np.log(0.9) + np.log(0.1)) / 2)
    assert found["validation"] == {"few": 1.0, "many": 0.0}
    assert shares == {"few": {"out": 1.0}, "many": {"out": 0.0}}


class TestSecondTarget:
    def test_it_is_held_out_and_recorded(self, make_image_folder: Any, tmp_path: Path) -> None:
        images = make_image_folder("four", domains=("art", "cartoon", "photo", "sketch"))
        folder = tmp_path / "run"
        config = options(target="photo", second_target="art", steps=2, evaluations=1)
        result = train_run(str(images), config, folder, progress=False)
        data = read_json(folder / "data.json")
        assert data["sources"] == ["cartoon", "sketch"]
        assert (result["target"], result["second_target"]) == ("photo", "art")
        (record,) = read_json_lines(folder / "results.jsonl")
        assert record["args"]["test_envs"] == [0, 2]
        assert {f"env{i}_out_acc" for i in range(4)} <= set(record)
        context = build_context(str(images), config, tmp_path / "other", progress=False)
        algorithm = build_algorithm(context)
        trainer.load_checkpoint(folder, algorithm, torch.optim.Adam(algorithm.parameters()))
        algorithm.eval()
        dataset = context.dataset
        rows = build_split(dataset, config.data, "art", 0).test  # what a run on this target would be tested on
        assert record["env0_in_acc"] == measuring.accuracy_on(algorithm, rows)
        assert record["env2_in_acc"] == measuring.accuracy_on(algorithm, context.split.test)
        assert set(evaluate_run(folder)) == {"photo"}

    def test_strict_splits_measure_it_on_drawings_that_are_not_tested(self) -> None:
        dataset = load_dataset("pictograms", DataConfig(size=16))
        for trial in (0, 3):
            split = build_split(dataset, DataConfig(), "pixel", trial, "ink")
            assert dataset.folds is not None
            used = [*split.second.values(), *split.train.values(), *split.validation.values()]
            tested = {dataset.keys[row] for row in split.test}
            assert not tested & {dataset.keys[row] for rows in used for row in rows}
            trained = {dataset.keys[row] for rows in split.train.values() for row in rows}
            assert not trained & {dataset.keys[row] for row in split.second["in"]}
            assert set(dataset.folds[split.second["in"]]) == {(trial + 1) % 5}
            assert set(dataset.domain_of[np.concatenate(list(split.second.values()))]) == {dataset.index_of("ink")}
            assert "ink" not in split.sources

    @pytest.mark.parametrize(("first", "second"), [("pixel", "ink"), ("ink", "pixel")])
    def test_strict_splits_select_by_no_codepoint_that_is_tested(self, first: str, second: str, tmp_path: Path) -> None:
        """Whichever of the two is the target that the run serves to select for."""
        config = options(target=first, second_target=second, trial=1)
        context = build_context("pictograms", config, tmp_path, progress=False)
        dataset, split = context.dataset, context.split
        for target, other in ((first, second), (second, first)):
            tested = {dataset.keys[row] for row in build_split(dataset, config.data, target, 1).test}
            measured = split.held_out[other]["in"]
            assert set(dataset.domain_of[measured]) == {dataset.index_of(other)}
            assert not tested & {dataset.keys[row] for row in measured}
        algorithm = build_algorithm(context)
        found, shares = measuring.measure(algorithm, 1, 0)
        assert shares[first]["in"] == measuring.accuracy_on(algorithm, split.oracle)
        assert found["target_accuracy"] == measuring.accuracy_on(algorithm, split.test)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"target": None, "second_target": "art"}, "another domain"),
         ({"target": "art", "second_target": "art"}, "another domain")],
    )  # fmt: skip
    def test_it_is_another_domain_than_the_target(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TrainConfig(**changes)

    def test_something_is_left_to_train_on(self, make_image_folder: Any, tmp_path: Path) -> None:
        images = make_image_folder("two", domains=("art", "photo"))
        with pytest.raises(UsageError, match="no domain left to train on beside photo and art"):
            train_run(str(images), options(target="photo", second_target="art"), tmp_path / "r", progress=False)
        with pytest.raises(UsageError, match="unknown domain 'arts'; did you mean 'art'"):
            train_run(str(images), options(target="photo", second_target="arts"), tmp_path / "r", progress=False)
