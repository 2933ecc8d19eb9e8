"""A run whose model file was lost: it comes again, to the last bit what it was, and what that takes is said."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from domainfusion.algorithms import domainfusion as online
from domainfusion.algorithms.base import Algorithm
from domainfusion.algorithms.erm import ERM
from domainfusion.cli import run as command
from domainfusion.config import AverageConfig, DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.errors import FileError
from domainfusion.experiments.runs import train_run
from domainfusion.files import altered_files, read_json
from domainfusion.tensors import read_tensors
from domainfusion.training import trainer
from domainfusion.training.checkpoint import load_model, save_weights
from same_run import assert_same_run

SWAD = AverageConfig(method="swad", optimum_patience=2, overfit_patience=2, tolerance_rate=1.3, bn_batches=2)
# Method, the step whose weights are selected, the damage, the steps that are done again, and what is said.
CASES = [
    pytest.param("none", 8, "other", [], "written again from the checkpoint of step 8", id="last"),
    pytest.param("none", 6, "truncated", [6, 7], "goes on from the one before it, of step 6", id="previous"),
    pytest.param("none", 2, "flipped", list(range(8)), "no checkpoint has the weights of step 2", id="anew"),
    pytest.param("ema", 8, "deleted", [], "written again from the checkpoint of step 8", id="ema-last"),
    pytest.param("ema", 4, "deleted", list(range(8)), "no checkpoint has the weights of step 4", id="ema-anew"),
    pytest.param("swad", 8, "flipped", [6, 7], "goes on from the one before it, of step 6", id="swad"),
]


class Killed(BaseException):
    """What a test raises in place of a signal; nothing catches it."""


@pytest.fixture(scope="module")
def images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", count=5)


def options(method: str = "none", **changes: Any) -> TrainConfig:
    """ERM, evaluated after steps 2, 4, 6 and 8."""
    base = TrainConfig(
        algorithm="erm", target="sketch", steps=8, evaluations=4, batch_size=4, backbone="test_resnet",
        precision="float32", device="cpu", data=DataConfig(size=16, holdout_fraction=0.4),
        average=SWAD if method == "swad" else AverageConfig(method=method),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def select(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let source validation be best at `step`, whatever the weights."""
    measure = trainer.measure

    def measured(algorithm: Algorithm, done: int, *more: Any) -> Any:
        found, shares = measure(algorithm, done, *more)
        return found | {"validation_accuracy": 0.9 if done == step else 0.5, "validation_loss": 1.0 / done}, shares

    patch.setattr(trainer, "measure", measured)


def count_steps(patch: pytest.MonkeyPatch, kind: type[Algorithm] = ERM, until: int = -1) -> list[int]:
    """The steps that are done from here on; `Killed` before step `until`."""
    steps: list[int] = []
    before = kind.before_step

    def before_step(self: Algorithm, step: int, epoch: int) -> None:
        if step == until:
            raise Killed
        steps.append(step)
        before(self, step, epoch)

    patch.setattr(kind, "before_step", before_step)
    return steps


def train_until(step: int, images: Path, config: TrainConfig, folder: Path) -> None:
    """A run that is killed before `step`."""
    with pytest.MonkeyPatch.context() as patch:
        count_steps(patch, until=step)
        with pytest.raises(Killed):
            train_run(str(images), config, folder, progress=False)


def finished(images: Path, folder: Path, patch: pytest.MonkeyPatch, step: int, config: TrainConfig) -> Path:
    """`folder` with a run to its end, whose weights of `step` are selected; and where a copy of it is kept."""
    select(patch, step)
    train_run(str(images), config, folder, progress=False)
    return Path(shutil.copytree(folder, folder.with_name("whole")))


def damage(folder: Path, how: str) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "other":  # whole, and of other weights
        save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path)
    else:
        content[-2:] = bytes(255 - byte for byte in content[-2:])
        path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize(("method", "step", "how", "again", "said"), CASES)
def test_a_finished_run_gets_its_model_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    method: str, step: int, how: str, again: list[int], said: str,
) -> None:  # fmt: skip
    config, folder = options(method), tmp_path / "run"
    whole = finished(images, folder, monkeypatch, step, config)
    assert read_json(folder / "model.json")["step"] == step
    damage(folder, how)
    capsys.readouterr()
    steps = count_steps(monkeypatch)
    train_run(str(images), config, folder, progress=False)
    errors = capsys.readouterr().err
    assert steps == again
    assert said in errors
    assert "model.safetensors changed since the run ended (see SHA256SUMS); made again\n" in errors
    assert_same_run(folder, whole)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert altered_files(folder) == []
    assert (folder / "done").exists()
    train_run(str(images), config, folder, progress=False)
    assert (steps, capsys.readouterr().err) == (again, "")


@pytest.mark.parametrize(("method", "step"), [("none", 2), ("none", 4), ("ema", 2), ("swad", 8)])
def test_a_run_that_is_not_finished_goes_on_without_its_model(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, step: int
) -> None:
    """Killed before step 7, its checkpoint is of step 6, and the one before that of step 4."""
    select(monkeypatch, step)
    config, folder = options(method), tmp_path / "run"
    train_run(str(images), config, tmp_path / "whole", progress=False)
    train_until(7, images, config, folder)
    if method == "swad":
        assert not (folder / "model.safetensors").exists()  # nothing was selected yet, and nothing is lost
    else:
        damage(folder, "flipped")
    steps = count_steps(monkeypatch)
    train_run(str(images), config, folder, progress=False)
    assert steps[0] == {2: 0, 4: 4, 8: 6}[step]
    assert_same_run(folder, tmp_path / "whole")


def test_making_it_again_goes_on_where_it_was_stopped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = options(), tmp_path / "run"
    whole = finished(images, folder, monkeypatch, 2, config)
    damage(folder, "other")
    train_until(5, images, config, folder)
    assert not any((folder / name).exists() for name in ("result.json", "done"))  # it is not finished, and says so
    steps = count_steps(monkeypatch)
    train_run(str(images), config, folder, progress=False)
    assert steps == [4, 5, 6, 7]
    assert_same_run(folder, whole)


def test_what_the_weights_are_is_written_again_without_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = options("ema"), tmp_path / "run"
    whole = finished(images, folder, monkeypatch, 4, config)
    (folder / "model.json").write_text('{"step": 6}')
    steps = count_steps(monkeypatch)
    train_run(str(images), config, folder, progress=False)
    assert steps == []
    assert read_json(folder / "model.json")["average"] == {"method": "ema", "decay": 0.999, "weights": 4}
    assert_same_run(folder, whole)


def test_with_both_checkpoints_damaged_too_it_begins_anew(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = options(), tmp_path / "run"
    whole = finished(images, folder, monkeypatch, 4, config)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    damage(folder, "deleted")
    train_run(str(images), config, folder, progress=False)
    assert_same_run(folder, whole)


@pytest.mark.parametrize("updating", [False, True])
def test_generations_are_taken_up_as_they_were(
    images: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updating: bool
) -> None:
    """Those that are on disk are what the classifier of then made of the images; none is made a second time."""
    config = options(
        algorithm="domainfusion", steps=6, evaluations=3, ldm=str(tiny_pipeline),
        distill=DistillConfig(curve_samples=2, curve_rounds=2),
        generate=GenerateConfig(candidates=2, steps=2, interval=1, generations=3, batch_size=16, updating=updating),
    )  # fmt: skip
    select(monkeypatch, 2)
    folder = tmp_path / "run"
    result = train_run(str(images), config, folder, progress=False)
    shutil.copytree(folder, tmp_path / "whole")
    damage(folder, "flipped")
    steps = count_steps(monkeypatch, online.DomainFusion)
    monkeypatch.setattr(online, "make_generation", None)
    again = train_run(str(images), config, folder, progress=False)
    assert steps == list(range(6))
    assert again["costs"]["generations"] == result["costs"]["generations"] > 1
    assert again["costs"]["generated_images"] == result["costs"]["generated_images"]
    for name, value in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(load_file(folder / "model.safetensors")[name], value)
    accuracies = [np.float64(found["target_accuracy"]) for found in (again, result)]
    assert accuracies[0] == accuracies[1]


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    weights = {"ö.weight": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.int64)}
    for number in range(12):
        save_weights(tmp_path / f"{number}.safetensors", weights)
    assert len({path.read_bytes() for path in tmp_path.glob("*.safetensors")}) == 1
    metadata, found = read_tensors(tmp_path / "0.safetensors")
    assert metadata["format"] == "pt"
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_a_damaged_model_is_named_once(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    train_run(str(images), options(steps=2, evaluations=1), folder, progress=False)
    damage(folder, "flipped")
    with pytest.raises(FileError) as raised:
        load_model(folder, torch.nn.Linear(1, 1))
    assert str(raised.value) == f"{folder / 'model.safetensors'} was altered or damaged: its checksum does not fit"
    code = command(
        ["train", str(images), "--algorithm", "erm", "--target", "sketch", "--steps", "2", "--evaluations", "1",
         "--batch-size", "4", "--backbone", "test_resnet", "--precision", "float32", "--device", "cpu",
         "--data.size", "16", "--data.holdout-fraction", "0.4", "--output", str(folder)]
    )  # fmt: skip
    assert code == 0
    assert "made again" in capsys.readouterr().err
