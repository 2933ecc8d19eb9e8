"""Runs that were killed, stopped or damaged go on to what they would have been."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from domainfusion.algorithms.erm import ERM
from domainfusion.errors import FileError, Interrupted, UsageError
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.tensors import load_state
from domainfusion.training import measuring, trainer
from same_run import assert_same_run, without_clocks
from short_runs import Killed, kill_at, run, train_until


class TestResume:
    def test_a_killed_run_ends_as_if_it_had_not_been(self, images: Path, tmp_path: Path, whole: Path) -> None:
        train_until(images, tmp_path / "killed", 5)
        assert load_state(tmp_path / "killed" / "checkpoints" / "last.safetensors")["progress"]["step"] == 4
        assert not (tmp_path / "killed" / "result.json").exists()
        run(images, tmp_path / "killed")
        assert_same_run(tmp_path / "killed", whole)

    def test_nothing_before_the_checkpoint_is_done_again(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train_until(images, tmp_path / "killed", 5)
        steps = []
        monkeypatch.setattr(ERM, "before_step", lambda self, step, epoch: steps.append(step))
        run(images, tmp_path / "killed")
        assert steps == [4, 5, 6, 7]

    def test_killed_again_and_again(self, images: Path, tmp_path: Path, whole: Path) -> None:
        for step in (1, 3, 3, 7):
            train_until(images, tmp_path / "killed", step)
        run(images, tmp_path / "killed")
        assert_same_run(tmp_path / "killed", whole)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("step", [0, 5, 6])
    def test_a_signal_saves_the_step_at_hand(
        self, images: Path, tmp_path: Path, whole: Path, number: signal.Signals, step: int
    ) -> None:
        def before_step(self: ERM, now: int, epoch: int) -> None:
            if now == step:
                os.kill(os.getpid(), number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ERM, "before_step", before_step)
            with pytest.raises(Interrupted, match=f"stopped by {number.name}; everything is saved") as caught:
                run(images, tmp_path / "stopped")
        assert caught.value.number == number
        saved = load_state(tmp_path / "stopped" / "checkpoints" / "last.safetensors")
        assert saved["progress"]["step"] == step + 1  # the step during which it came is made, none after it
        run(images, tmp_path / "stopped")
        assert_same_run(tmp_path / "stopped", whole)

    @pytest.mark.parametrize("step", [4, 8])
    def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
        self, images: Path, tmp_path: Path, whole: Path, step: int
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
                run(images, tmp_path / "stopped")
        assert [record["step"] for record in read_json_lines(tmp_path / "stopped" / "metrics.jsonl")] == list(
            range(2, step, 2)
        )
        saved = load_state(tmp_path / "stopped" / "checkpoints" / "last.safetensors")
        assert saved["progress"]["step"] == step  # of which nothing is lost
        run(images, tmp_path / "stopped")
        assert_same_run(tmp_path / "stopped", whole)

    def test_time_that_has_passed_saves_between_evaluations(
        self, images: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
        train_until(images, tmp_path / "killed", 3)
        saved = load_state(tmp_path / "killed" / "checkpoints" / "last.safetensors")["progress"]
        assert (saved["step"], saved["best_step"]) == (3, 2)
        monkeypatch.undo()
        run(images, tmp_path / "killed")
        assert_same_run(tmp_path / "killed", whole)

    def test_options_that_are_refused_leave_no_folder_that_insists_on_them(
        self, images: Path, tmp_path: Path, whole: Path
    ) -> None:
        with pytest.raises(UsageError, match="backbone"):
            run(images, tmp_path / "run", backbone="resnet10x")
        with pytest.raises(UsageError, match="there_is_no_module"):
            run(images, tmp_path / "run", algorithm="there_is_no_module:Name")
        assert not (tmp_path / "run").exists()
        run(images, tmp_path / "run")
        assert_same_run(tmp_path / "run", whole)

    def test_dropout_and_augmentation_resume_too(self, images: Path, tmp_path: Path) -> None:
        run(images, tmp_path / "whole", dropout=0.5, steps=4, evaluations=2)
        train_until(images, tmp_path / "killed", 3, dropout=0.5, steps=4, evaluations=2)
        run(images, tmp_path / "killed", dropout=0.5, steps=4, evaluations=2)
        assert_same_run(tmp_path / "killed", tmp_path / "whole")

    def test_killed_between_record_and_checkpoint(self, images: Path, tmp_path: Path, whole: Path) -> None:
        folder = tmp_path / "killed"

        def save(folder: Path, algorithm: Any, optimizer: Any, progress: Any, extra: Any) -> None:
            if progress.step == 4:
                raise Killed
            original(folder, algorithm, optimizer, progress, extra)

        original = trainer.save_checkpoint
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "save_checkpoint", save)
            with pytest.raises(Killed):
                run(images, folder)
        assert [record["step"] for record in read_json_lines(folder / "metrics.jsonl")] == [2, 4]
        assert load_state(folder / "checkpoints" / "last.safetensors")["progress"]["step"] == 2
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')  # cut short
        run(images, folder)
        assert_same_run(folder, whole)

    def test_killed_after_the_last_step(self, images: Path, tmp_path: Path, whole: Path) -> None:
        expected = read_json(whole / "result.json")
        (whole / "result.json").unlink()
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, -1)
            patch.setattr(ERM, "losses", None)  # no step is taken
            found = run(images, whole)
        assert without_clocks(found) == without_clocks(expected)

    def test_a_finished_run_is_only_read(self, images: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
        monkeypatch.setattr(ERM, "__init__", None)
        assert run(images, whole) == read_json(whole / "result.json")
        assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
    def test_of_a_damaged_checkpoint_the_one_before_is_used(
        self, images: Path, tmp_path: Path, whole: Path, damage: str
    ) -> None:
        train_until(images, tmp_path / "killed", 5)
        path = tmp_path / "killed" / "checkpoints" / "last.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes({"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
        steps: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ERM, "before_step", lambda self, step, epoch: steps.append(step))
            run(images, tmp_path / "killed")
        assert steps == [2, 3, 4, 5, 6, 7]
        assert_same_run(tmp_path / "killed", whole)

    def test_damaged_checkpoints_alone_are_named(self, images: Path, tmp_path: Path) -> None:
        train_until(images, tmp_path / "killed", 5)
        for name in ("last", "previous"):
            (tmp_path / "killed" / "checkpoints" / f"{name}.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(FileError, match=r"last\.safetensors.*previous\.safetensors"):
            run(images, tmp_path / "killed")

    def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
        self, images: Path, tmp_path: Path, whole: Path
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
                run(images, folder)
        run(images, folder)
        assert_same_run(folder, whole)
