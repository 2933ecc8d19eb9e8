"""Sweeps on a real cluster of two nodes on this machine, and what becomes of them when things die."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from same_run import assert_same_run

pytest.importorskip("ray")

from ray.cluster_utils import Cluster

from domainfusion.cli import run
from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.data.domains import load_dataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import Interrupted
from domainfusion.experiments import runs
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.experiments.runs import build_context
from domainfusion.experiments.tabulating import curve_store
from domainfusion.files import read_json
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path
from domainfusion.fusion.candidates import candidates_of
from domainfusion.fusion.schedule import generations_due
from domainfusion.interruption import check, stoppable
from domainfusion.json_lines import read_json_lines
from domainfusion.locks import locked
from domainfusion.sweep import trials
from domainfusion.sweep.ledger import Ledger
from domainfusion.sweep.options import SweepConfig
from domainfusion.sweep.plan import PRUNED, Outcome, build_plan
from domainfusion.sweep.running import cluster, run_sweep, slots_of
from domainfusion.sweep.sharing import compute_shared, find_jobs
from domainfusion.sweep.trials import METRIC, Pruning, RunSearch, RunTrial
from domainfusion.tensors import load_state

CONFIG = TrainConfig(
    algorithm="erm", steps=150, evaluations=15, batch_size=4, backbone="test_resnet", precision="float32", device="cpu",
    data=DataConfig(size=32),
)  # fmt: skip
WORDS = ("--steps", "150", "--evaluations", "15", "--batch-size", "4", "--backbone", "test_resnet", "--precision",
         "float32", "--device", "cpu", "--data.size", "32")  # fmt: skip
SMALL = {"object_store_memory": 100 * 2**20, "num_cpus": 1}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A cluster of two nodes with a CPU each."""
    started = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
    started.add_node(**SMALL)
    yield started
    started.shutdown()


def sweep_of(images: Path, **options: Any) -> SweepConfig:
    values: dict[str, Any] = {"algorithms": ("erm",), "targets": ("photo", "sketch"), "trials": 1, **options}
    return SweepConfig(data=(str(images),), **values)


def wait_for(reached: Callable[[], bool], seconds: float = 900.0) -> None:
    limit = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.05)


def checkpoint(folder: Path, target: str) -> Path:
    return folder / "erm" / target / "trial-0" / "checkpoints" / "last.safetensors"


def test_a_killed_node_and_a_killed_driver_change_nothing(
    nodes: Cluster, image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = tmp_path / "plain"
    expected = run_benchmark(str(image_folder), CONFIG, ["erm"], [0], ["photo", "sketch"], plain)

    lost = tmp_path / "lost"

    def kill() -> None:
        wait_for(lambda: checkpoint(lost, "photo").exists() and checkpoint(lost, "sketch").exists())
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    found = run_sweep(sweep_of(image_folder, address=nodes.address), CONFIG, lost)
    killer.join()
    assert found["runs"] == {"done": 2}
    assert found["failed"] == []
    assert "again (1 lost)" in capfd.readouterr().err
    begun = [(lost / "erm" / target / "trial-0" / "run.log").read_text().count("---") for target in ("photo", "sketch")]
    assert sorted(begun) == [1, 2]
    for target in ("photo", "sketch"):
        assert_same_run(plain / "erm" / target / "trial-0", lost / "erm" / target / "trial-0")
    assert found["datasets"]["images"]["accuracy"] == expected["accuracy"]
    assert read_json(lost / "benchmark.json")["validation"] == read_json(plain / "benchmark.json")["validation"]

    # The node that is left does one run after the other; the driver dies in the second.
    killed = tmp_path / "killed"
    command = ["sweep", str(image_folder), *WORDS, "--algorithms", "erm", "--targets", "photo", "sketch", "--trials",
               "1", "--address", nodes.address, "--output", str(killed)]  # fmt: skip
    driver = subprocess.Popen([sys.executable, "-m", "domainfusion", *command], stderr=subprocess.PIPE, text=True)
    first = killed / "erm" / "photo" / "trial-0" / "result.json"
    wait_for(lambda: (checkpoint(killed, "sketch").exists() and first.exists()) or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    _, errors = driver.communicate()
    assert driver.returncode == -9, errors
    before = first.stat().st_mtime_ns
    assert run(command) == 0
    said = capfd.readouterr()
    assert "1 of 2 runs to make" in said.err
    assert "average" in said.out
    assert first.stat().st_mtime_ns == before
    for target in ("photo", "sketch"):
        assert_same_run(plain / "erm" / target / "trial-0", killed / "erm" / target / "trial-0")

    # Everything is there: no cluster is asked, and a benchmark of the same options has nothing to train.
    assert run([*command[:-4], "--address", "127.0.0.1:1", "--output", str(killed)]) == 0
    monkeypatch.setattr(runs, "train", None)
    again = run_benchmark(str(image_folder), CONFIG, ["erm"], [0], ["photo", "sketch"], killed)
    assert again["accuracy"] == expected["accuracy"]
    assert run(["collect", str(killed), "--json"]) == 0


def test_draws_that_fail_do_not_stop_those_that_do_not(
    nodes: Cluster, image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        "steps = 6\nevaluations = 2\nbatch_size = 4\nbackbone = 'test_resnet'\nprecision = 'float32'\ndevice = 'cpu'\n"
        "[data]\nsize = 16\n"
        f"[sweep]\nalgorithms = ['erm']\ntargets = ['photo']\ntrials = 1\ndraws = 3\naddress = '{nodes.address}'\n"
        "search = 'optuna'\nstartup = 2\n"
        "[sweep.space]\nlr = [1e-3, 1e38]\n"
    )  # fmt: skip
    output = tmp_path / "s"
    code = run(["sweep", str(image_folder), "--config", str(file), "--output", str(output)])
    said = capfd.readouterr()
    runs_made = {folder.name: folder for folder in (output / "erm" / "photo").iterdir()}
    assert sorted(runs_made) == ["trial-0", "trial-0-draw-1", "trial-0-draw-2"]
    rates = {}
    for name, folder in runs_made.items():
        config = build_config(TrainConfig, load_toml(folder / "config.toml"), name)
        rates[name] = config.lr
        assert (folder / "result.json").exists() == (config.lr < 1)
        for record in read_json_lines(folder / "results.jsonl"):
            assert record["args"]["hparams_seed"] == config.hparams_seed
    failed = [name for name, lr in rates.items() if lr > 1]
    assert rates["trial-0"] == 1e-3
    assert code == (1 if failed else 0)
    assert failed, rates
    for name in failed:
        assert "the loss is not finite at step" in said.err
        assert f"log: {runs_made[name] / 'run.log'}" in said.err
        assert (runs_made[name] / "run.log").read_text().count("---") == 1  # tried once: it would fail again
    found = read_json(output / "sweep.json")
    assert found["chosen"]["erm"]["photo"][0]["lr"] == 1e-3


def test_candidates_and_curves_are_made_in_parts_by_the_cluster(
    nodes: Cluster, image_folder: Path, tiny_pipeline: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(
        steps=4, evaluations=1, batch_size=4, backbone="test_resnet", precision="float32", device="cpu",
        ldm=str(tiny_pipeline), data=DataConfig(size=16), generate=GenerateConfig(candidates=2, steps=2, generations=1),
        distill=DistillConfig(estimator="curve", curve_samples=2, curve_rounds=2),
    )  # fmt: skip
    options = sweep_of(image_folder, algorithms=("erm", "domainfusion"), address=nodes.address)
    plan = build_plan(options, config, tmp_path / "s")
    ledger = Ledger(plan)
    jobs = find_jobs(plan, [(entry.run, entry.config) for entry in ledger.entries.values() if entry.config is not None])
    assert sorted(job.kind for job in jobs) == ["candidates", "curves"]  # both targets' runs share them
    dataset = load_dataset(str(image_folder), config.data)
    rows = np.unique(np.concatenate([job.rows for job in jobs]))
    assert all(np.array_equal(job.rows, rows) for job in jobs)
    said: list[str] = []
    with cluster(options) as (cpus, gpus):
        assert slots_of(1, 0, cpus, gpus) >= 1
        compute_shared(jobs, plan, cpus=1, gpus=0, slots=2, say=said.append)
    assert [line.split(",")[0] for line in sorted(said)] == [
        "shared by the runs: candidates of generation 0 of images", "shared by the runs: curves of images"
    ]  # fmt: skip
    ldm = LatentDiffusion.load(str(tiny_pipeline), precision="float32")
    made = CandidateCache(cache_path(ldm, dataset, config.generate, 0, ldm.styles), dataset, config.generate)
    assert np.array_equal(np.flatnonzero(made.done), rows)
    alone = candidates_of(
        ldm, dataset, rows, dataset.images[rows], config.generate, number=0, styles=ldm.styles, stored=False,
        progress=False,
    )  # fmt: skip
    difference = made.images[rows].astype(int) - np.concatenate([part for _, _, part in alone]).astype(int)
    assert np.abs(difference).max() <= 1  # batched otherwise
    assert len(curve_store(str(image_folder), config).missing(rows)) == 0


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
    search = SimpleNamespace(ledger=ledger, entries={}, pruned=set())
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
    assert search.pruned == {
        search.entries[name].run.name for name in search.entries if name.endswith("photo, trial 0, draw 1")
    }

    # A later sweep remembers what this one saw.
    later = Ledger(plan)
    entry = next(e for r, e in later.entries.items() if r.folder == folder)
    assert entry.outcome == Outcome("pruned", 0.2)
    search = SimpleNamespace(ledger=later, entries={}, pruned=set())
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


def test_a_driver_that_is_asked_to_stop_has_its_runs_saved(image_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "s"
    command = ["sweep", str(image_folder), *WORDS, "--steps", "100000", "--evaluate-every", "50000", "--algorithms",
               "erm", "--targets", "photo", "--trials", "1", "--cpus", "1", "--output", str(output)]  # fmt: skip
    driver = subprocess.Popen([sys.executable, "-m", "domainfusion", *command], stderr=subprocess.PIPE, text=True)
    metrics = output / "erm" / "photo" / "trial-0" / "metrics.jsonl"
    last = metrics.parent / "checkpoints" / "last.safetensors"  # after step 1; the next evaluation is 50,000 steps away
    wait_for(lambda: last.exists() or driver.poll() is not None)
    time.sleep(1)
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate()
    assert driver.returncode == 143, errors
    assert "stopped by SIGTERM; everything is saved" in errors
    assert "Traceback" not in errors
    with locked(metrics.with_name(".lock")):  # the run's own process has ended
        log = (metrics.parent / "run.log").read_text()
        assert "stopped by SIGTERM; everything is saved" in log
        # A checkpoint was written at the step that it had come to, after the last evaluation.
        state = load_state(last)
        assert state["progress"]["step"] > read_json_lines(metrics)[-1]["step"]
    assert not (output / ".tune").exists()
