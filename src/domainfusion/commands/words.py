"""The words of the command line, read off the commands themselves: which options each has, and what may follow them.

Nothing here is a list of its own but the names of the options whose values are known by name (`--algorithm`).
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import typing
from collections.abc import Mapping
from typing import Any, Literal

from domainfusion.commands.fields import plain_type, shown_fields
from domainfusion.registry import ALGORITHMS, BACKBONES, DATASETS, LDMS, PRESETS, TRACKERS

Places = Literal["", "files", "domains"]
SHELLS = ("bash", "zsh", "fish")
DEVICES = ("auto", "cpu", "cuda", "mps")


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
    for field in shown_fields(kind):
        plain, text = plain_type(field.hint), _first_line(field.text)
        values = _values(field.name, plain, name)
        if field.positional:
            arguments.append(values)
            continue
        options.append(Option(field.flag, text, values))
        if plain is bool:
            options.append(Option(field.negative, f"Not: {text}", values))
    options.append(Option("--help", "Show all options with their defaults", Values(count="none")))
    words = tuple(dict.fromkeys(word for values in arguments for word in values.words))
    places: Places = "files" if any(values.places for values in arguments) else ""
    return Command(name, summary, tuple(options), Values(words, places))


def _values(field: str, hint: Any, command: str) -> Values:
    """What may follow the option of a field."""
    if hint is bool:
        return Values(count="none")
    count: Literal["one", "several"] = "one"
    if typing.get_origin(hint) is tuple:
        count, hint = "several", plain_type(typing.get_args(hint)[0])
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
        from domainfusion.experiments.paper_tables import ITEMS

        return (*ITEMS, "all")
    if field == "dataset" and command.startswith("data "):
        from domainfusion.data.benchmarks import BENCHMARKS

        return tuple(BENCHMARKS)
    if field == "dataset":
        return tuple(DATASETS.names())
    return ("domainbed", "strict") if field == "protocol" else ()


def _place(field: str) -> Places:
    return "files" if field in ("data", "dataset", "ldm", "init") else ""


def _first_line(text: str | None) -> str:
    """The first sentence of a docstring, or its first line where it goes on."""
    return (text or "").strip().split("\n")[0].split(". ")[0].removesuffix(".").removesuffix(";")
