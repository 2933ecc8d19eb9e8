"""Weights & Biases and MLflow: through their real interfaces where installed, and by stand-ins with their signatures.

The stand-ins take the arguments that the services document and no others, so that a wrong name fails here too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from domainfusion.tracking.base import Beginning
from domainfusion.tracking.mlflow import MLflow
from domainfusion.tracking.wandb import WeightsAndBiases

Calls = list[tuple[Any, ...]]


@pytest.fixture
def beginning(tmp_path: Path) -> Beginning:
    options = {"algorithm": "erm", "lr": 0.001} | {f"o{i}": i for i in range(150)}
    return Beginning(tmp_path, "few-erm-sketch-t0-s0", "few", options, "", -1)


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    Image.new("RGB", (6, 4)).save(tmp_path / "sheet.png")
    return tmp_path / "sheet.png"


@pytest.fixture
def wandb_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []

    class Summary:
        def update(self, d: dict[str, Any]) -> None:
            calls.append(("summary", d))

    class Run:
        summary = Summary()

        def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
            calls.append(("log", data, step))

        def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
            calls.append(("finish", exit_code))

    @dataclasses.dataclass
    class Picture:
        data_or_path: str

    def init(
        entity: Any = None, project: Any = None, dir: Any = None, id: Any = None, name: Any = None, notes: Any = None,
        tags: Any = None, config: Any = None, group: Any = None, job_type: Any = None, mode: Any = None,
        resume: Any = None, settings: Any = None,
    ) -> Run:  # fmt: skip
        calls.append(
            ("init", {"project": project, "dir": dir, "id": id, "name": name, "config": config, "group": group,
                      "job_type": job_type, "resume": resume})
        )  # fmt: skip
        return Run()

    module = types.ModuleType("wandb")
    module.init, module.Image = init, Picture
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls


def test_wandb_is_called_as_documented(wandb_calls: Calls, beginning: Beginning, sheet: Path) -> None:
    tracker = WeightsAndBiases()
    identity = tracker.begin(beginning)
    tracker.record(2, {"loss": 0.5})
    tracker.picture("ld_noise", 2, sheet)
    tracker.close(False)
    again = WeightsAndBiases()
    assert again.begin(dataclasses.replace(beginning, identity=identity, step=2)) == identity
    again.record(4, {"loss": 0.25})
    again.finish(4, {"target_accuracy": 0.75})
    again.close(True)
    opened = {
        "project": "domainfusion", "dir": str(beginning.folder), "id": identity, "name": "few-erm-sketch-t0-s0",
        "config": beginning.options, "group": "few", "job_type": "erm", "resume": "allow",
    }  # fmt: skip
    picture = sys.modules["wandb"].Image(str(sheet))
    assert wandb_calls == [
        ("init", opened), ("log", {"loss": 0.5}, 2), ("log", {"ld_noise": picture}, 2), ("finish", 1),
        ("init", opened), ("log", {"loss": 0.25}, 4), ("summary", {"result/target_accuracy": 0.75}), ("finish", 0),
    ]  # fmt: skip
    assert not set(identity) & set("/\\#?%:")  # characters that W&B takes in no id
    assert WeightsAndBiases().begin(beginning) != identity


@pytest.fixture
def mlflow_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []
    told: list[Any] = []
    experiments: dict[str, str] = {}

    @dataclasses.dataclass
    class Param:
        key: str
        value: str

    @dataclasses.dataclass
    class Metric:
        key: str
        value: float
        timestamp: int
        step: int

    class MlflowClient:
        def get_experiment_by_name(self, name: str) -> Any:
            number = experiments.get(name)
            return None if number is None else types.SimpleNamespace(experiment_id=number)

        def create_experiment(self, name: str, artifact_location: Any = None, tags: Any = None) -> str:
            experiments[name] = str(7 + len(experiments))
            calls.append(("create_experiment", name))
            return experiments[name]

        def create_run(
            self, experiment_id: str, start_time: Any = None, tags: Any = None, run_name: str | None = None
        ) -> Any:
            calls.append(("create_run", experiment_id, tags, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
            calls.append(("update_run", run_id, status))

        def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
            return [metric for metric in told if metric.key == key]

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
            assert len(params) <= 100
            told.extend(metrics)
            calls.append(("log_batch", run_id, [(m.key, m.value, m.step) for m in metrics],
                          {p.key: p.value for p in params}))  # fmt: skip

        def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
            calls.append(("log_artifact", run_id, local_path, artifact_path))

        def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
            calls.append(("set_terminated", run_id, status))

    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient, module.entities = MlflowClient, entities
    entities.Param, entities.Metric = Param, Metric
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return calls


def test_mlflow_is_called_as_documented(mlflow_calls: Calls, beginning: Beginning, sheet: Path) -> None:
    tracker = MLflow()
    assert tracker.begin(beginning) == "abc"
    tracker.record(2, {"validation_accuracy": 0.5, "validation/it's": 1})
    tracker.picture("synthetic/generation-00", 2, sheet)
    tracker.close(False)
    again = MLflow()
    again.begin(dataclasses.replace(beginning, identity="abc", step=-1))
    again.record(2, {"validation_accuracy": 0.5})  # told just before a kill: MLflow would keep both
    again.record(4, {"validation_accuracy": 0.75})
    again.finish(4, {"target_accuracy": 0.25})
    again.close(True)
    assert mlflow_calls[:2] == [
        ("create_experiment", "domainfusion"),
        ("create_run", "7", {"dataset": "few", "folder": str(beginning.folder)}, "few-erm-sketch-t0-s0"),
    ]
    parameters = [call for call in mlflow_calls if call[0] == "log_batch" and call[3]]
    assert {name: value for call in parameters for name, value in call[3].items()} == {
        name: str(value) for name, value in beginning.options.items()
    }
    assert [call for call in mlflow_calls[2:] if call not in parameters] == [
        ("log_batch", "abc", [("validation_accuracy", 0.5, 2), ("validation/it_s", 1.0, 2)], {}),
        ("log_artifact", "abc", str(sheet), "pictures/synthetic/generation-00"),
        ("set_terminated", "abc", "KILLED"),
        ("update_run", "abc", "RUNNING"),
        ("log_batch", "abc", [("validation_accuracy", 0.75, 4)], {}),
        ("log_batch", "abc", [("result/target_accuracy", 0.25, 4)], {}),
        ("set_terminated", "abc", "FINISHED"),
    ]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_itself_keeps_everything_once(
    beginning: Beginning, sheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    tracker = MLflow()
    identity = tracker.begin(beginning)
    tracker.record(2, {"validation_accuracy": 0.5})
    tracker.picture("ld_noise", 2, sheet)
    tracker.close(False)
    again = MLflow()
    again.begin(dataclasses.replace(beginning, identity=identity))
    again.record(2, {"validation_accuracy": 0.5})
    again.record(4, {"validation_accuracy": 0.75})
    again.finish(4, {"target_accuracy": 0.25})
    again.close(True)
    client = mlflow.MlflowClient()
    run = client.get_run(identity)
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in beginning.options.items()}
    assert run.data.metrics["result/target_accuracy"] == 0.25
    history = client.get_metric_history(identity, "validation_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(2, 0.5), (4, 0.75)]
    assert [file.path for file in client.list_artifacts(identity, "pictures/ld_noise")] == [
        "pictures/ld_noise/sheet.png"
    ]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself_takes_the_calls_offline(
    beginning: Beginning, sheet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = WeightsAndBiases()
    identity = tracker.begin(beginning)
    assert tracker.run.id == identity
    assert tracker.run.config["lr"] == 0.001
    tracker.record(2, {"loss": 0.5})
    tracker.picture("ld_noise", 2, sheet)
    tracker.record(4, {"loss": 0.25})
    tracker.finish(4, {"target_accuracy": 0.25})
    assert tracker.run.summary["result/target_accuracy"] == 0.25
    tracker.close(True)
    assert wandb.run is None
    assert list(beginning.folder.glob(f"wandb/offline-run-*-{identity}/*.wandb"))
