"""Trackers follow a run's folder: each thing once, in order, whatever interrupts the run or fails in a tracker."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from domainfusion import cli
from domainfusion.algorithms.erm import ERM
from domainfusion.config import DataConfig, TrainConfig
from domainfusion.config_files import load_toml
from domainfusion.errors import UsageError
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.experiments.runs import train_run
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.registry import TRACKERS
from domainfusion.tracking import following
from domainfusion.tracking.base import Beginning
from domainfusion.tracking.following import Tracking

Told = list[tuple[Any, ...]]


@pytest.fixture
def told() -> Iterator[Told]:
    """What the tracker `recording` has been told, call by call."""
    calls: Told = []

    class Recording:
        """Writes down every call."""

        def begin(self, beginning: Beginning) -> str:
            calls.append(("begin", beginning.name, beginning.identity, beginning.step, dict(beginning.options)))
            return beginning.identity or "mine"

        def record(self, step: int, values: Mapping[str, float]) -> None:
            calls.append(("record", step, dict(values)))

        def picture(self, name: str, step: int, path: Path) -> None:
            with Image.open(path) as image:
                calls.append(("picture", name, step, image.size))

        def finish(self, step: int, result: Mapping[str, float]) -> None:
            calls.append(("finish", step, dict(result)))

        def close(self, finished: bool) -> None:
            calls.append(("close", finished))

    TRACKERS.add("recording", Recording)
    yield calls
    TRACKERS.remove("recording")


@pytest.fixture
def images(make_image_folder: Callable[..., Path]) -> Path:
    return make_image_folder("few", count=5)


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(
        algorithm="erm", target="sketch", steps=6, evaluations=3, batch_size=4, backbone="test_resnet",
        precision="float32", device="cpu", data=DataConfig(size=32),
    )  # fmt: skip


def kinds(calls: Told) -> list[str]:
    return [f"{call[0]} {call[1]}" if call[0] == "record" else call[0] for call in calls]


def test_a_run_is_told_once_and_in_order(told: Told, images: Path, config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = train_run(str(images), config, folder, progress=False, track=["recording"])
    assert kinds(told) == ["begin", "record 2", "record 4", "record 6", "finish", "close"]
    _, name, identity, step, options = told[0]
    assert (name, identity, step) == ("few-erm-sketch-t0-s0", "", -1)
    assert (options["steps"], options["data.size"], options["generate.strength"]) == (6, 32, "0.5, 0.9")
    for call, record in zip(told[1:4], read_json_lines(folder / "metrics.jsonl"), strict=True):
        assert call[1] == record["step"]
        assert call[2]["raw_loss"] == record["raw_loss"]
        assert call[2]["validation/photo"] == record["validation"]["photo"]
        assert "step" not in call[2]
    assert told[4][1] == 6
    assert told[4][2]["target_accuracy"] == result["target_accuracy"]
    assert told[4][2]["class_accuracy/cat"] == result["class_accuracy"]["cat"]
    assert told[-1] == ("close", True)


def test_which_trackers_follow_makes_no_other_run(
    told: Told, images: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """A finished run is told to a tracker that is named later, and to no tracker twice."""
    folder = tmp_path / "run"
    result = train_run(str(images), config, folder, progress=False)
    assert told == []
    options = load_toml(folder / "config.toml")
    assert [name for name in options if "track" in name] == []
    assert train_run(str(images), config, folder, progress=False, track=["recording"]) == result
    assert kinds(told) == ["begin", "record 2", "record 4", "record 6", "finish", "close"]
    told.clear()
    assert train_run(str(images), config, folder, progress=False, track=["recording"]) == result
    assert told == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_resumed_run_tells_no_step_twice(
    told: Told, images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Stopped after the record of step 4 was told; with `lost`, before the checkpoint of that step was written."""
    folder, losses = tmp_path / "run", ERM.losses

    def stopped(self: ERM, batch: Any) -> Any:
        if batch.step == (2 if keep else 4):
            raise KeyboardInterrupt
        return losses(self, batch)

    keep = lost
    with monkeypatch.context() as patch:
        patch.setattr(ERM, "losses", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_run(str(images), config, folder, progress=False, track=["recording"])
        if lost:  # the state of step 2 under the records and the trackers' knowledge of step 4
            shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
            keep = False
            with pytest.raises(KeyboardInterrupt):
                train_run(str(images), config, folder, progress=False, track=["recording"])
            shutil.rmtree(folder / "checkpoints")
            shutil.copytree(tmp_path / "checkpoints", folder / "checkpoints")
    train_run(str(images), config, folder, progress=False, track=["recording"])
    assert [call[1] for call in told if call[0] == "record"] == [2, 4, 6]
    begun = [call[2:4] for call in told if call[0] == "begin"]
    assert begun == ([("", -1), ("mine", 2), ("mine", 4)] if lost else [("", -1), ("mine", 4)])
    assert [call[1] for call in told if call[0] == "close"] == [False] * (len(begun) - 1) + [True]


@pytest.mark.parametrize("method", ["begin", "record", "picture", "finish", "close"])
def test_a_tracker_that_fails_stops_no_run(
    told: Told, images: Path, config: TrainConfig, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    Image.new("RGB", (6, 4)).save(folder / "ld_noise.png")

    def fail(*_: Any) -> None:
        raise ConnectionError("no route\nto host")

    kind = TRACKERS.load("recording")
    with monkeypatch.context() as patch:
        patch.setattr(kind, method, fail)
        result = train_run(str(images), config, folder, progress=False, track=["recording"])
    assert 0 <= result["target_accuracy"] <= 1
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: recording")]
    assert len(notes) == 1
    assert "ConnectionError: no route to host" in notes[0]
    # The same command tells the rest: all in all everything once.
    train_run(str(images), config, folder, progress=False, track=["recording"])
    whole = {"begin", "record 2", "record 4", "record 6", "picture", "finish"}
    assert whole <= set(kinds(told))
    assert len([name for name in kinds(told) if name not in ("begin", "close")]) == len(whole) - 1


def test_pictures_are_told_with_the_step_that_was_reached(
    told: Told, images: Path, config: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / "synthetic" / "generation-00").mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(folder / "synthetic" / "generation-00" / "sheet.png")
    train_run(str(images), config, folder, progress=False, track=["recording"])
    assert [call for call in told if call[0] == "picture"] == [("picture", "synthetic/generation-00", 0, (6, 4))]
    assert kinds(told)[:2] == ["begin", "picture"]


def test_damaged_knowledge_of_trackers_stops_no_run(
    told: Told, images: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "tracking.json").write_text("{")
    train_run(str(images), config, folder, progress=False, track=["recording"])
    assert told == []
    assert "note: recording is not told any more" in capsys.readouterr().err


def test_a_benchmark_tells_each_run_apart(told: Told, images: Path, config: TrainConfig, tmp_path: Path) -> None:
    short = dataclasses.replace(config, steps=2, evaluations=1, target=None)
    run_benchmark(
        str(images), short, ["erm"], [0], ["photo", "sketch"], tmp_path / "b", track=["recording"], progress=False
    )
    assert [call[1] for call in told if call[0] == "begin"] == ["few-erm-photo-t0-s0", "few-erm-sketch-t0-s0"]
    assert kinds(told).count("finish") == 2
    known = read_json(tmp_path / "b" / "erm" / "photo" / "trial-0" / "tracking.json")
    assert known == {"recording": {"identity": "mine", "step": 2, "pictures": [], "finished": True}}


def test_an_unknown_tracker_is_refused_before_anything_is_made(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(images), "--algorithm", "erm", "--output", str(tmp_path / "run"), "--track", "tensorbord"]
    assert cli.run(words) == 2
    assert "unknown tracker 'tensorbord'; did you mean 'tensorboard'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_installed", lambda package: False)
    for name, package in (("tensorboard", "'domainfusion\\[track\\]'"), ("wandb", "wandb"), ("mlflow", "mlflow")):
        with pytest.raises(UsageError, match=f"--track {name} needs the package {name}: pip install {package}"):
            Tracking(tmp_path, [name])


def test_a_folder_called_like_a_package_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tracker_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not following._installed("some_tracker_package")
    (tmp_path / "some_tracker_package" / "__init__.py").touch()
    assert following._installed("some_tracker_package")


def test_the_option_reaches_the_run(
    told: Told, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train", str(images), "--algorithm", "erm", "--steps", "2", "--evaluations", "1", "--batch-size", "2",
        "--backbone", "test_resnet", "--data.size", "32", "--device", "cpu", "--precision", "float32", "--json",
        "--output", str(tmp_path / "run"), "--track", "recording",
    ]  # fmt: skip
    assert cli.run(words) == 0
    assert kinds(told) == ["begin", "record 2", "finish", "close"]
    assert told[0][1] == "few-erm-all-t0-s0"
    assert json.loads(capsys.readouterr().out)["steps"] == 2
