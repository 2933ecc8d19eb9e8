"""What DomainBed's scripts make of a folder of runs, written anew from what they do: the reference for our own pass.

`load_records` reads DIR/*/results.jsonl and nothing below; `tables` groups by trial, data set, algorithm and target,
and selects as its three methods do (domainbed/lib/reporting.py, model_selection.py, scripts/collect_results.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]
Key = tuple[str, str, int, int]  # data set, algorithm, target, trial


def load_records(path: Path) -> list[Record]:
    """The records of every folder in `path`, whose lines lose their last letter; entries without the file are none."""
    records = []
    for entry in os.listdir(path):
        try:
            with open(os.path.join(path, entry, "results.jsonl")) as file:
                for line in file:
                    records.append(json.loads(line[:-1]))
        except OSError:
            pass
    return records


def _groups(records: list[Record], key: Any) -> list[list[Record]]:
    """Records of equal keys together, in the order of the keys (which must be comparable)."""
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return [found[value] for value in sorted(found)]


def _domains(record: Record) -> int:
    count = 0
    while f"env{count}_out_acc" in record:
        count += 1
    return count


def _training_domain(records: list[Record]) -> tuple[float, float] | None:
    choices = []
    for record in records:
        if len(record["args"]["test_envs"]) == 1:
            target = record["args"]["test_envs"][0]
            values = [record[f"env{i}_out_acc"] for i in range(_domains(record)) if i != target]
            choices.append((np.mean(values), record[f"env{target}_in_acc"]))
    return max(choices, key=lambda choice: choice[0]) if choices else None


def _leave_one_out(records: list[Record]) -> tuple[float, float] | None:
    choices = []
    for found in _groups(records, lambda record: record["step"]):
        single = [record for record in found if len(record["args"]["test_envs"]) == 1]
        if len(single) != 1:
            continue
        target = single[0]["args"]["test_envs"][0]
        values = np.zeros(_domains(found[0])) - 1
        for record in found:
            if len(record["args"]["test_envs"]) == 2:
                other = (set(record["args"]["test_envs"]) - {target}).pop()
                values[other] = record[f"env{other}_in_acc"]
        left = [*values[:target], *values[target + 1 :]]
        if -1 not in left:
            choices.append((np.sum(left) / (len(values) - 1), single[0][f"env{target}_in_acc"]))
    return max(choices, key=lambda choice: choice[0]) if choices else None


def _oracle(records: list[Record]) -> tuple[float, float] | None:
    single = [record for record in records if len(record["args"]["test_envs"]) == 1]
    if not single:
        return None
    target = single[0]["args"]["test_envs"][0]
    last = sorted(single, key=lambda record: record["step"])[-1]
    return last[f"env{target}_out_acc"], last[f"env{target}_in_acc"]


METHODS = {"training-domain": _training_domain, "leave-one-domain-out": _leave_one_out, "oracle": _oracle}


def selected(records: list[Record], method: str) -> dict[Key, float]:
    """The accuracy that is reported for each group; groups in which nothing can be selected are left out."""
    grouped: dict[Key, list[Record]] = {}
    for record in records:
        args = record["args"]
        for target in args["test_envs"]:
            grouped.setdefault((args["dataset"], args["algorithm"], target, args["trial_seed"]), []).append(record)
    reported = {}
    for key, found in grouped.items():
        draws = _groups(found, lambda record: record["args"]["hparams_seed"])
        choices = [choice for choice in map(METHODS[method], draws) if choice is not None]
        if choices:
            reported[key] = sorted(choices, key=lambda choice: choice[0])[::-1][0][1]
    return reported


def table(records: list[Record], method: str, dataset: str, environments: int) -> list[list[str]]:
    """The rows of one of its tables (algorithms sorted by name): mean +/- error for each target, and their mean."""
    accuracies = selected(records, method)
    rows = []
    for algorithm in sorted({record["args"]["algorithm"] for record in records}):
        cells, means = [], []
        for target in range(environments):
            shares = [value for key, value in accuracies.items() if key[:3] == (dataset, algorithm, target)]
            means.append(100 * np.mean(shares) if shares else None)
            error = 100 * np.std(shares / np.sqrt(len(shares))) if shares else 0
            cells.append(f"{means[-1]:.1f} +/- {error:.1f}" if shares else "X")
        rows.append([algorithm, *cells, "X" if None in means else f"{sum(means) / len(means):.1f}"])
    return rows
