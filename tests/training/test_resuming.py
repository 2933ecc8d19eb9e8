"""Runs that were killed, stopped or damaged go on to what they would have been; with other options they do not."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from domainfusion.algorithms.erm import ERM
from domainfusion.config import CDGAConfig, DataConfig, DSIConfig, GenerateConfig, TrainConfig, ZeroShotConfig
from domainfusion.config.settings import OURS
from domainfusion.config_files import to_toml
from domainfusion.errors import FileError, Interrupted, UsageError
from domainfusion.experiments.run_folder import refuse_other_options
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.registry import ALGORITHMS
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
        self, images: Path, tmp_path: Path, changes: dict[str, Any], message: str, finished: bool
    ) -> None:
        folder = tmp_path / "run"
        if finished:
            run(images, folder)
        else:
            train_until(images, folder, 1)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(UsageError) as caught:
            run(images, folder, **changes)
        assert str(caught.value) == (
            f"{folder} holds a run with {message}; choose another --output, or give its own options to go on "
            f"(--config {folder / 'config.toml'})"
        )
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def test_how_much_the_ldm_does_at_once_may_change(self, images: Path, whole: Path) -> None:
        other = ZeroShotConfig(batch_size=7), DSIConfig(batch_size=7), GenerateConfig(batch_size=7, worker="off")
        result = run(images, whole, **dict(zip(("zero_shot", "dsi", "generate"), other, strict=True)))
        assert result == read_json(whole / "result.json")

    def test_other_data_is_refused(self, images: Path, whole: Path, make_image_folder: Callable[..., Path]) -> None:
        other = make_image_folder("other")
        with pytest.raises(UsageError, match=r"holds a run on .*/images; choose another --output"):
            run(other, whole)

    def test_a_folder_of_images_that_was_moved_goes_on_where_it_is(
        self, make_image_folder: Callable[..., Path], whole: Path, tmp_path: Path
    ) -> None:
        images, folder = make_image_folder("images"), tmp_path / "run"
        train_until(images, folder, 3)
        moved = images.rename(tmp_path / "moved")
        run(moved, folder)
        found, expected = (load_file(run_folder / "model.safetensors") for run_folder in (folder, whole))
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
        assert read_json(folder / "data.json")["data"] == str(moved)
        (moved / "photo" / "dog" / "00.png").unlink()
        again = moved.rename(tmp_path / "again")
        with pytest.raises(UsageError, match=r"again are not those with which the run in .*/run began; choose another"):
            run(again, folder)

    def test_names_with_line_breaks_and_quotes_are_kept(
        self, make_image_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        domains = ('tar"get\n[x]', "a b", "c'd 🐱")
        data = make_image_folder("new\nline = 3", domains=domains)
        first = run(data, tmp_path / "run", target=domains[0], steps=2, evaluations=1)
        assert run(data, tmp_path / "run", target=domains[0], steps=2, evaluations=1) == first
        assert first["target"] == domains[0]


@pytest.mark.parametrize(
    ("algorithm", "options", "refused"),
    [
        ("erm", {"zero_shot": ZeroShotConfig(images=4)}, ""), ("domainfusion", {"dsi": DSIConfig(steps=5)}, ""),
        ("cdga", {"zero_shot": ZeroShotConfig(images=4)}, ""), ("cdga", {"cdga": CDGAConfig(steps=5)}, "cdga.steps"),
        ("diffusion_net", {"zero_shot": ZeroShotConfig(images=4)}, "zero_shot.images"),
        ("my.module:Algorithm", {"zero_shot": ZeroShotConfig(images=4)}, "zero_shot.images"),
    ],
)  # fmt: skip
def test_options_that_an_algorithm_does_not_read_may_change(
    tmp_path: Path, algorithm: str, options: dict[str, Any], refused: str
) -> None:
    """`reproduce table5` with options for its zero-shot rows, where `reproduce table3` has made the others."""
    config = TrainConfig(algorithm=algorithm, target="ink")
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    changed = dataclasses.replace(config, **options)
    if refused:
        with pytest.raises(UsageError, match=f"holds a run with {refused} = "):
            refuse_other_options(tmp_path, "pictograms", changed)
    else:
        refuse_other_options(tmp_path, "pictograms", changed)


def test_the_list_of_our_algorithms_is_whole() -> None:
    assert all(
        entry.location.startswith("domainfusion.") == (name in OURS) for name, entry in ALGORITHMS.entries.items()
    )


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
