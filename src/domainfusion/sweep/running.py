"""`domainfusion sweep`: the driver. It plans, has what runs share computed, has the runs made, and sums up."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune

from domainfusion.config import TrainConfig
from domainfusion.errors import UsageError
from domainfusion.experiments.benchmark import summarize_runs
from domainfusion.experiments.search import Search
from domainfusion.files import make_folder, read_json, write_json
from domainfusion.interruption import check, stoppable
from domainfusion.locks import exclusive
from domainfusion.sweep.ledger import Entry, Ledger
from domainfusion.sweep.options import SweepConfig, gpus_of_run, slots_of
from domainfusion.sweep.plan import Plan, build_plan
from domainfusion.sweep.progress import Progress
from domainfusion.sweep.sharing import compute_shared, find_jobs
from domainfusion.sweep.spaces import read_overrides
from domainfusion.sweep.trials import Pruning, RunSearch, RunTrial, Stopping, Telling

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # whose tables of errors cannot be switched off
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run writes its own records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops it (`Stopping`)
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
STATE = ".tune"  # Tune's own files, in the sweep's folder: all machines must find them


def run_sweep(
    options: SweepConfig, config: TrainConfig, output: Path, *, search: Search | None = None, command: str = ""
) -> dict[str, Any]:
    """Make all runs of a sweep that are not there yet; their summary by data set, also in `sweep.json`.

    {"datasets": {name: summary in the form of benchmark.json, with the draws that were chosen}, "failed": [{"run",
    "folder", "log", "reason"}], "runs": how many in each state}. One failed run does not stop the others.

    Raises `UsageError` for what would fail later, `Busy` where another sweep is at work in `output`, `Interrupted`
    where a signal asks to stop, when the runs are saved.
    """
    plan = build_plan(options, config, output, search)
    with exclusive(output):
        ledger = Ledger(plan)
        progress = Progress(ledger)
        if ledger.left:
            with cluster(options) as (cpus, gpus):
                make_runs(ledger, progress, cpus, gpus)
        return summarize(ledger, command)


@contextlib.contextmanager
def cluster(options: SweepConfig) -> Iterator[tuple[float, float]]:
    """A connection to the cluster, or a local one for the length of the block; its CPUs and GPUs."""
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    threads = str(max(1, int(options.cpus_per_run)))
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if cache := os.environ.get("DOMAINFUSION_CACHE"):
        environment["DOMAINFUSION_CACHE"] = str(Path(cache).resolve())
    local: dict[str, Any] = {}
    if options.address is None:
        local = {"num_cpus": options.cpus, "include_dashboard": False}
    try:
        ray.init(
            address=options.address or "local", log_to_driver=False, logging_level=logging.ERROR,
            runtime_env={"env_vars": environment}, **local,
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        if options.address is None:
            raise UsageError(f"no local Ray cluster could be started: {first}") from error
        raise UsageError(f"--address {options.address}: no Ray cluster answers there ({first})") from error
    try:
        found = ray.cluster_resources()
        yield found.get("CPU", 0.0), found.get("GPU", 0.0)
    finally:
        ray.shutdown()


def make_runs(ledger: Ledger, progress: Progress, cpus: float, gpus: float) -> None:
    """Compute what the runs share, then make them, on a cluster of `cpus` and `gpus`."""
    plan = ledger.plan
    options = plan.options
    each = gpus_of_run(options, gpus, plan.config.device)
    slots = slots_of(options.cpus_per_run, each, cpus, gpus)
    if not slots:
        progress.say(
            f"note: the cluster has {cpus:g} CPUs and {gpus:g} GPUs and a run takes {options.cpus_per_run:g} and "
            f"{each:g}: runs wait until there are more"
        )
    progress.say(f"{ledger.left} of {len(ledger.entries)} runs to make, {slots} at a time, in {plan.output}")
    with stoppable():
        if options.share:
            known = [(e.run, e.config) for e in ledger.entries.values() if e.outcome is None and ledger.resolve(e)]
            jobs = find_jobs(plan, [(run, config) for run, config in known if config is not None])
            compute_shared(jobs, plan, cpus=options.cpus_per_run, gpus=each, slots=max(1, slots), say=progress.say)
        fit(ledger, progress, options.cpus_per_run, each)
        progress.tick(now=True)
        check()


def fit(ledger: Ledger, progress: Progress, cpus: float, gpus: float) -> None:
    """Have every run that is left made as a trial of Tune."""
    options, folder = ledger.plan.options, (ledger.plan.output / STATE).resolve()
    shutil.rmtree(folder, ignore_errors=True)  # of a driver that died; nothing in it is needed
    search = RunSearch(ledger, progress, threads=max(1, int(cpus)), gpus=gpus)
    tuner = tune.Tuner(
        tune.with_resources(RunTrial, {"cpu": cpus, "gpu": gpus}),
        tune_config=tune.TuneConfig(
            search_alg=search, num_samples=ledger.left, scheduler=Pruning(search) if options.prune else None,
            trial_name_creator=name_of_trial, trial_dirname_creator=name_of_trial,
        ),
        run_config=tune.RunConfig(
            name="state", storage_path=str(make_folder(folder)), verbose=0, stop=Stopping(),
            callbacks=[Telling(search)], checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=options.retries),
        ),
    )  # fmt: skip
    try:
        tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def name_of_trial(trial: Any) -> str:
    """A trial's name and folder among Tune's files."""
    return str(trial.trial_id)


def best_draws(ledger: Ledger) -> dict[str, dict[tuple[int, str, str], Entry]]:
    """{data: {(trial, target, algorithm): the finished draw of the best source validation}}; of equals the last, as
    `benchmark` and `collect` have it."""
    chosen: dict[str, dict[tuple[int, str, str], Entry]] = {data: {} for data in ledger.plan.datasets}
    for place, entries in ledger.by_place.items():
        done = [entry for entry in entries if entry.status == "done"]
        if done:
            key = place.trial, place.target, place.algorithm
            chosen[place.data][key] = max(reversed(done), key=_validation)
    return chosen


def _validation(entry: Entry) -> float:
    value = entry.outcome.validation if entry.outcome else None
    return -1.0 if value is None else value


def summarize(ledger: Ledger, command: str) -> dict[str, Any]:
    """What the sweep came to; `sweep.json` is written beside the runs of each data set."""
    plan = ledger.plan
    algorithms = list(dict.fromkeys(run.place.algorithm for run in plan.runs))
    states = [entry.status for entry in ledger.entries.values()]
    summary: dict[str, Any] = {
        "datasets": {}, "runs": {name: states.count(name) for name in sorted(set(states))},
        "failed": [
            {"run": entry.run.name, "folder": str(entry.run.folder), "log": str(entry.run.folder / "run.log"),
             "reason": entry.outcome.reason if entry.outcome else ""}
            for entry in ledger.failed()
        ],
    }  # fmt: skip
    for data, chosen in best_draws(ledger).items():
        targets, dataset = plan.targets[data], plan.datasets[data]
        wanted = [
            (trial, target, name) for trial in range(plan.options.trials) for target in targets for name in algorithms
        ]
        whole = [t for t in range(plan.options.trials) if all(key in chosen for key in wanted if key[0] == t)]
        if not whole:
            continue
        # The accuracy on the target is reported, and took no part in the choice.
        results = {key: read_json(entry.run.folder / "result.json") for key, entry in chosen.items() if key[0] in whole}
        found = {"command": command, "dataset": dataset.name} | summarize_runs(results, whole, targets, algorithms)
        if plan.options.draws == 1:  # then this is the benchmark of the same options
            write_json(plan.dataset_folder(data) / "benchmark.json", found)
        else:
            found["hparams_seeds"] = list(range(plan.options.draws))
            found["space"] = list(plan.options.space)
            found["chosen"] = {
                name: {target: [_chosen(plan, chosen[trial, target, name]) for trial in whole] for target in targets}
                for name in algorithms
            }
        summary["datasets"][dataset.name] = found
        write_json(plan.dataset_folder(data) / "sweep.json", found)
    return summary


def _chosen(plan: Plan, entry: Entry) -> dict[str, Any]:
    assert entry.config is not None
    return {"hparams_seed": entry.run.hparams_seed, **read_overrides(entry.config, plan.space)}
