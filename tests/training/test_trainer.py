from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from domainfusion.algorithms.base import Batch
from domainfusion.algorithms.classifier import build_classifier
from domainfusion.algorithms.erm import ERM
from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.config_files import to_toml
from domainfusion.errors import FileError, Interrupted, TrainingError, UsageError
from domainfusion.experiments.run_folder import refuse_other_options
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.processes import ALONE, Processes
from domainfusion.results.collect import collect
from domainfusion.tensors import load_state
from domainfusion.training import measuring, trainer
from domainfusion.training import step as one_step
from domainfusion.training.accumulation import Portions
from domainfusion.training.evaluation import Evaluation
from domainfusion.training.schedule import evaluation_steps, learning_rate
from domainfusion.training.step import make_batch
from same_run import assert_same_run, tensors_of, without_clocks


def options(**changes: Any) -> TrainConfig:
    """ERM on two of the three domains, evaluated after steps 2, 4, 6 and 8."""
    base = TrainConfig(
        algorithm="erm", target="sketch", steps=8, evaluations=4, batch_size=4, backbone="test_resnet",
        precision="float32", device="cpu", data=DataConfig(size=32),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def run(images: Path, folder: Path, /, **changes: Any) -> dict[str, Any]:
    return train_run(str(images), options(**changes), folder, progress=False)


class Killed(BaseException):
    """What a test raises in place of a signal; nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def before_step(self: ERM, now: int, epoch: int) -> None:
        if now == step:
            raise Killed

    monkeypatch.setattr(ERM, "before_step", before_step)


def test_processes_that_train_together_do_not_drop_out_alike(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random numbers of a step: the first process's are those of one alone, the others have their own."""
    drawn: list[list[float]] = []
    losses = ERM.losses

    def noting(self: ERM, batch: Batch) -> dict[str, torch.Tensor]:
        drawn.append(torch.rand(3).tolist())
        return losses(self, batch)

    class Ranks(Processes):
        def any(self, value: bool, device: torch.device) -> bool:
            return value

        def average(self, parameters: object) -> None:
            pass

    monkeypatch.setattr(ERM, "losses", noting)
    algorithm = build_algorithm(build_context(str(image_folder), options(), tmp_path, progress=False))
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.0)
    for processes in (ALONE, Ranks(0, 2), Ranks(1, 2), Ranks(1, 2)):
        algorithm.context = dataclasses.replace(algorithm.context, processes=processes)
        one_step.take_step(algorithm, optimizer, 3, trainer.Progress(), Portions(algorithm))
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def train_until(images: Path, folder: Path, step: int, /, **changes: Any) -> None:
    """A run that is killed before `step`."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            run(images, folder, **changes)


@pytest.fixture(scope="module")
def image_folder(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image folder for all tests of this file, which only read it."""
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def original(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        run(image_folder, folder / "run")
    return folder / "run"


@pytest.fixture
def whole(original: Path, tmp_path: Path) -> Path:
    """The folder of an uninterrupted run."""
    return Path(shutil.copytree(original, tmp_path / "whole"))


def test_training_learns(image_folder: Path, tmp_path: Path) -> None:
    plain = DataConfig(size=32, crop=1, flip=False, jitter=0, grayscale=0)
    result = run(image_folder, tmp_path / "run", steps=30, evaluations=3, batch_size=8, data=plain)
    records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    losses = [record["raw_loss"] for record in records]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.5 * math.log(3)  # half of what guessing costs
    assert result["validation_accuracy"] > 0.6  # chance: 1/3


def test_the_folder_of_a_run_tells_all(image_folder: Path, whole: Path) -> None:
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
    assert result["target_accuracy"] == pytest.approx(np.trace(result["confusion"]) / 29)
    best = max(records, key=lambda record: (record["validation_accuracy"], record["step"]))
    assert result["selected_step"] == best["step"]
    assert result["validation_accuracy"] == best["validation_accuracy"]
    assert result["target_accuracy"] == best["target_accuracy"]


class TestResume:
    def test_a_killed_run_ends_as_if_it_had_not_been(self, image_folder: Path, tmp_path: Path, whole: Path) -> None:
        train_until(image_folder, tmp_path / "killed", 5)
        assert load_state(tmp_path / "killed" / "checkpoints" / "last.safetensors")["progress"]["step"] == 4
        assert not (tmp_path / "killed" / "result.json").exists()
        run(image_folder, tmp_path / "killed")
        assert_same_run(tmp_path / "killed", whole)

    def test_nothing_before_the_checkpoint_is_done_again(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train_until(image_folder, tmp_path / "killed", 5)
        steps = []
        monkeypatch.setattr(ERM, "before_step", lambda self, step, epoch: steps.append(step))
        run(image_folder, tmp_path / "killed")
        assert steps == [4, 5, 6, 7]

    def test_killed_again_and_again(self, image_folder: Path, tmp_path: Path, whole: Path) -> None:
        for step in (1, 3, 3, 7):
            train_until(image_folder, tmp_path / "killed", step)
        run(image_folder, tmp_path / "killed")
        assert_same_run(tmp_path / "killed", whole)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("step", [0, 5, 6])
    def test_a_signal_saves_the_step_at_hand(
        self, image_folder: Path, tmp_path: Path, whole: Path, number: signal.Signals, step: int
    ) -> None:
        def before_step(self: ERM, now: int, epoch: int) -> None:
            if now == step:
                os.kill(os.getpid(), number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ERM, "before_step", before_step)
            with pytest.raises(Interrupted, match=f"stopped by {number.name}; everything is saved") as caught:
                run(image_folder, tmp_path / "stopped")
        assert caught.value.number == number
        saved = load_state(tmp_path / "stopped" / "checkpoints" / "last.safetensors")
        assert saved["progress"]["step"] == step + 1  # the step during which it came is made, none after it
        run(image_folder, tmp_path / "stopped")
        assert_same_run(tmp_path / "stopped", whole)

    @pytest.mark.parametrize("step", [4, 8])
    def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
        self, image_folder: Path, tmp_path: Path, whole: Path, step: int
    ) -> None:
        seen = []

        def validate(algorithm: ERM, **how: Any) -> Any:
            seen.append(len(seen))
            if len(seen) == step // 2:  # the evaluation after `step`
                os.kill(os.getpid(), signal.SIGTERM)
            return original(algorithm, **how)

        original = measuring.validate
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measuring, "validate", validate)
            with pytest.raises(Interrupted):
                run(image_folder, tmp_path / "stopped")
        assert [record["step"] for record in read_json_lines(tmp_path / "stopped" / "metrics.jsonl")] == list(
            range(2, step, 2)
        )
        saved = load_state(tmp_path / "stopped" / "checkpoints" / "last.safetensors")
        assert saved["progress"]["step"] == step  # of which nothing is lost
        run(image_folder, tmp_path / "stopped")
        assert_same_run(tmp_path / "stopped", whole)

    def test_time_that_has_passed_saves_between_evaluations(
        self, image_folder: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
        train_until(image_folder, tmp_path / "killed", 3)
        saved = load_state(tmp_path / "killed" / "checkpoints" / "last.safetensors")["progress"]
        assert (saved["step"], saved["best_step"]) == (3, 2)
        monkeypatch.undo()
        run(image_folder, tmp_path / "killed")
        assert_same_run(tmp_path / "killed", whole)

    def test_options_that_are_refused_leave_no_folder_that_insists_on_them(
        self, image_folder: Path, tmp_path: Path, whole: Path
    ) -> None:
        with pytest.raises(UsageError, match="backbone"):
            run(image_folder, tmp_path / "run", backbone="resnet10x")
        with pytest.raises(UsageError, match="there_is_no_module"):
            run(image_folder, tmp_path / "run", algorithm="there_is_no_module:Name")
        assert not (tmp_path / "run").exists()
        run(image_folder, tmp_path / "run")
        assert_same_run(tmp_path / "run", whole)

    def test_dropout_and_augmentation_resume_too(self, image_folder: Path, tmp_path: Path) -> None:
        run(image_folder, tmp_path / "whole", dropout=0.5, steps=4, evaluations=2)
        train_until(image_folder, tmp_path / "killed", 3, dropout=0.5, steps=4, evaluations=2)
        run(image_folder, tmp_path / "killed", dropout=0.5, steps=4, evaluations=2)
        assert_same_run(tmp_path / "killed", tmp_path / "whole")

    def test_killed_between_record_and_checkpoint(self, image_folder: Path, tmp_path: Path, whole: Path) -> None:
        folder = tmp_path / "killed"

        def save(folder: Path, algorithm: Any, optimizer: Any, progress: Any, extra: Any) -> None:
            if progress.step == 4:
                raise Killed
            original(folder, algorithm, optimizer, progress, extra)

        original = trainer.save_checkpoint
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "save_checkpoint", save)
            with pytest.raises(Killed):
                run(image_folder, folder)
        assert [record["step"] for record in read_json_lines(folder / "metrics.jsonl")] == [2, 4]
        assert load_state(folder / "checkpoints" / "last.safetensors")["progress"]["step"] == 2
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')  # cut short
        run(image_folder, folder)
        assert_same_run(folder, whole)

    def test_killed_after_the_last_step(self, image_folder: Path, tmp_path: Path, whole: Path) -> None:
        expected = read_json(whole / "result.json")
        (whole / "result.json").unlink()
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, -1)
            patch.setattr(ERM, "losses", None)  # no step is taken
            found = run(image_folder, whole)
        assert without_clocks(found) == without_clocks(expected)

    def test_a_finished_run_is_only_read(
        self, image_folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
        monkeypatch.setattr(ERM, "__init__", None)
        assert run(image_folder, whole) == read_json(whole / "result.json")
        assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
    def test_of_a_damaged_checkpoint_the_one_before_is_used(
        self, image_folder: Path, tmp_path: Path, whole: Path, damage: str
    ) -> None:
        train_until(image_folder, tmp_path / "killed", 5)
        path = tmp_path / "killed" / "checkpoints" / "last.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes({"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
        steps: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ERM, "before_step", lambda self, step, epoch: steps.append(step))
            run(image_folder, tmp_path / "killed")
        assert steps == [2, 3, 4, 5, 6, 7]
        assert_same_run(tmp_path / "killed", whole)

    def test_damaged_checkpoints_alone_are_named(self, image_folder: Path, tmp_path: Path) -> None:
        train_until(image_folder, tmp_path / "killed", 5)
        for name in ("last", "previous"):
            (tmp_path / "killed" / "checkpoints" / f"{name}.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(FileError, match=r"last\.safetensors.*previous\.safetensors"):
            run(image_folder, tmp_path / "killed")

    def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
        self, image_folder: Path, tmp_path: Path, whole: Path
    ) -> None:
        from domainfusion import tensors

        folder, calls = tmp_path / "full", []

        def full(tensors: Any, path: str, metadata: Any) -> None:
            calls.append(path)
            if len(calls) == 2:
                Path(path).write_bytes(b"half")
                raise OSError(28, "No space left on device")
            original(tensors, path, metadata=metadata)

        original = tensors.save_file
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensors, "save_file", full)
            with pytest.raises(FileError, match="No space left on device; free some space"):
                run(image_folder, folder)
        run(image_folder, folder)
        assert_same_run(folder, whole)


class TestNonFinite:
    @staticmethod
    def poison(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
        original = ERM.losses

        def losses(self: ERM, batch: Batch) -> dict[str, torch.Tensor]:
            terms = original(self, batch)
            return {**terms, "other_loss": terms["raw_loss"] * value} if batch.step == step else terms

        monkeypatch.setattr(ERM, "losses", losses)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_the_step_and_the_term_are_named_and_the_checkpoint_is_kept(
        self, image_folder: Path, tmp_path: Path, whole: Path, value: float
    ) -> None:
        folder = tmp_path / "run"
        with pytest.MonkeyPatch.context() as patch:
            self.poison(patch, 5, value)
            message = (
                rf"not finite at step 5 \(raw_loss [\d.]+, other_loss {value:g}\); the checkpoint of step 4 is kept"
            )
            with pytest.raises(TrainingError, match=message):
                run(image_folder, folder)
        state = load_state(folder / "checkpoints" / "last.safetensors")
        assert state["progress"]["step"] == 4
        assert all(torch.isfinite(value).all() for value in tensors_of(state).values())
        run(image_folder, folder)  # the cause being gone, it goes on
        assert_same_run(folder, whole)

    def test_diverged_weights_are_never_saved(self, image_folder: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with pytest.raises(TrainingError, match=r"step \d.*--lr"):
            run(image_folder, folder, lr=1e30, steps=4, evaluations=4)
        for path in folder.rglob("*.safetensors"):
            state = load_file(path) if path.name == "model.safetensors" else load_state(path)
            bad = [name for name, value in tensors_of(state).items() if not torch.isfinite(value).all()]
            assert bad == [], path.name


class TestSelection:
    def train(
        self, data: Path, folder: Path, source: list[list[int]], target: list[int], patch: pytest.MonkeyPatch
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Train with evaluations that report so many right of 7 by source domain, and of 29 on the target."""
        context = build_context(str(data), options(), folder, progress=False)
        algorithm = build_algorithm(context)
        asked: list[str] = []

        def evaluate(predict: Any, dataset: Any, rows: np.ndarray, **more: Any) -> Evaluation:
            labels = dataset.labels[rows]
            if np.array_equal(rows, context.split.oracle):  # recorded for others; here it is all right, to no avail
                return Evaluation(rows, labels, np.eye(3, dtype=np.float32)[labels])
            domain = dataset.domains[dataset.domain_of[rows[0]]]
            number = asked.count(domain)
            asked.append(domain)
            right = target[number] if domain == "sketch" else source[number][("cartoon", "photo").index(domain)]
            said = np.where(np.arange(len(rows)) < right, labels, (labels + 1) % 3)
            return Evaluation(rows, labels, np.eye(3, dtype=np.float32)[said])

        patch.setattr(measuring, "evaluate", evaluate)
        progress = trainer.train(algorithm)
        return progress, read_json_lines(folder / "metrics.jsonl")

    SOURCE = ([3, 3], [6, 5], [2, 2], [5, 5])  # of 7

    @pytest.mark.parametrize("target", [[0, 0, 29, 29], [29, 0, 0, 0], [0, 29, 0, 0], [5, 5, 5, 5]])
    def test_the_target_has_no_say(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: list[int]
    ) -> None:
        progress, records = self.train(image_folder, tmp_path / "run", list(self.SOURCE), target, monkeypatch)
        assert progress.best_step == 4
        assert progress.best_validation == pytest.approx(11 / 14)
        assert read_json(tmp_path / "run" / "model.json")["step"] == 4
        assert [record["target_accuracy"] for record in records] == [n / 29 for n in target]

    def test_the_weights_kept_are_those_of_the_chosen_step(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.train(image_folder, tmp_path / "run", list(self.SOURCE), [0] * 4, monkeypatch)
        monkeypatch.undo()
        train_until(image_folder, tmp_path / "other", 5)
        expected = load_state(tmp_path / "other" / "checkpoints" / "last.safetensors")["model"]  # of step 4
        found = load_file(tmp_path / "run" / "model.safetensors")
        assert all(torch.equal(found[name], expected[f"classifier.{name}"]) for name in found)
        last = load_state(tmp_path / "run" / "checkpoints" / "last.safetensors")["model"]
        assert not torch.equal(found["head.weight"], last["classifier.head.weight"])

    def test_domains_count_alike_and_the_later_of_equals_is_chosen(
        self, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = [[7, 1], [4, 4], [4, 4], [6, 1]]
        progress, records = self.train(image_folder, tmp_path / "run", source, [0] * 4, monkeypatch)
        assert progress.best_step == 6
        assert [r["validation_accuracy"] for r in records] == pytest.approx([8 / 14, 8 / 14, 8 / 14, 7 / 14])
        assert records[0]["validation"] == {"cartoon": 1.0, "photo": 1 / 7}


class TestOtherOptions:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": 9}, "steps = 8, not 9"),
            ({"lr": 2e-3}, "lr = 0.001, not 0.002"),
            ({"target": None}, "target = 'sketch', not None"),
            ({"data": DataConfig(size=32, jitter=0.5)}, "data.jitter = 0.3, not 0.5"),
        ],
    )
    @pytest.mark.parametrize("finished", [True, False])
    def test_they_are_refused_by_name(
        self, image_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str, finished: bool
    ) -> None:
        folder = tmp_path / "run"
        if finished:
            run(image_folder, folder)
        else:
            train_until(image_folder, folder, 1)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(UsageError) as caught:
            run(image_folder, folder, **changes)
        assert str(caught.value) == f"{folder} holds a run with {message}; choose another --output"
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def test_other_data_is_refused(
        self, image_folder: Path, whole: Path, make_image_folder: Callable[..., Path]
    ) -> None:
        other = make_image_folder("other")
        with pytest.raises(UsageError, match=r"holds a run on .*/images; choose another --output"):
            run(other, whole)

    def test_names_with_line_breaks_and_quotes_are_kept(
        self, make_image_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        domains = ('tar"get\n[x]', "a b", "c'd 🐱")
        data = make_image_folder("new\nline = 3", domains=domains)
        first = run(data, tmp_path / "run", target=domains[0], steps=2, evaluations=1)
        assert run(data, tmp_path / "run", target=domains[0], steps=2, evaluations=1) == first
        assert first["target"] == domains[0]


class TestSchedule:
    @given(st.integers(1, 3000), st.integers(1, 200))
    def test_evaluations_are_as_many_as_asked_and_end_with_the_run(self, steps: int, evaluations: int) -> None:
        found = sorted(evaluation_steps(steps, evaluations))
        assert found[-1] == steps
        assert found[0] >= 1
        assert len(found) == min(steps, evaluations)
        gaps = np.diff([0, *found])
        assert gaps.max() - gaps.min() <= 1

    def test_golden_evaluations(self) -> None:
        assert evaluation_steps(600, 10) == {60, 120, 180, 240, 300, 360, 420, 480, 540, 600}
        assert evaluation_steps(4, 10) == {1, 2, 3, 4}

    def test_the_learning_rate_is_torchs_cosine(self) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
        for step in range(50):
            assert learning_rate(step, 50, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            schedule.step()

    def test_fewer_steps_than_evaluations_train_to_the_end(self, image_folder: Path, tmp_path: Path) -> None:
        result = run(image_folder, tmp_path / "run", steps=3, evaluations=10)
        assert result["steps"] == 3
        assert [record["step"] for record in read_json_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_records_hold_the_mean_of_each_term_since_the_last_record(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ERM.losses

    def losses(self: ERM, batch: Batch) -> dict[str, torch.Tensor]:
        nothing = 0 * original(self, batch)["raw_loss"]
        return {"raw_loss": nothing + batch.step, "other_loss": nothing + 10.0}

    monkeypatch.setattr(ERM, "losses", losses)
    train_until(image_folder, tmp_path / "run", 5, steps=8)
    monkeypatch.setattr(ERM, "losses", losses)
    run(image_folder, tmp_path / "run", steps=8)
    records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["raw_loss"] for record in records] == [0.5, 2.5, 4.5, 6.5]
    assert [record["other_loss"] for record in records] == [10.0] * 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(()), "returns a Tensor; it should return"),
        ({}, "returns an empty dict"),
        ({"a_loss": torch.zeros(3)}, r"'a_loss' is of shape \(3,\), not a scalar"),
        ({"a_loss": 1.0}, "'a_loss' is float, not a scalar"),
    ],
)
def test_losses_of_another_form_are_told(
    given: Any, message: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ERM, "losses", lambda self, batch: given)
    with pytest.raises(TrainingError, match=rf"ERM.losses\(\).*{message}"):
        run(image_folder, tmp_path / "run")


def test_a_step_is_adam_on_the_sum_of_the_terms(image_folder: Path, tmp_path: Path) -> None:
    context = build_context(str(image_folder), options(steps=1, evaluations=1), tmp_path / "run", progress=False)
    algorithm, reference = build_algorithm(context), build_algorithm(context)
    trainer.train(algorithm)
    reference.train()
    batch = make_batch(reference, 0)
    loss = torch.nn.functional.cross_entropy(reference.predict(batch.images), batch.labels)
    loss.backward()
    for name, value in reference.named_parameters():
        assert value.grad is not None
        gradient = value.grad + 5e-4 * value.detach()  # L2 penalty
        # Adam's first step: both moments are corrected to the gradient and its square.
        expected = value.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
        found = algorithm.get_parameter(name).detach()
        clear = gradient.abs() > 1e-6  # elsewhere rounding decides the sign
        assert torch.allclose(found[clear], expected[clear], atol=1e-5), name


def test_batches_are_a_function_of_seed_and_step(image_folder: Path, tmp_path: Path) -> None:
    context = build_context(str(image_folder), options(), tmp_path / "run", progress=False)
    algorithm = build_algorithm(context)
    first, again, other = (make_batch(algorithm, step) for step in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert first.rows.tolist() == again.rows.tolist()
    assert first.rows.tolist() != other.rows.tolist()
    assert first.images.shape == (8, 3, 32, 32)
    assert first.labels.tolist() == context.dataset.labels[first.rows].tolist()
    assert first.epoch == 0
    assert make_batch(algorithm, context.steps_per_epoch).epoch == 1
    seeded = dataclasses.replace(context, config=options(seed=1))
    assert make_batch(build_algorithm(seeded), 3).rows.tolist() != first.rows.tolist()


def test_views_differ_by_step_and_seed(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_step, "draw_rows", lambda split, batch_size, seed, step: np.arange(8))
    context = build_context(str(image_folder), options(), tmp_path / "run", progress=False)
    algorithm = build_algorithm(context)
    other = build_algorithm(dataclasses.replace(context, config=options(seed=1)))
    images = [make_batch(algorithm, 3).images, make_batch(algorithm, 4).images, make_batch(other, 3).images]
    assert all(not torch.allclose(images[i], images[j]) for i in range(3) for j in range(i))


def test_initial_weights_are_a_function_of_the_seed(image_folder: Path, tmp_path: Path) -> None:
    context = build_context(str(image_folder), options(), tmp_path / "run", progress=False)
    other = dataclasses.replace(context, config=options(seed=1))
    weights = [build_algorithm(c).classifier.head.weight for c in (context, context, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_scale(image_folder: Path, tmp_path: Path) -> None:
    context = build_context(
        str(image_folder), options(freeze_bn=True, steps=2, evaluations=1), tmp_path / "run", progress=False
    )
    algorithm, start = build_algorithm(context), build_algorithm(context)
    trainer.train(algorithm)
    before, after = start.state_dict(), algorithm.state_dict()
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    scales = [name.replace("running_mean", "weight") for name in statistics if name.endswith("running_mean")]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert any(not torch.equal(before[name], after[name]) for name in scales)


def test_an_unknown_backbone_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown backbone 'resnet10tt'; did you mean 'resnet10t'"):
        build_classifier(options(backbone="resnet10tt"), 3)


def test_a_run_without_target_validates_and_tests_nothing(image_folder: Path, tmp_path: Path) -> None:
    result = run(image_folder, tmp_path / "run", target=None, steps=2, evaluations=1)
    assert set(result["validation"]) == {"cartoon", "photo", "sketch"}
    assert "target_accuracy" not in result
    (record,) = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert "target_accuracy" not in record
    json.dumps(result, allow_nan=False)


def test_predictions_of_every_test_image_are_written(image_folder: Path, tmp_path: Path) -> None:
    result = run(image_folder, tmp_path / "run", target="sketch")
    with open(tmp_path / "run/predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["test_images"]
    assert all(row["source"].startswith("sketch/" + row["class"]) for row in rows)
    right = [row["class"] == row["prediction"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(result["target_accuracy"])


# Records in DomainBed's form


def test_results_are_records_that_domainbed_reads(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(image_folder, folder, evaluate_training=True, trial=1)
    assert (folder / "done").exists()
    records = read_json_lines(folder / "results.jsonl")
    metrics = read_json_lines(folder / "metrics.jsonl")
    assert [r["step"] for r in records] == [2, 4, 6, 8]
    context = build_context(str(image_folder), options(trial=1, evaluate_training=True), folder, progress=False)
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


@pytest.mark.parametrize(
    ("algorithm", "options", "refused"),
    [
        ("domainfusion", {}, True), ("domainfusion", {"generate": GenerateConfig(recombination=False)}, False),
        ("domainfusion", {"generate": GenerateConfig(updating=True)}, False),
        ("domainfusion", {"synthetic_weight": 0.0}, False), ("erm", {}, False),
    ],
)  # fmt: skip
def test_runs_of_before_recombination_are_not_taken_for_runs_with_it(
    tmp_path: Path, algorithm: str, options: dict[str, Any], refused: bool
) -> None:
    config = TrainConfig(algorithm=algorithm, target="ink", **options)
    text = to_toml(config)
    assert "recombination" in text
    old = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("recombination"))
    (tmp_path / "config.toml").write_text(old, encoding="utf-8")
    if refused:
        with pytest.raises(UsageError, match=r"holds a run with generate.recombination = False, not True"):
            refuse_other_options(tmp_path, "pictograms", config)
    else:
        refuse_other_options(tmp_path, "pictograms", config)
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    refuse_other_options(tmp_path, "pictograms", config)
