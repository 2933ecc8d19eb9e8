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
from domainfusion.errors import UsageError, nearest

Flat = tyro.conf.arg(name="")
T = TypeVar("T")
# Groups of options that other algorithms than ERM and DomainFusion have.
OTHER_METHODS = {"--zero-shot", "--mixup", "--mixstyle", "--coral", "--groupdro", "--rsc", "--cdga", "--dsi"}


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
