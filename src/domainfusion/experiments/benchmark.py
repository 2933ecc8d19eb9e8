"""Every algorithm on every target and trial, by the same options, with the table of their accuracies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import UsageError
from domainfusion.experiments.runs import describe_environment, train_run
from domainfusion.files import write_json
from domainfusion.registry import ALGORITHMS


def run_benchmark(
    data: str, config: TrainConfig, algorithms: list[str], trials: list[int], targets: list[str] | None, folder: Path,
    *, command: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Train every (algorithm, target, trial) in `folder/algorithm/target/trial-t`; finished runs are not made again.

    The seed of a run is its trial's number plus `config.seed`. Returns and writes `benchmark.json` in the form of the
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
    accuracy: dict[str, dict[str, list[float]]] = {name: {target: [] for target in chosen} for name in algorithms}
    validation: dict[str, dict[str, list[float | None]]] = {
        name: {target: [] for target in chosen} for name in algorithms
    }
    seconds: dict[str, list[float]] = {name: [] for name in algorithms}
    protocol = ""
    for trial in trials:
        for target in chosen:
            for algorithm in algorithms:
                run_config = dataclasses.replace(
                    config, algorithm=algorithm, target=target, trial=trial, seed=config.seed + trial
                )
                result = train_run(data, run_config, folder / algorithm / target / f"trial-{trial}")
                accuracy[algorithm][target].append(round(100 * result["target_accuracy"], 3))
                validated = result["validation_accuracy"]  # none where nothing was chosen: zero-shot classifiers
                validation[algorithm][target].append(None if validated is None else round(100 * validated, 3))
                seconds[algorithm].append(round(result["seconds"], 1))
                protocol = result["protocol"]
        summary = {
            "command": command, "dataset": dataset.name, "protocol": protocol,
            "trials": trials[: trials.index(trial) + 1],
            "selection": "training-domain validation", "accuracy": accuracy, "validation": validation,
            "seconds": seconds, "versions": describe_environment()["versions"],
            "processor": describe_environment()["processor"],
        }  # fmt: skip
        write_json(folder / "benchmark.json", summary)
    return summary
