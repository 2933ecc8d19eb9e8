"""Every algorithm on every target and trial, by the same options, with the table of their accuracies."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import Busy, UsageError
from domainfusion.experiments.runs import describe_environment, train_run
from domainfusion.files import write_json
from domainfusion.registry import ALGORITHMS

Run = tuple[int, str, str]  # trial, target, algorithm


def run_benchmark(
    data: str, config: TrainConfig, algorithms: list[str], trials: list[int], targets: list[str] | None, folder: Path,
    *, command: str = "", track: Sequence[str] = (), progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train every (algorithm, target, trial) in `folder/algorithm/target/trial-t`; finished runs are not made again.

    Several processes with the same command share the work. Returns and writes `benchmark.json` in the form of the
    committed results: {"command", "versions", "accuracy": {algorithm: {target: [per cent, by trial]}}, ...}.
    """
    if not algorithms or not trials:
        raise UsageError("a benchmark needs one of --algorithms and one of --trials at least")
    algorithms = list(dict.fromkeys(algorithms))
    for algorithm in algorithms:
        ALGORITHMS.get(algorithm)
    dataset = load_dataset(data, config.data)
    for trial in trials:  # a trial that the protocol does not have is refused before anything is trained
        build_split(dataset, config.data, None, trial)
    chosen = list(dict.fromkeys(targets or dataset.domains))
    for target in chosen:
        dataset.index_of(target)
    runs = [(trial, target, algorithm) for trial in trials for target in chosen for algorithm in algorithms]
    results: dict[Run, dict[str, Any]] = {}
    summary: dict[str, Any] = {}

    def make(run: Run) -> dict[str, Any]:
        where = folder / run[2] / run[1] / f"trial-{run[0]}"
        return train_run(data, config_of(config, run), where, progress=progress, track=track)

    for run, result in finished(runs, make):
        results[run] = result
        whole = [trial for trial in trials if all(item in results for item in runs if item[0] == trial)]
        if whole and whole != summary.get("trials"):
            summary = {"command": command, "dataset": dataset.name} | summarize_runs(results, whole, chosen, algorithms)
            write_json(folder / "benchmark.json", summary)
    return summary


def config_of(config: TrainConfig, run: Run) -> TrainConfig:
    """The options of one run; its seed is its trial's number plus `config.seed`."""
    trial, target, algorithm = run
    return dataclasses.replace(config, algorithm=algorithm, target=target, trial=trial, seed=config.seed + trial)


def finished(
    runs: list[Run], make: Callable[[Run], dict[str, Any]], pause: float = 5.0
) -> Iterator[tuple[Run, dict[str, Any]]]:
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
                    print(f"note: {error.args[0].split(':')[0]}; going on with the other runs", file=sys.stderr)
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
