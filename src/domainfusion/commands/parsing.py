"""Commands from the command line: typed options, a config file beneath them, errors in one line, output."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import sys
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import ValidationError
from pydantic_core import ArgsKwargs

from domainfusion.commands.help_page import print_help
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, flat_values, load_toml
from domainfusion.errors import FileError, UsageError, nearest, shortened
from domainfusion.presets import load_preset

Flat = tyro.conf.arg(name="")
T = TypeVar("T")
# What commands have beside the options of a run; a file holds those of a run.
COMMAND_LINE_ONLY = {"algorithms", "config", "data", "expect", "json", "output", "targets", "track", "trials"}
# Groups of options that other algorithms than ERM and DomainFusion have.
OTHER_METHODS = {"--zero-shot", "--mixup", "--mixstyle", "--coral", "--groupdro", "--rsc", "--cdga", "--dsi"}

# Of two options for one thing the second counts where it is not 0: given lower down, it gives way to the first.
RIVALS = (("steps", "epochs"), ("evaluations", "evaluate_every"))


def parse(kind: type[T], words: list[str], prog: str, options: Any = None, defaults: dict[str, Any] | None = None) -> T:
    """`kind` from the command line, with `options` as the defaults of its flat config, and others of its `defaults`.

    `--help` prints the command's page and exits.

    Raises `UsageError` for an unknown or missing option (naming the nearest) and a value out of range.
    """
    known, seen = _flags(kind), set()
    for word in words:
        flag = word.split("=")[0]
        if flag.startswith("--") and flag not in ("--help",) and flag.replace("_", "-") not in known:
            near = nearest(flag.replace("_", "-"), sorted(known), 0.4)
            raise UsageError(f"unknown option {flag}" + (f"; did you mean {near}?" if near else ""))
        if flag.startswith("--"):
            option = _switched_on(flag.replace("_", "-"), known)
            if option in seen and option != "--help":
                raise UsageError(f"{option} is given twice; give it once, with all its values behind it")
            seen.add(option)
    # tyro takes the fields of a flat config from the default of the whole command.
    default = None if options is None else _with_options(kind, options, defaults or {})
    if "--help" in words or "-h" in words:
        print_help(kind, prog, default)
        raise SystemExit(0)
    printed = io.StringIO()
    try:
        with _whole_lines(), contextlib.redirect_stderr(printed), contextlib.redirect_stdout(_Boxed()):
            given = {} if default is None else {"default": default}
            command = tyro.cli(kind, args=words, prog=prog, add_help=False, **given)
    except (ValidationError, SystemExit) as error:
        # A value refused by a group (`--data.crop 2`) ends in an exit: what was refused is in the exit's context.
        group, cause = "", error.__context__ if isinstance(error, SystemExit) else error
        while cause is not None and not isinstance(cause, ValidationError):
            group, cause = str(getattr(cause, "arg", "")), cause.__context__
        if cause is None:
            if refusal := one_line(printed.getvalue()):
                raise UsageError(f"{refusal}; see {prog} --help") from None
            sys.stderr.write(printed.getvalue())
            raise
        first = cause.errors()[0]
        where = [*group.split(".")[1:], *(part for part in first["loc"] if isinstance(part, str))]
        if isinstance(first["input"], ArgsKwargs):  # a rule about several options, which names them itself
            raise UsageError(
                (f"--{'.'.join(where)}: " if where else "") + first["msg"].removeprefix("Value error, ")
            ) from None
        value = " ".join(map(str, first["input"])) if isinstance(first["input"], (tuple, list)) else first["input"]
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--{'.'.join(where).replace('_', '-')} {value}: {message}") from None
    if isinstance(output := getattr(command, "output", None), Path):
        refuse_output_in_data(output, *_folders_read(command))
    return command


def _folders_read(command: Any) -> list[str | Path]:
    """What a command is given as data sets, in whichever of the fields that commands have for them."""
    fields = [getattr(command, name, ()) for name in ("data", "corpus", "dataset")]
    # The `dataset` of `data prepare` and the like is a benchmark's name; that of `reproduce` are several folders.
    one = [field for field in fields[:2] if isinstance(field, (str, Path))]
    return [*one, *(item for field in fields if isinstance(field, tuple) for item in field)]


def refuse_output_in_data(output: Path, *folders: str | Path) -> None:
    """Raise `UsageError` where `output` would come to lie among the images of one of the data sets `folders`."""
    for folder in map(Path, folders):
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"--output {output} lies in the images' own folder {folder}, where it would pass for a domain or a "
                "class; choose a folder beside it"
            )


class _Boxed(io.StringIO):
    """A stand-in for stdout by which tyro draws the box of an error: in UTF-8 and without colours."""

    encoding = "utf-8"


@contextlib.contextmanager
def _whole_lines() -> Iterator[None]:
    """A terminal so wide that tyro breaks no line, nor a long word in two."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def one_line(box: str) -> str:
    """What stands in a box of tyro's about a wrong command line, up to its first rule; empty where there is no box.

    This reads a printed text, since tyro offers what is wrong in no other form (what it hands to hooks is private).
    """
    lines = [line.strip("│").rstrip() for line in box.splitlines() if line.startswith("│")]
    lines = list(itertools.takewhile(lambda line: set(line.strip()) - {"─"}, lines))
    if lines and lines[0].strip().startswith("Missing from"):  # indented below: what is missing, and deeper what it is
        names = [line.strip() for line in lines[1:] if re.match(r" {5}\S", line)]
        return f"missing: {', '.join(names)}"
    return plainly(" ".join(line.strip() for line in lines).rstrip("."))


def plainly(text: str) -> str:
    """What tyro says of a wrong word, without Python's own words.

    >>> plainly("Error parsing --steps: invalid literal for int() with base 10: 'many'")
    '--steps many: not a whole number'
    >>> plainly("Unrecognized options: more words")
    'superfluous: more words'
    """
    for pattern, kind in (
        (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (['\"])(.*)\2", "a whole number"),
        (r"Error parsing (\S+): could not convert string to float: (['\"])(.*)\2", "a number"),
    ):
        if found := re.fullmatch(pattern, text):
            return f"{found[1]} {found[3]}: not {kind}"
    return re.sub(r"^Unrecognized options: (?!-)", "superfluous: ", text)


def _with_options(kind: Any, options: Any, defaults: dict[str, Any]) -> Any:
    """A command whose flat config is `options`, its other required fields still to be given."""
    values: dict[str, Any] = {"options": options, **defaults}
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is dataclasses.MISSING:
            values[field.name] = tyro.MISSING
    return kind(**values)


def _flags(kind: Any, prefix: str = "") -> set[str]:
    """Every long flag of a command."""

    flags: set[str] = set()
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        name = (prefix + field.name).replace("_", "-")
        if dataclasses.is_dataclass(hint):
            flags |= _flags(hint, "" if field.name == "options" else f"{prefix}{field.name}.")
        else:
            stem, _, leaf = name.rpartition(".")
            flags |= {f"--{name}", f"--{stem}.no-{leaf}" if stem else f"--no-{leaf}"}
    return flags


def _switched_on(flag: str, known: Collection[str]) -> str:
    """The flag of the option that `flag` sets: that without `no-`, where it switches one off.

    >>> _switched_on("--data.no-flip", {"--data.flip", "--data.no-flip"})
    '--data.flip'
    """
    stem, dot, leaf = flag.removeprefix("--").rpartition(".")
    positive = f"--{stem}{dot}{leaf.removeprefix('no-')}"
    return positive if positive in known else flag


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


def show(value: Any, text: str, as_json: bool) -> None:
    """Print a result for people, or as JSON."""
    print(json.dumps(value, indent=2, sort_keys=True) if as_json else text)


def refuse(words: list[str], flags: Mapping[str, str], command: str) -> None:
    """Raise `UsageError` for options of a single run that `command` sets itself, naming what it has instead."""
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if flag in flags:
            instead = f"; use {flags[flag]}" if flags[flag] else ""
            raise UsageError(f"{flag} does nothing in `domainfusion {command}`, which chooses it itself{instead}")
