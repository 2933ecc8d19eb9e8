"""Runs of one algorithm with several settings: rows of their own in `collect`'s tables.

DomainBed's records go by algorithm, target, trial and draw of the hyperparameters: whatever has these in common it
takes for one draw. Runs of ours may have been made with other options beside: taken for one, the best of them by
validation would stand for all.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from domainfusion.config.settings import without_effect
from domainfusion.config_files import flat_values
from domainfusion.results.model_selection import Record

# What a run is (that is in its record), and where it computes.
NO_SETTINGS = {"hparams_seed", "algorithm", "target", "second_target", "trial", "device"}


def split_variants(records: list[Record]) -> tuple[list[Record], list[str]]:
    """The records, those of runs that only their options tell apart under names of their own, and notes that say so.

    Of each option the value that most runs have goes without saying. Runs that differ in `seed` alone stay together.
    """
    named: list[Record] = []
    notes: list[str] = []
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["args"]["dataset"], record["args"]["algorithm"]].append(record)
    for (dataset, algorithm), mine in groups.items():
        options = {folder: _options_of(Path(folder)) for folder in dict.fromkeys(record["folder"] for record in mine)}
        cells: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for folder, args in {record["folder"]: record["args"] for record in mine}.items():
            if options[folder]:
                cells[tuple(args["test_envs"]), args["trial_seed"], args["hparams_seed"]].append(folder)
        differing = set().union(*(_differing([options[folder] for folder in folders]) for folders in cells.values()))
        if differing == {"seed"}:
            notes.append(
                f"{dataset}, {algorithm}: runs that differ in their seed alone count as one, of which the best by "
                "validation stands"
            )
        differing -= {"seed"}
        if not differing:
            named += mine
            continue
        usual = {name: _most_common(found.get(name) for found in options.values() if found) for name in differing}
        for record in mine:
            said = _remark(options[record["folder"]], usual)
            args = record["args"] | {"algorithm": f"{algorithm} ({said})" if said else algorithm}
            named.append(record | {"args": args})
        others = ", ".join(f"{name} = {_shown(usual[name])}" for name in sorted(usual))
        notes.append(
            f"{dataset}, {algorithm}: there are runs with several settings, each a row of its own; without a remark "
            f"they have {others}"
        )
    return named, notes


def _options_of(folder: Path) -> dict[str, Any]:
    """A run's options by their dotted names, and its data and protocol; none where they are not beside its records."""
    try:
        text = (folder / "config.toml").read_text(encoding="utf-8")
        options = flat_values(tomllib.loads(text))
        idle = NO_SETTINGS | without_effect(options["algorithm"], options)
        options = {name: value for name, value in options.items() if name not in idle}
        data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        return options | {"data": data["data"], "data.protocol": data["protocol"]}
    except (OSError, ValueError, KeyError, TypeError):  # not ours, or damaged
        return {}


def _differing(options: list[dict[str, Any]]) -> set[str]:
    """The options that all of these have, but not with one value; runs of older versions know fewer."""
    common = set.intersection(*(set(found) for found in options))
    return {name for name in common if len({_shown(found[name]) for found in options}) > 1}


def _most_common(values: Iterable[Any]) -> Any:
    found = list(values)
    usual, _ = Counter(map(_shown, found)).most_common(1)[0]
    return next(value for value in found if _shown(value) == usual)


def _remark(options: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """In which options a run differs from the others, in words; those that it does not know it has as they have."""
    return ", ".join(
        f"{name} = {_shown(options[name])}"
        for name in sorted(usual)
        if name in options and _shown(options[name]) != _shown(usual[name])
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
