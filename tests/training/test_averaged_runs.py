"""Whole runs whose weights are averaged, by SWAD and by EMA."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import short_runs
from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.algorithms.erm import ERM
from domainfusion.config import AverageConfig, GenerateConfig, TrainConfig
from domainfusion.errors import UsageError
from domainfusion.experiments.evaluation import evaluate_run
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.results.collect import collect
from domainfusion.tensors import load_state
from domainfusion.training import measuring, trainer
from domainfusion.training import step as one_step
from domainfusion.training.averaging import refresh_batch_norm
from domainfusion.training.records import build_record
from domainfusion.training.step import make_batch
from same_run import assert_same_run, without_clocks
from short_runs import Killed


def options(**changes: Any) -> TrainConfig:
    """A short run with an evaluation after each step."""
    return short_runs.options(**{"evaluations": 8, **changes})


SHORT_VALLEY = AverageConfig(method="swad", optimum_patience=2, overfit_patience=2, tolerance_rate=1.1, bn_batches=3)


LOSSES = {1: 3.0, 2: 1.0, 3: 1.05, 4: 1.1, 5: 2.0, 6: 2.0, 7: 0.1, 8: 0.1}  # start 2, end 4, seen at 6


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source validation says LOSSES; everything else is real."""
    original = trainer.measure

    def measure(algorithm: Any, done: int, *rest: Any) -> Any:
        measured, shares = original(algorithm, done, *rest)
        return {**measured, "validation_loss": LOSSES[done]}, shares

    monkeypatch.setattr(trainer, "measure", measure)


def weights_by_step(images: Path, folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The parameters after each step of plain ERM."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    original = one_step.make_batch

    def recording(algorithm: Any, step: int) -> Any:
        found[step] = {name: value.detach().clone() for name, value in algorithm.classifier.named_parameters()}
        return original(algorithm, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_step, "make_batch", recording)
        train_run(str(images), options(evaluations=1), folder, progress=False)
    return found


def test_the_averaged_weights_are_saved_measured_and_evaluated(images: Path, tmp_path: Path, scripted: None) -> None:
    folder = tmp_path / "swad"
    result = train_run(str(images), options(average=SHORT_VALLEY), folder, progress=False)
    chosen = {"method": "swad", "start": 2, "end": 4, "weights": 3, "valley_found": True}
    assert result["average"] == read_json(folder / "model.json")["average"] == chosen
    assert result["steps"] == result["selected_step"] == 6  # nothing is trained after the end is seen
    weights = weights_by_step(images, tmp_path / "erm")
    model = load_file(folder / "model.safetensors")
    for name in weights[2]:
        mean = (weights[2][name] + weights[3][name] + weights[4][name]) / 3
        assert torch.allclose(model[name], mean, atol=1e-6), name
    assert not torch.allclose(model["head.weight"], weights[4]["head.weight"], atol=1e-5)
    algorithm = build_algorithm(build_context(str(images), options(), tmp_path / "other", progress=False))
    algorithm.classifier.load_state_dict(model)
    refresh_batch_norm(algorithm, (make_batch(algorithm, 8 + i) for i in range(3)))
    assert all(torch.equal(value, model[name]) for name, value in algorithm.classifier.state_dict().items())
    algorithm.eval()
    test = measuring.accuracy_on(algorithm, algorithm.context.split.test)
    assert result["target_accuracy"] == test == evaluate_run(folder)["sketch"]["accuracy"]
    records = read_json_lines(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert ["average" in record for record in records] == [False] * 5 + [True]
    assert records[-1]["average"]["target_accuracy"] == test
    assert records[-1]["average"]["validation_accuracy"] == result["validation_accuracy"]
    (line,) = read_json_lines(folder / "results.jsonl")
    assert line["args"]["algorithm"] == "ERM+SWAD"
    assert line["env2_in_acc"] == test
    assert line["hparams"]["average"]["overfit_patience"] == 2
    (table,) = collect([folder], ["training-domain"])[0]
    assert table.accuracy["ERM+SWAD"]["sketch"] == [test]


def test_averaging_leaves_training_alone(images: Path, tmp_path: Path) -> None:
    curves = {}
    for method in ("none", "ema", "swad"):
        config = options(average=AverageConfig(method=method, bn_batches=1))
        train_run(str(images), config, tmp_path / method, progress=False)
        curves[method] = [record["raw_loss"] for record in read_json_lines(tmp_path / method / "metrics.jsonl")]
        assert len(curves[method]) == 8
    assert curves["none"] == curves["ema"] == curves["swad"]
    last = [load_state(tmp_path / m / "checkpoints/last.safetensors")["model"] for m in ("none", "ema", "swad")]
    assert all(torch.equal(last[0][name], other[name]) for other in last[1:] for name in last[0])


def test_ema_measures_and_keeps_its_average(images: Path, tmp_path: Path) -> None:
    config = options(average=AverageConfig(method="ema", decay=0.6), evaluations=1)
    result = train_run(str(images), config, tmp_path / "ema", progress=False)
    weights = weights_by_step(images, tmp_path / "erm")
    last = load_state(tmp_path / "erm" / "checkpoints/last.safetensors")["model"]
    model = load_file(tmp_path / "ema" / "model.safetensors")
    for name, value in weights[0].items():
        expected = value.double()
        for n in range(8):
            decay = min(0.6, (1 + n) / (10 + n))
            present = weights[n + 1][name] if n < 7 else last[f"classifier.{name}"]
            expected = decay * expected + (1 - decay) * present.double()
        assert torch.allclose(model[name].double(), expected, atol=1e-6), name
    assert result["target_accuracy"] == read_json_lines(tmp_path / "ema/metrics.jsonl")[-1]["target_accuracy"]
    (line,) = read_json_lines(tmp_path / "ema" / "results.jsonl")
    assert line["args"]["algorithm"] == "ERM+EMA"


@pytest.mark.parametrize("average", [AverageConfig(method="ema", decay=0.7), SHORT_VALLEY], ids=["ema", "swad"])
def test_a_killed_run_ends_as_if_it_had_not_been(
    images: Path, tmp_path: Path, scripted: None, average: AverageConfig
) -> None:
    config = options(average=average)
    train_run(str(images), config, tmp_path / "whole", progress=False)
    for step in (1, 3, 4, 5):
        with pytest.MonkeyPatch.context() as patch:

            def before_step(self: ERM, now: int, epoch: int, step: int = step) -> None:
                if now == step:
                    raise Killed

            patch.setattr(ERM, "before_step", before_step)
            with pytest.raises(Killed):
                train_run(str(images), config, tmp_path / "parts", progress=False)
    train_run(str(images), config, tmp_path / "parts", progress=False)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    expected = read_json(tmp_path / "whole" / "result.json")
    (tmp_path / "whole" / "result.json").unlink()  # killed after the end was seen: no step is taken
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ERM, "losses", None)
        found = train_run(str(images), config, tmp_path / "whole", progress=False)
    assert without_clocks(found) == without_clocks(expected)


def test_the_target_has_no_say(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = options(average=dataclasses.replace(SHORT_VALLEY, tolerance_rate=1.0))
    train_run(str(images), config, tmp_path / "first", progress=False)
    answers = iter(range(100))
    monkeypatch.setattr(measuring, "accuracy_on", lambda algorithm, rows, **how: next(answers) % 7 / 7)
    train_run(str(images), config, tmp_path / "second", progress=False)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("first", "second")]
    assert [line["target_accuracy"] for line in lines[0]] != [line["target_accuracy"] for line in lines[1]]


def test_without_a_valley_it_says_so(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = options(steps=4, average=AverageConfig(method="swad", optimum_patience=4, bn_batches=1))
    with pytest.MonkeyPatch.context() as patch:
        original = trainer.measure

        def measure(algorithm: Any, done: int, *rest: Any) -> Any:
            measured, shares = original(algorithm, done, *rest)
            return {**measured, "validation_loss": 10.0 - done + 2 * (done == 4)}, shares

        patch.setattr(trainer, "measure", measure)
        result = train_run(str(images), config, tmp_path / "run", progress=False)
    assert result["average"] == {"method": "swad", "start": 3, "end": 4, "weights": 2, "valley_found": False}
    assert "SWAD averages from the best one on, step 3" in capsys.readouterr().err


def test_domainfusion_with_swad(images: Path, tmp_path: Path, tiny_pipeline: Path) -> None:
    config = options(
        algorithm="domainfusion", steps=4, evaluations=4, ldm=str(tiny_pipeline), distill_weight=0.0,
        generate=GenerateConfig(candidates=1, steps=1, interval=1, generations=1),
        average=AverageConfig(method="swad", optimum_patience=1, overfit_patience=9, bn_batches=2),
    )  # fmt: skip
    result = train_run(str(images), config, tmp_path / "whole", progress=False)
    assert (result["average"]["start"], result["average"]["end"]) == (1, 4)
    assert result["costs"]["generated_images"] == 58

    def before_step(self: DomainFusion, step: int, epoch: int) -> None:
        if step == 2:
            raise Killed
        original(self, step, epoch)

    original = DomainFusion.before_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DomainFusion, "before_step", before_step)
        with pytest.raises(Killed):
            train_run(str(images), config, tmp_path / "parts", progress=False)
    train_run(str(images), config, tmp_path / "parts", progress=False)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_too_few_evaluations_are_refused(images: Path, tmp_path: Path) -> None:
    config = options(evaluations=2, average=AverageConfig(method="swad"))
    with pytest.raises(
        UsageError, match=r"in 3 evaluations at least, and 2 are made; raise --evaluations \(30 or more\)"
    ):
        train_run(str(images), config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(("step", "name"), [(0, "DiffusionClassifier"), (1, "DiffusionClassifier+EMA")])
def test_records_name_the_average_where_weights_were_trained(tmp_path: Path, step: int, name: str) -> None:
    config = options(algorithm="diffusion_classifier", average=AverageConfig(method="ema"))
    record = build_record(
        config, "mine", ("photo", "sketch"), {}, output=tmp_path, step=step, epoch=0.0, loss=0.0, step_time=0.0,
        frequency=1, device=torch.device("cpu"),
    )  # fmt: skip
    assert record["args"]["algorithm"] == name
    assert ("average" in record["hparams"]) == (step > 0)
