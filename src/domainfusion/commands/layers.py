"""What lies beneath the command line's options: a file's, a preset's, the defaults; and what of them is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, flat_values, load_toml
from domainfusion.errors import FileError, UsageError, shortened
from domainfusion.presets import load_preset

# What commands have beside the options of a run; a file holds those of a run.
COMMAND_LINE_ONLY = {"algorithms", "config", "data", "expect", "json", "output", "targets", "track", "trials"}
# Of two options for one thing the second counts where it is not 0: given lower down, it gives way to the first.
RIVALS = (("steps", "epochs"), ("evaluations", "evaluate_every"))


def base_options(kind: type, words: list[str], *, other_tables: Collection[str] = ()) -> Any:
    """What lies beneath the command line: the defaults, `--preset NAME` over them, `--config FILE.toml` over that.

    A preset may be named in the file too. Tables `[search]` are checked and left out, `search_table` reads them, and so
    are the file's `other_tables`.
    """
    path = flag_value(words, "--config")
    try:
        values = {} if path is None else load_toml(Path(path))
    except FileError as error:  # it was named on the command line
        raise UsageError(str(error)) from error
    values = {name: value for name, value in values.items() if name not in other_tables}
    has_presets = any(field.name == "preset" for field in dataclasses.fields(kind))
    if has_presets and "search" in values:
        _check_search(values.pop("search"), path or "", shows_help="--help" in words or "-h" in words)
    for name in sorted(set(values) & COMMAND_LINE_ONLY - {field.name for field in dataclasses.fields(kind)}):
        raise UsageError(f"{path}: {name} is no option of a run; give it on the command line: --{name} ...")
    options = build_config(kind, values, path or "")  # by itself first: what is wrong in it is the file's fault
    preset = (flag_value(words, "--preset") or values.get("preset")) if has_presets else None
    flags = _flag_names(words)
    if not preset:
        return options if not values else build_config(kind, without_rivals(values, flags), path or "")
    below = load_preset(preset)
    below.pop("search", None)
    both = merge(without_rivals(below, values), {**values, "preset": preset})
    return build_config(kind, without_rivals(both, flags), path or f"preset {preset}")


def without_rivals(below: dict[str, Any], above: Collection[str]) -> dict[str, Any]:
    """The values `below` without those that would overrule what is given `above` them.

    >>> without_rivals({"epochs": 120, "lr": 0.1}, {"steps"}), without_rivals({"epochs": 120}, {"steps", "epochs"})
    ({'lr': 0.1}, {'epochs': 120})
    """
    beaten = {stronger for weaker, stronger in RIVALS if weaker in above and stronger not in above}
    return {name: value for name, value in below.items() if name not in beaten}


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested values, those of `above` before those of `below`.

    >>> merge({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
    """
    both = {
        name: merge(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }
    return below | both


def search_table(words: list[str]) -> tuple[dict[str, Any] | None, str]:
    """The table `[search]` of `--config`, or of the preset, and where it is from; None where there is none."""
    path = flag_value(words, "--config")
    values = {} if path is None else load_toml(Path(path))
    preset = flag_value(words, "--preset") or values.get("preset")
    for found, origin in ((values, path or ""), (load_preset(preset) if preset else {}, f"preset {preset}")):
        if "search" in found:
            return found["search"], origin
    return None, ""


def _check_search(table: Any, origin: str, *, shows_help: bool) -> None:
    """Raise `UsageError` for what is wrong in a file's table `[search]`, whether or not anything is drawn from it."""
    if not isinstance(table, dict):
        raise UsageError(f"{origin}: search is a table, not {shortened(repr(table))}")
    if not shows_help:  # what knows the options' distributions takes its time to import
        from domainfusion.experiments.hyperparameters import read_space

        read_space(table, origin)


def given_options(words: list[str]) -> set[str]:
    """The dotted names of the options that the command line or `--config` gives; a preset gives none.

    What the file's own table `[search]` is over is none of them: its value there is that of draw 0.
    """
    path = flag_value(words, "--config")
    values = {} if path is None else load_toml(Path(path))
    given = set(flat_values(values))
    if isinstance(values.get("search"), dict):
        from domainfusion.experiments.hyperparameters import searched_options

        given -= searched_options(values["search"])
    return given | _flag_names(words)


def _flag_names(words: list[str]) -> set[str]:
    """The dotted names of the options that a command line gives."""
    found = set()
    for word in words:
        if word.startswith("--"):
            *groups, leaf = word.split("=")[0][2:].replace("-", "_").split(".")
            found |= {".".join([*groups, leaf]), ".".join([*groups, leaf.removeprefix("no_")])}
    return found


def drawn(options: TrainConfig, data: str, words: list[str]) -> TrainConfig:
    """`options` with what `--hparams-seed` draws for those that neither the command line nor `--config` gives."""
    if options.hparams_seed == 0:
        return options
    from domainfusion.experiments.hyperparameters import draw_options

    table, origin = search_table(words)
    return draw_options(options, data, table=table, origin=origin, given=given_options(words))


def flag_value(words: list[str], flag: str) -> str | None:
    """What stands behind a flag on the command line, `--flag X` or `--flag=X`; None where it is not there."""
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
    return None
