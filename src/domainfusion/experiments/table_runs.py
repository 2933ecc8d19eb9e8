"""The runs of one of the paper's tables on a data set: which they are, their making, and what they came to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import UsageError
from domainfusion.experiments.arms import arm_config, as_many_steps, resolve_arm, run_folder, run_key
from domainfusion.experiments.benchmark import Run, config_of, finished, summarize_runs
from domainfusion.experiments.paper_tables import Arm, Table
from domainfusion.experiments.runs import train_run
from domainfusion.files import write_json


class OutOfBudget(Exception):
    """The time that was given is up; what has been made is kept."""


def run_table(
    table: Table, data: str, config: TrainConfig, trials: Sequence[int], targets: Sequence[str] | None, folder: Path,
    *, command: str = "", deadline: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make the runs of a table on a data set, as far as time allows, and return (and write) what they came to.

    Args:
        deadline: `time.monotonic()` after which no further run is begun.

    Returns:
        what `benchmark.json` holds, its algorithms being the arms' keys, with "table", "arms", "reference", "runs" made
        and "planned", "order" of the rows; "accuracy" is empty until one trial is complete.
    """
    dataset = load_dataset(data, config.data)
    plan = plan_table(table, data, dataset, config, trials, targets, folder)
    chosen = list(dict.fromkeys(targets or dataset.domains))
    same = same_rows(table, config)
    results: dict[Run, dict[str, Any]] = {}

    def make(run: Run) -> dict[str, Any]:
        options, place = plan[run]
        if deadline is not None and time.monotonic() > deadline and not (place / "result.json").exists():
            raise OutOfBudget
        return train_run(data, options, place)

    try:
        for run, result in finished(list(plan), make):
            results[run] = result
    except OutOfBudget:
        pass
    whole = [trial for trial in trials if all(run in results for run in plan if run[0] == trial)]
    made = len(results)
    results |= {
        (trial, target, key): results[trial, target, same[key]]
        for trial in whole for target in chosen for key in same if same[key] != key
    }  # fmt: skip
    summary: dict[str, Any] = {
        "command": command, "table": table.name, "title": table.title, "note": table.note, "dataset": dataset.name,
        "reference": table.reference, "runs": made, "planned": len(plan), "trials": whole, "accuracy": {},
        "arms": {arm.key: describe_arm(resolve_arm(config, arm), same[arm.key]) for arm in table.arms},
        "order": [arm.key for arm in table.arms],  # which a JSON object does not keep
    }  # fmt: skip
    if whole:
        summary |= summarize_runs(results, whole, chosen, list(same))
    write_json(folder / f"{table.name}-{Path(data).name}.json", summary)
    return summary


def same_rows(table: Table, config: TrainConfig) -> dict[str, str]:
    """{key of a row: that of the first row which comes to the same runs}: with the user's options (a preset's, say) two
    rows may, and these are made once."""
    arms = {arm.key: arm_config(config, arm) for arm in table.arms}
    return {key: next(first for first in arms if arms[first] == arms[key]) for key in arms}


def plan_table(
    table: Table, data: str, dataset: MultiDomainDataset, config: TrainConfig, trials: Sequence[int],
    targets: Sequence[str] | None, folder: Path,
) -> dict[Run, tuple[TrainConfig, Path]]:  # fmt: skip
    """The runs of a table on the data set `data`, each once: their options and folders.

    Raises `UsageError` for a trial or target that the data set or its protocol does not have.
    """
    if not trials:
        raise UsageError("a table needs one trial at least: --trials 1")
    for trial in trials:
        build_split(dataset, config.data, None, trial)
    chosen = list(dict.fromkeys(targets or dataset.domains))
    for target in chosen:
        dataset.index_of(target)
    arms = [table.arm(key) for key, first in same_rows(table, config).items() if key == first]

    def options_of(arm: Arm, run: Run) -> TrainConfig:
        options = dataclasses.replace(config_of(arm_config(config, arm), run), algorithm=arm.algorithm)
        if not (arm.all_images and config.epochs):
            return options
        trial, target, _ = run
        return as_many_steps(options, config, build_split(dataset, config.data, target, trial, config.second_target))

    return {
        (run := (trial, target, arm.key)): (
            options_of(arm, run), run_folder(folder, data, run_key(config, arm), target, trial)
        )
        for trial in trials for target in chosen for arm in arms
    }  # fmt: skip


def describe_arm(arm: Arm, same: str) -> dict[str, Any]:
    """What the table's JSON says of a row: {"title", "options", "paper"}; "against" where it is not compared with the
    table's reference, "same" where its runs are those of another row."""
    found: dict[str, Any] = {"title": arm.title, "options": arm.described(), "paper": dict(arm.paper)}
    if arm.against is not None:
        found["against"] = arm.against
    if same != arm.key:
        found["same"] = same
    return found
