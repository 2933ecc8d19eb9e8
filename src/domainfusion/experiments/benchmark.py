"""Every algorithm on every target and trial, by the same options, with the table of their accuracies."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from domainfusion.config import TrainConfig
from domainfusion.config_files import flat_values, plain_values
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import Busy, UsageError, show_note
from domainfusion.experiments.descriptions import describe_environment
from domainfusion.experiments.runs import train_run
from domainfusion.experiments.search import SELECTIONS, Plan, PlannedRun, Search, choose
from domainfusion.experiments.shared_tables import make_shared_tables
from domainfusion.files import write_json
from domainfusion.registry import ALGORITHMS

Run = tuple[int, str, str]  # trial, target, algorithm
T = TypeVar("T")


def run_benchmark(
    data: str, config: TrainConfig, algorithms: list[str], trials: list[int], targets: list[str] | None, folder: Path,
    *, command: str = "", search: Search | None = None, track: Sequence[str] = (), progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train every (algorithm, target, trial) in `folder/algorithm/target/trial-t`; finished runs are not made again.

    With a `search` each is trained with several draws of hyperparameters, of which one counts. Several processes with
    the same command share the work. Returns and writes `benchmark.json` in the form of the committed results:
    {"command", "versions", "accuracy": {algorithm: {target: [per cent, by trial]}}, ...}.
    """
    if not algorithms or not trials:
        raise UsageError("a benchmark needs one of --algorithms and one of --trials at least")
    algorithms = list(dict.fromkeys(algorithms))
    for algorithm in algorithms:
        ALGORITHMS.get(algorithm)
    dataset = load_dataset(data, config.data)
    chosen = list(dict.fromkeys(targets or dataset.domains))
    for trial in trials:  # what the protocol does not have, or leaves without images, is refused before any training
        for target in chosen:
            build_split(dataset, config.data, target, trial)
    if search is None:  # the options are what they are: nothing is drawn that the caller may have drawn already
        search = Search(draws=(config.hparams_seed,), given=flat_values(plain_values(config)))
    plan = Plan(data, config, algorithms, trials, chosen, dataset.domains, dataset.name, folder, search)
    plan.check()
    runs = plan.runs()
    options = {run: plan.options(run) for run in runs}  # a draw that an option does not take is refused now
    results: dict[PlannedRun, dict[str, Any]] = {}
    summary: dict[str, Any] = {}

    make_shared_tables(data, [(options[run], folder / run.place) for run in runs], progress=progress)

    def make(run: PlannedRun) -> dict[str, Any]:
        return train_run(data, options[run], folder / run.place, progress=progress, track=track)

    for run, result in finished(runs, make):
        results[run] = result
        whole = [trial for trial in trials if all(item in results for item in runs if item.trial == trial)]
        if whole and whole != summary.get("trials"):
            summary = {"command": command, "dataset": dataset.name} | summarize_plan(plan, results, whole)
            write_json(folder / "benchmark.json", summary)
    return summary


def summarize_plan(plan: Plan, results: dict[PlannedRun, dict[str, Any]], trials: list[int]) -> dict[str, Any]:
    """What `summarize_runs` says of the draws that count in complete trials; how they were chosen, and which."""
    cells = {
        (trial, target, algorithm): choose(plan, results, trial, target, algorithm)
        for algorithm in plan.algorithms for target in plan.targets for trial in trials
    }  # fmt: skip
    summary = summarize_runs(cells, trials, plan.targets, plan.algorithms)
    summary["selection"] = SELECTIONS[plan.search.selection]
    if plan.search.selection == "leave-one-domain-out":
        summary["steps"] = {
            algorithm: {t: [cells[trial, t, algorithm].get("step") for trial in trials] for t in plan.targets}
            for algorithm in plan.algorithms
        }
    if plan.search.draws != (0,):
        summary["hparams_seeds"] = list(plan.search.draws)
        summary["draws"] = {
            algorithm: {t: [cells[trial, t, algorithm]["draw"] for trial in trials] for t in plan.targets}
            for algorithm in plan.algorithms
        }
    return summary


def config_of(config: TrainConfig, run: Run) -> TrainConfig:
    """The options of one run; its seed is its trial's number plus `config.seed`."""
    trial, target, algorithm = run
    return dataclasses.replace(config, algorithm=algorithm, target=target, trial=trial, seed=config.seed + trial)


def finished(
    runs: list[T], make: Callable[[T], dict[str, Any]], pause: float = 5.0
) -> Iterator[tuple[T, dict[str, Any]]]:
    """(run, result) of each run as it is made, those that other processes are at work on last.

    So several processes with the same command share a benchmark: each makes what no other has begun, and waits for the
    rest, `pause` seconds at a time.
    """
    waiting = list(runs)
    said = False
    while waiting:
        busy = []
        for run in waiting:
            try:
                result = make(run)
            except Busy as error:
                busy.append(run)
                if not said:
                    show_note(f"{error.args[0].split(':')[0]}; going on with the other runs")
                    said = True
                continue
            yield run, result
        if len(busy) == len(waiting):
            time.sleep(pause)
        waiting = busy


def summarize_runs(
    results: dict[Run, dict[str, Any]], trials: list[int], targets: list[str], algorithms: list[str]
) -> dict[str, Any]:
    """Accuracies, source validation (None where nothing was chosen: zero-shot) and times of complete trials."""
    accuracy: dict[str, dict[str, list[float]]] = {}
    validation: dict[str, dict[str, list[float | None]]] = {}
    seconds: dict[str, list[float]] = {}
    for algorithm in algorithms:
        mine = {target: [results[trial, target, algorithm] for trial in trials] for target in targets}
        accuracy[algorithm] = {t: [round(100 * r["target_accuracy"], 3) for r in found] for t, found in mine.items()}
        validation[algorithm] = {
            t: [None if r["validation_accuracy"] is None else round(100 * r["validation_accuracy"], 3) for r in found]
            for t, found in mine.items()
        }
        seconds[algorithm] = [round(mine[t][k]["seconds"], 1) for k in range(len(trials)) for t in targets]
    environment = describe_environment()
    first = results[trials[0], targets[0], algorithms[0]]
    return {
        "protocol": first["protocol"], "trials": trials, "selection": "training-domain validation",
        "accuracy": accuracy, "validation": validation, "seconds": seconds, "versions": environment["versions"],
        "processor": environment["processor"],
    }  # fmt: skip
