"""Sweeps on a real cluster of two nodes on this machine, and what becomes of them when things die."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
from domainfusion.experiments import runs
from domainfusion.experiments.benchmark import run_benchmark
from domainfusion.experiments.tabulating import curve_store
from domainfusion.files import read_json
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path
from domainfusion.fusion.candidates import candidates_of
from domainfusion.json_lines import read_json_lines
from domainfusion.locks import locked
from domainfusion.results.model_selection import select
from domainfusion.sweep.ledger import Ledger
from domainfusion.sweep.plan import Outcome, build_plan
from domainfusion.sweep.running import best_draws, cluster, run_sweep, slots_of
from domainfusion.sweep.sharing import compute_shared, find_jobs
from domainfusion.tensors import load_state
from sweep.small_sweeps import CONFIG, sweep_of

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


def test_runs_that_would_tabulate_nothing_alone_share_a_table(
    image_folder: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """A run takes 1,600 passes, its table 3,712; two runs 3,200, and the table of both 5,568 and more."""
    distill = DistillConfig(curve_samples=2, curve_rounds=2)
    config = dataclasses.replace(CONFIG, ldm=str(tiny_pipeline), distill=distill, steps=200, synthetic_weight=0.0)

    def kinds(trials: int) -> list[str]:
        plan = build_plan(
            sweep_of(image_folder, algorithms=("domainfusion",), trials=trials), config, tmp_path / str(trials)
        )
        entries = Ledger(plan).entries.values()
        return [job.kind for job in find_jobs(plan, [(e.run, e.config) for e in entries if e.config is not None])]

    assert kinds(1) == []
    assert kinds(6) == ["curves"]


def test_a_driver_that_is_asked_to_stop_has_its_runs_saved(image_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "s"
    command = ["sweep", str(image_folder), *WORDS[2:], "--steps", "100000", "--evaluate-every", "50000", "--algorithms",
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


def test_of_equal_draws_the_last_is_chosen_as_benchmark_and_collect_have_it(image_folder: Path, tmp_path: Path) -> None:
    ledger = Ledger(build_plan(sweep_of(image_folder, draws=3, targets=("photo",)), CONFIG, tmp_path))
    values = {0: 0.5, 1: 0.75, 2: 0.75}
    for run_, entry in ledger.entries.items():
        ledger.end(entry, Outcome("done", values[run_.hparams_seed]))
    ((entry,),) = (found.values() for found in best_draws(ledger).values())
    assert entry.run.hparams_seed == 2
    records = [
        {"args": {"hparams_seed": draw, "test_envs": [0]}, "step": 1, "env0_in_acc": 0.1 * draw, "env0_out_acc": 0.0,
         "env1_out_acc": value}
        for draw, value in values.items()
    ]  # fmt: skip
    chosen = select(records, "training-domain")
    assert chosen is not None
    assert chosen.hparams_seed == 2
