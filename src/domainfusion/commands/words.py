"""The words of the command line, read off the commands themselves: which options each has, and what may follow them.

Nothing here is a list of its own but the names of the options whose values are known by name (`--algorithm`).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pathlib
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import tyro

from domainfusion.registry import ALGORITHMS, BACKBONES, DATASETS, LDMS, PRESETS, TRACKERS

Places = Literal["", "files", "domains"]
SHELLS = ("bash", "zsh", "fish")
DEVICES = ("auto", "cpu", "cuda", "mps")
POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1]


@dataclasses.dataclass(frozen=True)
class Values:
    """What may follow an option, or stand alone."""

    words: tuple[str, ...] = ()
    places: Places = ""  # files and folders, or the domains of the data set that was named
    count: Literal["none", "one", "several"] = "one"


@dataclasses.dataclass(frozen=True)
class Option:
    """A long option."""

    flag: str
    summary: str
    values: Values


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, or one of a command's own ("data verify")."""

    name: str
    summary: str
    options: tuple[Option, ...]
    arguments: Values


def commands(summaries: Mapping[str, str], places: Mapping[str, str]) -> list[Command]:
    """Every command with its options, in the order of the help.

    Args:
        summaries: what each command does; `list` and `completion` have options of their own making.
        places: the module of `domainfusion.commands` that each other one is in.
    """
    found = []
    for name, summary in summaries.items():
        if name == "list":
            kinds = Values(("algorithms", "datasets", "backbones", "ldms", "presets", "trackers"))
            found.append(Command(name, summary, (Option("--json", "Print as JSON", Values(count="none")),), kinds))
        elif name == "completion":
            found.append(Command(name, summary, (), Values(SHELLS)))
        elif subcommands := subcommands_of(name, places[name]):
            found.append(Command(name, summary, (), Values(tuple(subcommands))))
            found += [describe(f"{name} {sub}", _first_line(kind.__doc__), kind) for sub, kind in subcommands.items()]
        else:
            found.append(describe(name, summary, command_class(name, places[name])))
    return found


def command_class(name: str, place: str) -> type:
    """The class that a command's words are parsed as: in its module, `train` has `TrainCommand`."""
    module = importlib.import_module(f"domainfusion.commands.{place}")
    found: type = getattr(module, f"{name.title().replace('_', '')}Command")
    return found


def subcommands_of(name: str, place: str) -> dict[str, type]:
    """{name: class} of a command's own commands."""
    module = importlib.import_module(f"domainfusion.commands.{place}")
    own = getattr(module, "SUBCOMMANDS", {}) if place == name else {}
    return {sub: kind for sub, (kind, _) in own.items()}


def describe(name: str, summary: str, kind: type) -> Command:
    """A command whose words are parsed as `kind`."""
    options: list[Option] = []
    arguments: list[Values] = []
    for field, hint, text, prefix in _fields(kind):
        plain, positional = _plain(hint)
        if positional:
            arguments.append(_values(field, plain, name))
            continue
        flag = (prefix + field).replace("_", "-")
        options.append(Option(f"--{flag}", text, _values(field, plain, name)))
        if plain is bool:
            stem, _, leaf = flag.rpartition(".")
            options.append(
                Option(f"--{stem}.no-{leaf}" if stem else f"--no-{leaf}", f"Not: {text}", options[-1].values)
            )
    options.append(Option("--help", "Show all options with their defaults", Values(count="none")))
    words = tuple(dict.fromkeys(word for values in arguments for word in values.words))
    places: Places = "files" if any(values.places for values in arguments) else ""
    return Command(name, summary, tuple(options), Values(words, places))


def _fields(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """(name, type, what it is, prefix of its flag) of each field, those of groups included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = field_texts(kind)
    for field in dataclasses.fields(kind):
        group, _ = _plain(hints[field.name])
        if dataclasses.is_dataclass(group):
            yield from _fields(group, "" if field.name == "options" else f"{prefix}{field.name}.")
        else:
            yield field.name, hints[field.name], texts.get(field.name, ""), prefix


def _plain(hint: Any) -> tuple[Any, bool]:
    """A type without what is annotated and without None, and whether it is a positional argument's."""
    positional = False
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            positional |= POSITIONAL in hint.__metadata__
            hint = hint.__origin__
        elif typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        else:
            return hint, positional


def _values(field: str, hint: Any, command: str) -> Values:
    """What may follow the option of a field."""
    if hint is bool:
        return Values(count="none")
    count: Literal["one", "several"] = "one"
    if typing.get_origin(hint) is tuple:
        count, hint = "several", _plain(typing.get_args(hint)[0])[0]
    if typing.get_origin(hint) is Literal:
        return Values(tuple(map(str, typing.get_args(hint))), count=count)
    if hint is pathlib.Path:
        return Values(places="files", count=count)
    if field in ("target", "targets"):
        return Values(places="domains", count=count)
    if field == "images" and hint is str:
        return Values(places="files", count=count)
    return Values(_known(field, command) if hint is str else (), _place(field), count)


def _known(field: str, command: str) -> tuple[str, ...]:
    """The names that a field of text may hold, where they are known."""
    registries = {
        "algorithm": ALGORITHMS, "algorithms": ALGORITHMS, "backbone": BACKBONES, "ldm": LDMS, "track": TRACKERS,
        "data": DATASETS, "preset": PRESETS,
    }  # fmt: skip
    if field in registries:
        return tuple(registries[field].names())
    if field == "device":
        return DEVICES
    if field == "tables":
        from domainfusion.experiments.paper_tables import TABLES

        return (*TABLES, "all")
    if field == "dataset" and command.startswith("data "):
        from domainfusion.data.benchmarks import BENCHMARKS

        return tuple(BENCHMARKS)
    if field == "dataset":
        return tuple(DATASETS.names())
    return ("domainbed", "strict") if field == "protocol" else ()


def _place(field: str) -> Places:
    return "files" if field in ("data", "dataset", "ldm", "init") else ""


def field_texts(kind: type) -> dict[str, str]:
    """The first line of what stands below each field of a class and of those it inherits from."""
    texts: dict[str, str] = {}
    for part in reversed(kind.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
                texts[field.target.id] = _first_line(ast.literal_eval(text.value))
    return texts


def _first_line(text: str | None) -> str:
    """The first sentence of a docstring, or its first line where it goes on."""
    return (text or "").strip().split("\n")[0].split(". ")[0].removesuffix(".").removesuffix(";")
