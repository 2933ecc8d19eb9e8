"""A sweep's runs as the search sees them, without a cluster: their options, what is reported, pruning, stopping."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")


from domainfusion.cli import run
from domainfusion.config import DataConfig, GenerateConfig, TrainConfig
from domainfusion.errors import Interrupted
from domainfusion.experiments.runs import build_context
from domainfusion.files import read_json
from domainfusion.fusion.schedule import generations_due
from domainfusion.interruption import check, stoppable
from domainfusion.sweep import trials
from domainfusion.sweep.ledger import Ledger
from domainfusion.sweep.plan import PRUNED, Outcome, build_plan
from domainfusion.sweep.sharing import find_jobs
from domainfusion.sweep.trials import METRIC, Pruning, RunSearch, RunTrial
from sweep.small_sweeps import CONFIG, sweep_of


def test_epochs_of_a_sweep_are_those_of_its_data(image_folder: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    """What is shared, and where pruning ends: by the steps that 20 epochs come to, not by the 8 that `steps` says."""
    config = TrainConfig(
        epochs=20, steps=8, batch_size=4, backbone="test_resnet", precision="float32", device="cpu",
        ldm=str(tiny_pipeline), data=DataConfig(size=16), generate=GenerateConfig(candidates=2, interval=4),
        distill_weight=0.0,
    )  # fmt: skip
    plan = build_plan(sweep_of(image_folder, algorithms=("domainfusion",)), config, tmp_path / "s")
    ledger = Ledger(plan)
    chosen = [(entry.run, entry.config) for entry in ledger.entries.values() if entry.config is not None]
    run, options = chosen[0]
    context = build_context(str(image_folder), options, tmp_path / "run", progress=False)
    assert plan.steps_of(run.place, options) == context.config.steps == 20 * 7
    due = generations_due(139, 140, 7, config.generate)
    assert due == 4
    assert sorted({job.number for job in find_jobs(plan, chosen)}) == list(range(due))


def test_ray_hears_of_source_validation_alone(tmp_path: Path) -> None:
    line = (
        '{"step": %d, "validation_accuracy": 0.5, "target_accuracy": 0.9, "validation": {"photo": 0.5}, "loss": 1.0}\n'
    )
    (tmp_path / "metrics.jsonl").write_text(line % 2 + line % 4)
    (tmp_path / "result.json").write_text('{"validation_accuracy": 0.5, "target_accuracy": 0.9}')
    trial = object.__new__(RunTrial)
    trial.folder, trial.reported, trial.process = tmp_path, 0, SimpleNamespace(poll=lambda: 0)
    told = [trial.step() for _ in range(3)]
    assert told == [
        {"step": 2, METRIC: 0.5}, {"step": 4, METRIC: 0.5}, {"step": 4, METRIC: 0.5, "status": "done", "done": True}
    ]  # fmt: skip
    trial.process = SimpleNamespace(poll=lambda: -9)
    (tmp_path / "run.log").write_text("--- begun\n\nKilled\n\n")
    with pytest.raises(RuntimeError, match=r"Killed \(exit code -9\)"):
        trial.step()
    trial.process = SimpleNamespace(poll=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "HEARTBEAT", 0.1)
        assert trial.step() == {"step": 4}


@pytest.mark.parametrize(("share", "worker"), [(True, "off"), (False, "auto")])
def test_a_run_whose_candidates_are_tasks_of_the_sweep_has_no_worker(
    image_folder: Path, tmp_path: Path, share: bool, worker: str
) -> None:
    plan = build_plan(sweep_of(image_folder, share=share), CONFIG, tmp_path)
    search = RunSearch(Ledger(plan), SimpleNamespace(), threads=2, gpus=0)
    spec = json.loads(search.suggest("a")["spec"])
    assert spec["config"]["generate"]["worker"] == worker
    assert plan.config.generate.worker == "auto"


@pytest.mark.parametrize("changes", [{}, {"epochs": 21, "steps": 8}], ids=["steps", "epochs"])  # of 7 steps each
def test_draws_are_pruned_by_their_own_kind(image_folder: Path, tmp_path: Path, changes: dict[str, int]) -> None:
    options = sweep_of(image_folder, draws=4, space=("lr=loguniform(1e-4,1e-2)",), prune=True, prune_factor=2.0)
    plan = build_plan(options, dataclasses.replace(CONFIG, **changes), tmp_path)
    ledger = Ledger(plan)
    search = SimpleNamespace(ledger=ledger, entries={}, pruned={})
    scheduler = Pruning(search)

    def report(target: str, draw: int, step: int, value: float) -> str:
        entry = next(e for r, e in ledger.entries.items() if (r.place.target, r.hparams_seed) == (target, draw))
        trial = SimpleNamespace(trial_id=entry.run.name)
        if trial.trial_id not in search.entries:
            search.entries[trial.trial_id] = entry
            ledger.resolve(entry)
            scheduler.on_trial_add(None, trial)
        entry.run.folder.mkdir(parents=True, exist_ok=True)
        with open(entry.run.folder / "metrics.jsonl", "a") as file:
            file.write(f'{{"step": {step}, "{METRIC}": {value}, "target_accuracy": {1 - value}}}\n')
        return scheduler.on_trial_result(None, trial, {"step": step, METRIC: value})

    assert report("photo", 0, 10, 0.9) == "CONTINUE"
    assert report("photo", 1, 10, 0.1) == "CONTINUE"  # before a quarter of the steps nothing is pruned
    assert report("photo", 0, 40, 0.9) == "CONTINUE"
    assert report("sketch", 0, 40, 0.2) == "CONTINUE"  # another target's run is no measure
    assert report("photo", 1, 40, 0.2) == "STOP"
    assert report("sketch", 1, 40, 0.3) == "CONTINUE"
    assert report("sketch", 2, 150, 0.0) == "CONTINUE"  # at its end already
    folder = tmp_path / "erm" / "photo" / "trial-0-draw-1"
    assert read_json(folder / PRUNED) == {"step": 40, METRIC: 0.2}
    assert search.pruned == {  # its best source validation, as `pruned.json` tells later sweeps
        search.entries[name].run.name: 0.2 for name in search.entries if name.endswith("photo, trial 0, draw 1")
    }

    # A later sweep remembers what this one saw.
    later = Ledger(plan)
    entry = next(e for r, e in later.entries.items() if r.folder == folder)
    assert entry.outcome == Outcome("pruned", 0.2)
    search = SimpleNamespace(ledger=later, entries={}, pruned={})
    ledger, scheduler = later, Pruning(search)
    assert report("photo", 2, 40, 0.1) == "STOP"
    assert report("photo", 3, 40, 0.3) == "CONTINUE"


def test_a_signal_stops_trials_and_wrong_addresses_are_named(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = trials.Stopping()
    assert not stopping.stop_all()

    @stoppable()
    def work() -> None:
        signal.raise_signal(signal.SIGTERM)
        assert stopping.stop_all()
        check()

    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        work()
    assert not stopping.stop_all()
    assert run(["sweep", str(image_folder), "--targte", "photo"]) == 2
    assert run(["sweep", str(image_folder), "--trial", "1"]) == 2
    assert "use --trials" in capsys.readouterr().err
    assert run(["sweep", "--output", str(tmp_path)]) == 2
    assert "needs a data set" in capsys.readouterr().err
