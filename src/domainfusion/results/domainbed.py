"""Reading records (`results.jsonl`, one JSON object a line) of DomainBed's form: its own, SWAD's and ours."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainfusion.results.model_selection import domain_count


@dataclasses.dataclass(frozen=True)
class Found:
    """Records below some folders, and what was odd about their files."""

    records: list[dict[str, Any]]
    notes: list[str]


def read_records(roots: list[Path]) -> Found:
    """All records in files `results.jsonl` at or below `roots`: DomainBed's, SWAD's and ours.

    A last line that a killed run cut short is left out and noted, and so is any other line that is no record. So are
    all records of a run of ours that is not finished; DomainBed's own scripts read theirs, and these do.
    """
    records: list[dict[str, Any]] = []
    notes: list[str] = []
    paths = sorted({path for root in roots for path in root.rglob("results.jsonl")})
    for path in paths:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                read = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = "cut short" if number == len(lines) else f"no record ({error})"
                notes.append(f"{path}, line {number}: {reason}; left out")
                continue
            try:
                record = normalize_record(read)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                notes.append(f"{path}, line {number}: no record ({error}); left out")
                continue
            record["folder"] = str(path.parent)
            found.append(record)
        if found and is_unfinished(path.parent, found):
            last = found[-1]
            notes.append(
                f"{path}: the run is not finished (step {last['step']} of {last['args'].get('steps', '?')}); "
                "left out until its `train` command has gone on to the end"
            )
        else:
            records += found
    return Found(records, notes)


def is_finished(folder: Path) -> bool:
    """Whether a run's folder says that it came to its end."""
    return any((folder / name).exists() for name in ("result.json", "done"))


def is_unfinished(folder: Path, records: Sequence[dict[str, Any]]) -> bool:
    """Whether these are records of a run of ours that did not come to its end.

    Where only the file of records was copied, it is known by several evaluations that stop before the last step: a
    single record may be of the weights that were selected, or of a method that is not trained.
    """
    if is_finished(folder):
        return False
    if (folder / "config.toml").exists():
        return True
    args, last = records[-1]["args"], records[-1]["step"]
    steps = args.get("steps")
    ours = "env_names" in args  # DomainBed's and SWAD's have none
    return ours and len(records) > 1 and isinstance(steps, int) and last < steps


def normalize_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record in DomainBed's form; SWAD's differ: `env0_in` for `env0_in_acc`, `real_test_envs` for the run's own.

    Raises KeyError, TypeError, ValueError, OverflowError or AttributeError where it is neither.
    """
    args = dict(record["args"])
    values = dict(record)
    if "env0_out_acc" not in record and "env0_out" in record:
        for name in list(values):
            if name.startswith("env") and name.endswith(("_in", "_out")):
                values[f"{name}_acc"] = values.pop(name)
        args["test_envs"] = args.get("real_test_envs", args["test_envs"])
    # Without hyperparameter seeds, runs with other hyperparameters are other draws.
    if "hparams_seed" not in args:
        args["hparams_seed"] = json.dumps(record.get("hparams"), sort_keys=True, default=str)
    values["args"] = {
        **args, "dataset": str(args["dataset"]), "algorithm": str(args["algorithm"]),
        "test_envs": [int(number) for number in args["test_envs"]], "trial_seed": int(args["trial_seed"]),
    }  # fmt: skip
    values["step"] = int(values["step"])
    _check_accuracies(values)
    return values


def _check_accuracies(record: dict[str, Any]) -> None:
    """Raise ValueError where accuracies are no shares, from 0 to 1, or lack what its targets need.

    A target of few images has none held out: that accuracy is null (NaN in older files), and None here.
    """
    args = record["args"]
    held_out = {f"env{target}_out_acc" for target in args["test_envs"]}
    for name, value in record.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in held_out and (value is None or (number and math.isnan(value))):
            record[name] = None
        elif re.fullmatch(r"env\d+_(in|out)_acc", name) and not (number and 0 <= value <= 1):
            raise ValueError(f"{name} is {value!r:.20}")
    count = domain_count(record)
    for target in args["test_envs"]:
        if not 0 <= target < count or f"env{target}_in_acc" not in record:
            raise ValueError(f"it has no accuracies of its target, domain {target}")
    if len(set(args["test_envs"])) != len(args["test_envs"]) or count <= len(args["test_envs"]):
        raise ValueError(f"its targets are {args['test_envs']} of {count} domains")
    names = args.get("env_names")
    if not (isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)):
        args.pop("env_names", None)
    if not isinstance(args["hparams_seed"], (int, str)):
        args["hparams_seed"] = json.dumps(args["hparams_seed"], sort_keys=True)
