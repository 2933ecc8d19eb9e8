from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domainfusion.config import DataConfig, TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.errors import Busy, UsageError
from domainfusion.experiments import benchmark, runs
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.files import read_json
from domainfusion.locks import exclusive
from domainfusion.results.collect import collect
from domainfusion.results.records import find_runs, load_run

OPTIONS = TrainConfig(
    steps=2, evaluations=1, batch_size=4, backbone="test_resnet", precision="float32", device="cpu", seed=7,
    data=DataConfig(size=32),
)  # fmt: skip


@pytest.fixture(scope="module")
def images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def bench(images: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"algorithms": ["erm"], "trials": [0, 1], "targets": ["photo", "sketch"], **changes}
    return run_benchmark(str(images), OPTIONS, **values, folder=folder, command="domainfusion benchmark ...")


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a benchmark of two targets and two trials, and what it returned."""
    folder = tmp_path_factory.mktemp("benchmark") / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        return folder, bench(images, folder)


def test_the_file_is_what_was_returned_in_the_documented_form(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    assert read_json(folder / "benchmark.json") == summary
    assert summary["command"] == "domainfusion benchmark ..."
    assert (summary["dataset"], summary["protocol"], summary["trials"]) == ("images", "domainbed", [0, 1])
    assert summary["selection"] == "training-domain validation"
    assert {"domainfusion", "torch", "timm"} <= set(summary["versions"])
    for table in (summary["accuracy"], summary["validation"]):
        assert {name: {target: len(v) for target, v in by.items()} for name, by in table.items()} == {
            "erm": {"photo": 2, "sketch": 2}
        }
    assert len(summary["seconds"]["erm"]) == 4
    json.dumps(summary, allow_nan=False)


def test_every_figure_is_that_of_its_run(done: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = done
    assert [path.relative_to(folder).as_posix() for path in find_runs(folder)] == [
        "erm/photo/trial-0", "erm/photo/trial-1", "erm/sketch/trial-0", "erm/sketch/trial-1",
    ]  # fmt: skip
    for target in ("photo", "sketch"):
        for trial in (0, 1):
            path = folder / "erm" / target / f"trial-{trial}"
            result = load_run(path)["result"]
            assert (result["target"], result["trial"], result["seed"]) == (target, trial, 7 + trial)
            assert summary["accuracy"]["erm"][target][trial] == round(100 * result["target_accuracy"], 3)
            assert summary["validation"]["erm"][target][trial] == round(100 * result["validation_accuracy"], 3)
            config = build_config(TrainConfig, load_toml(path / "config.toml"), "config.toml")
            assert (config.algorithm, config.target, config.trial, config.steps) == ("erm", target, trial, 2)


def test_the_second_time_nothing_is_trained(
    images: Path, done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, summary = done
    monkeypatch.setattr(runs, "train", None)
    monkeypatch.setattr(runs, "build_algorithm", None)
    assert bench(images, folder) == summary


def test_a_third_trial_is_added_to_two(
    images: Path, done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, summary = done
    made = []

    def train_run(data: str, config: TrainConfig, where: Path, **_: Any) -> dict[str, Any]:
        if (where / "result.json").exists():
            return runs.train_run(data, config, where)
        made.append((config.target, config.trial, config.seed))
        return {"target_accuracy": 0.5, "validation_accuracy": 0.25, "seconds": 1.0, "protocol": "domainbed"}

    kept = (folder / "benchmark.json").read_bytes()
    monkeypatch.setattr(benchmark, "train_run", train_run)
    found = bench(images, folder, trials=[0, 1, 2])
    (folder / "benchmark.json").write_bytes(kept)
    assert made == [("photo", 2, 9), ("sketch", 2, 9)]
    for target in ("photo", "sketch"):
        assert found["accuracy"]["erm"][target] == [*summary["accuracy"]["erm"][target], 50.0]


def test_after_every_trial_there_is_a_table(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_run(data: str, config: TrainConfig, where: Path, **_: Any) -> dict[str, Any]:
        if (config.trial, config.target) == (1, "sketch"):
            raise KeyboardInterrupt
        return {"target_accuracy": 0.5, "validation_accuracy": 0.25, "seconds": 1.0, "protocol": "domainbed"}

    monkeypatch.setattr(benchmark, "train_run", train_run)
    with pytest.raises(KeyboardInterrupt):
        bench(images, tmp_path)
    assert read_json(tmp_path / "benchmark.json")["trials"] == [0]
    assert read_json(tmp_path / "benchmark.json")["accuracy"] == {"erm": {"photo": [50.0], "sketch": [50.0]}}


def test_without_targets_every_domain_is_one(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"target_accuracy": 0.5, "validation_accuracy": 0.25, "seconds": 1.0, "protocol": "domainbed"}
    monkeypatch.setattr(benchmark, "train_run", lambda data, config, where, **_: result)
    summary = bench(images, tmp_path, targets=None, trials=[0])
    assert list(summary["accuracy"]["erm"]) == ["cartoon", "photo", "sketch"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithms": ["erm", "emr"]}, "unknown algorithm 'emr'; did you mean 'erm'"),
        ({"targets": ["photo", "skitch"]}, "unknown domain 'skitch'; did you mean 'sketch'"),
        ({"trials": []}, "--trials"),
        ({"algorithms": []}, "--algorithms"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_trained(
    images: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        bench(images, tmp_path / "b", **changes)
    assert not (tmp_path / "b").exists()


def test_a_trial_that_the_protocol_lacks_is_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match="trials 0 to 4"):
        run_benchmark("pictograms", TrainConfig(), ["erm"], list(range(6)), None, tmp_path / "b")
    assert not list((tmp_path / "b").rglob("result.json"))


def test_runs_at_work_elsewhere_come_last(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = {"b": 2, "d": 3}  # how many times each is found at work
    made: list[str] = []

    def make(run: benchmark.Run) -> dict[str, Any]:
        name = run[1]
        if elsewhere.get(name, 0):
            elsewhere[name] -= 1
            raise Busy(f"process 7 is at work in {name}: wait for it")
        made.append(name)
        return {"name": name}

    runs = [(0, name, "erm") for name in "abcde"]
    found = list(benchmark.finished(runs, make, pause=0.001))
    assert made == list("acebd")
    assert [(run[1], result["name"]) for run, result in found] == [(name, name) for name in "acebd"]
    said = capsys.readouterr().err
    assert said == "note: process 7 is at work in b; going on with the other runs\n"


def test_two_processes_share_a_benchmark(images: Path, tmp_path: Path, done: tuple[Path, dict[str, Any]]) -> None:
    with exclusive(tmp_path / "b" / "erm" / "photo" / "trial-0"):
        other = threading.Thread(target=bench, args=(images, tmp_path / "b"))
        other.start()
        while not (tmp_path / "b" / "erm" / "sketch" / "trial-1" / "result.json").exists():
            assert other.is_alive()
        assert not (tmp_path / "b" / "benchmark.json").exists()
    other.join()
    assert read_json(tmp_path / "b" / "benchmark.json")["accuracy"] == done[1]["accuracy"]


def test_a_domain_of_few_images_can_be_a_target_and_no_source(
    write_images: Callable[..., Path], tmp_path: Path
) -> None:
    """Of four images none is held out (a fifth of them): the target's held-out accuracy is of no image."""
    images = write_images(tmp_path / "few")
    for label in ("cat", "dog", "house"):
        for path in sorted((images / "sketch" / label).iterdir())[1:]:
            path.unlink()
    summary = bench(images, tmp_path / "b", trials=[0], targets=["sketch"])
    lines = (tmp_path / "b" / "erm" / "sketch" / "trial-0" / "results.jsonl").read_text().splitlines()
    for line in lines:
        record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert record["env2_out_acc"] is None
        assert 0 <= record["env2_in_acc"] <= 1
    tables, notes = collect([tmp_path / "b"], ["training-domain", "oracle"])
    assert notes == []
    assert [table.accuracy["ERM"]["sketch"] for table in tables] == [
        [pytest.approx(summary["accuracy"]["erm"]["sketch"][0] / 100, abs=1e-5)], [],
    ]  # fmt: skip
    with pytest.raises(UsageError, match="domain sketch has too few images"):
        bench(images, tmp_path / "other", trials=[0], targets=["photo"])
    assert not (tmp_path / "other").exists()
