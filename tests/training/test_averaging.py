"""SWAD against its paper's algorithm with every weight kept, EMA against its recursion, and both through whole runs."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.algorithms.erm import ERM
from domainfusion.config import AverageConfig, DataConfig, GenerateConfig, TrainConfig
from domainfusion.config_files import build_config
from domainfusion.data.transforms import normalize
from domainfusion.errors import UsageError
from domainfusion.experiments.evaluation import evaluate_run
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.results.collect import collect
from domainfusion.tensors import load_state
from domainfusion.training import measuring, trainer
from domainfusion.training import step as one_step
from domainfusion.training.averaging import EMA, SWAD, refresh_batch_norm, swapped
from domainfusion.training.step import make_batch
from same_run import assert_same_run, without_clocks


def options(**changes: Any) -> TrainConfig:
    base = TrainConfig(
        algorithm="erm", target="sketch", steps=8, evaluations=8, batch_size=4, backbone="test_resnet",
        precision="float32", device="cpu", data=DataConfig(size=32),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def fake_algorithm(average: AverageConfig, steps: int, evaluations: int) -> Any:
    """What an averaging asks of an algorithm, around two weights."""
    config = TrainConfig(steps=steps, evaluations=evaluations, average=average)
    context = types.SimpleNamespace(config=config, device=torch.device("cpu"), dtype=torch.float32)
    return types.SimpleNamespace(classifier=nn.Linear(2, 1, bias=False), config=config, context=context)


# The paper's algorithm


def papers_average(
    weights: list[torch.Tensor], losses: list[float], every: int, patience: tuple[int, int], rate: float
) -> tuple[int, int, torch.Tensor] | None:
    """Algorithm 1 of the SWAD paper over evaluations: first and last step, and the mean; None without a start.

    `weights[n]` are those after step n + 1; `losses[k]` is measured after step (k + 1)·every.
    """
    optimum, overfit = patience
    start = end = threshold = None
    for i in range(len(losses)):
        if threshold is None:
            window = losses[max(0, i - optimum + 1) : i + 1]
            if len(window) == optimum and window[0] == min(window):
                start, threshold = i - optimum + 1, rate * sum(window) / optimum
        elif i - overfit + 1 >= 0 and threshold < min(losses[i - overfit + 1 : i + 1]):
            end = i - overfit
            break
    if start is None:
        return None
    first, last = (start + 1) * every, (len(losses) if end is None else end + 1) * every
    return first, last, torch.stack(weights[first - 1 : last]).mean(0)


@given(
    st.lists(st.floats(0.1, 3.0), min_size=1, max_size=25), st.integers(1, 3), st.integers(1, 4), st.integers(0, 4),
    st.floats(1, 2), st.integers(0, 2),
)  # fmt: skip
def test_swad_is_the_papers_algorithm(
    losses: list[float], every: int, optimum: int, more: int, rate: float, digits: int
) -> None:
    losses = [round(loss, digits) for loss in losses]  # few digits make ties
    overfit = optimum + more
    steps = every * len(losses)
    average = AverageConfig(method="swad", optimum_patience=optimum, overfit_patience=overfit, tolerance_rate=rate)
    if len(losses) < optimum:
        return
    algorithm = fake_algorithm(average, steps, len(losses))
    swad = SWAD(algorithm, lambda step: pytest.fail("there is no BatchNorm"))
    generator = torch.Generator().manual_seed(len(losses))
    weights: list[torch.Tensor] = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            algorithm.classifier.weight.copy_(torch.randn(1, 2, generator=generator))
        weights.append(algorithm.classifier.weight.detach().clone())
        swad.update(step)
        if step % every == 0 and swad.observe(step, losses[step // every - 1]):
            break
    expected = papers_average(weights, losses, every, (optimum, overfit), rate)
    if expected is None:  # from the least loss on, to the end
        first, last = (int(np.argmin(losses)) + 1) * every, steps
        expected = first, last, torch.stack(weights[first - 1 : last]).mean(0)
        assert not swad.describe(steps)["valley_found"]
    found = swad.describe(steps)
    assert (found["start"], found["end"], found["weights"]) == (*expected[:2], expected[1] - expected[0] + 1)
    before = algorithm.classifier.weight.detach().clone()
    with swad.applied():
        assert torch.allclose(algorithm.classifier.weight, expected[2], atol=1e-5)
    assert torch.equal(algorithm.classifier.weight, before)


def test_a_valley_of_known_ends() -> None:
    """Falls, a floor from evaluation 3 (N_s = 3: loss 1, 1.2, 1.1, threshold 1.43), out of it after evaluation 6."""
    losses = [3, 2, 1, 1.2, 1.1, 1.4, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 0.5, 0.5]
    algorithm = fake_algorithm(AverageConfig(method="swad"), 140, 14)
    swad = SWAD(algorithm, lambda step: pytest.fail("there is no BatchNorm"))
    steps = 0
    for loss in losses:
        for _ in range(10):
            steps += 1
            with torch.no_grad():
                algorithm.classifier.weight.fill_(steps)
            swad.update(steps)
        if swad.observe(steps, loss):
            break
    assert steps == 120
    assert swad.describe(steps) == {"method": "swad", "start": 30, "end": 60, "weights": 31, "valley_found": True}
    with swad.applied():
        assert algorithm.classifier.weight.flatten().tolist() == pytest.approx([45, 45])


def test_a_loss_at_the_threshold_is_within_the_valley() -> None:
    average = AverageConfig(method="swad", optimum_patience=1, overfit_patience=1, tolerance_rate=1.0)
    swad = SWAD(fake_algorithm(average, 4, 4), lambda step: pytest.fail("there is no BatchNorm"))
    for step in range(1, 5):
        swad.update(step)
        assert swad.observe(step, 1.0) == (step == 4)
    assert (swad.describe(4)["start"], swad.describe(4)["end"]) == (1, 4)


def test_ema_is_the_recursion_with_warm_up() -> None:
    algorithm = fake_algorithm(AverageConfig(method="ema", decay=0.5), 30, 3)
    expected = algorithm.classifier.weight.detach().double().clone()
    ema = EMA(algorithm, lambda step: pytest.fail("not asked"))
    generator = torch.Generator().manual_seed(0)
    for n in range(30):
        with torch.no_grad():
            algorithm.classifier.weight.copy_(torch.randn(1, 2, generator=generator))
        ema.update(n + 1)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * algorithm.classifier.weight.detach().double()
    with ema.applied():
        assert torch.allclose(algorithm.classifier.weight.double(), expected, atol=1e-6)
    assert ema.describe(30) == {"method": "ema", "decay": 0.5, "weights": 30}


# BatchNorm


def test_batch_norm_statistics_are_means_over_the_batches(images: Path, tmp_path: Path) -> None:
    algorithm = build_algorithm(build_context(str(images), options(), tmp_path / "run", progress=False))
    net = algorithm.classifier.backbone
    batches = [make_batch(algorithm, step) for step in range(8, 11)]
    means, variances = [], []
    for batch in batches:
        x = net.conv1(normalize(batch.images)).detach().double().numpy()  # (B, C, H, W)
        means.append(x.mean((0, 2, 3)))
        variances.append(x.var((0, 2, 3), ddof=1))
    parameters = {name: value.clone() for name, value in algorithm.classifier.named_parameters()}
    algorithm.eval()
    refresh_batch_norm(algorithm, iter(batches))
    assert np.allclose(net.bn1.running_mean.numpy(), np.mean(means, 0), atol=1e-5)
    assert np.allclose(net.bn1.running_var.numpy(), np.mean(variances, 0), rtol=1e-4)
    assert net.bn1.momentum == 0.1
    assert not algorithm.classifier.training
    assert all(torch.equal(value, parameters[name]) for name, value in algorithm.classifier.named_parameters())


def test_frozen_batch_norm_stays_as_it_is(images: Path, tmp_path: Path) -> None:
    config = options(freeze_bn=True)
    algorithm = build_algorithm(build_context(str(images), config, tmp_path / "run", progress=False))
    refresh_batch_norm(algorithm, iter([make_batch(algorithm, 0)]))
    assert algorithm.classifier.backbone.bn1.running_mean.abs().max() == 0


def test_swapped_weights_are_put_back_after_an_error() -> None:
    module = nn.BatchNorm1d(2)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def fail() -> None:
        with swapped(module, {"weight": torch.tensor([5.0, 6.0]), "running_mean": torch.ones(2)}):
            assert module.weight.tolist() == [5, 6]
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# Whole runs


class Killed(BaseException):
    pass


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


# Options


def test_too_few_evaluations_are_refused(images: Path, tmp_path: Path) -> None:
    config = options(evaluations=2, average=AverageConfig(method="swad"))
    with pytest.raises(
        UsageError, match=r"in 3 evaluations at least, and 2 are made; raise --evaluations \(30 or more\)"
    ):
        train_run(str(images), config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"average": {"method": "swa"}}, "x.toml: average.method = 'swa': "),
        ({"average": {"decay": 1.0}}, "x.toml: average.decay = 1.0: "),
        ({"average": {"tolerance_rate": 0.9}}, "x.toml: average.tolerance_rate = 0.9: "),
        ({"average": {"overfit_patience": 2}}, "overfit_patience 2 is below optimum_patience 3"),
        ({"average": {"overfit_patiense": 2}}, "did you mean 'average.overfit_patience'?"),
        ({"mixup": {"alpha": 0.0}}, "x.toml: mixup.alpha = 0.0: "),
        ({"mixstyle": {"probability": 1.5}}, "x.toml: mixstyle.probability = 1.5: "),
        ({"mixstyle": {"stages": 0}}, "x.toml: mixstyle.stages = 0: "),
        ({"coral": {"weight": -1.0}}, "x.toml: coral.weight = -1.0: "),
        ({"groupdro": {"eta": -0.1}}, "x.toml: groupdro.eta = -0.1: "),
        ({"rsc": {"feature_drop": 1.0}}, "x.toml: rsc.feature_drop = 1.0: "),
        ({"rsc": {"batch_drop": 0.0}}, "x.toml: rsc.batch_drop = 0.0: "),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config(TrainConfig, values, "x.toml")
    assert message in str(caught.value)
