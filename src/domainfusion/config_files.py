"""Options from and to TOML and plain values; what is unknown or out of range is refused, naming the field.

A value has the type that its option has: a number in quotes is a string, and no number. (The command line has nothing
but words; they are turned into values of the options' types before they come here.) A whole number is taken where a
number may have decimals, and 400.0 or 4e2 where it has to be whole.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs

from domainfusion.errors import FileError, UsageError, nearest, shortened


def _names(kind: Any, prefix: str = "") -> list[str]:
    names: list[str] = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        names.append(prefix + field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            names += _names(hints[field.name], f"{prefix}{field.name}.")
    return names


def build_config(kind: type, values: dict[str, Any], origin: str) -> Any:
    """`kind` from nested plain values. Raises `UsageError` naming the field, the rule, and the nearest valid name.

    >>> from domainfusion.config import TrainConfig
    >>> build_config(TrainConfig, {"steps": "400"}, "x.toml")
    Traceback (most recent call last):
    domainfusion.errors.UsageError: x.toml: steps = '400': give a whole number, not a string
    >>> build_config(TrainConfig, {"stesp": 3}, "x.toml")
    Traceback (most recent call last):
    domainfusion.errors.UsageError: x.toml: unknown option 'stesp'; did you mean 'steps'?
    """
    _refuse_other_types(kind, values, origin)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = shortened(".".join(str(part) for part in first["loc"]))
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            near = nearest(where, _names(kind), 0.4)
            hint = f"; did you mean {near!r}?" if near else ""
            if near and "." in str(first["loc"][-1]):  # TOML takes a name in quotes for one word, dots and all
                table, _, name = near.rpartition(".")
                bare = f"{near} without quotes" if len(first["loc"]) == 1 else ""
                nested = f"{name} in the table [{table}]" if table else ""
                hint = f" in quotes; write {' or '.join(filter(None, (nested, bare)))}"
            raise UsageError(f"{origin}: unknown option {where!r}{hint}") from None
        if isinstance(first["input"], ArgsKwargs):  # a rule about several options, which names them itself
            rule = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{origin}: {where}: {rule}" if where else f"{origin}: {rule}") from None
        where, rule = _wanted(where, error)
        raise UsageError(f"{origin}: {where} = {shortened(repr(first['input']))}: {rule}") from None


def _wanted(where: str, error: ValidationError) -> tuple[str, str]:
    """The option at fault, and what it takes, in TOML's words rather than Python's."""
    first, *others = error.errors()
    kind, given = first["type"], first["input"]
    if kind == "missing" and isinstance(first["loc"][-1], int):  # a list that is too short; the input is all of it
        lacking = 1 + sum(other["type"] == "missing" and other["loc"][:-1] == first["loc"][:-1] for other in others)
        return where.rpartition(".")[0], f"give {len(given) + lacking} values, not {len(given)}"
    rules = {
        "dataclass_type": f"give a table of options, [{where}]", "string_type": "give a string",
        "tuple_type": "give a list",
    }  # fmt: skip
    if kind == "too_long":
        return where, f"give {first['ctx']['max_length']} values, not {len(given)}"
    return where, rules.get(kind, first["msg"])


# What is wanted of an option, by the types that it takes; pydantic itself would make numbers of strings and truths.
WANTED: dict[frozenset[type], str] = {
    frozenset({bool}): "true or false",
    frozenset({int}): "a whole number",
    frozenset({float}): "a number",
    frozenset({int, float}): "a number",
}
GIVEN: dict[type, str] = {str: "a string", bool: "true or false", int: "a number", float: "a number"}


def _refuse_other_types(kind: Any, values: Any, origin: str, prefix: str = "") -> None:
    """Raise `UsageError` for the first string where a number or a truth is wanted, and for either in place of the
    other. Everything else is left to pydantic, which refuses it."""
    if not isinstance(values, dict):
        return
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            continue
        if dataclasses.is_dataclass(hints[name]):
            _refuse_other_types(hints[name], value, origin, f"{prefix}{name}.")
            continue
        listed = isinstance(value, (list, tuple))
        if listed != (typing.get_origin(hints[name]) is tuple):
            continue
        wanted = frozenset(_scalar_types(hints[name])) - {type(None)}
        for place, item in enumerate(value) if listed else [(None, value)]:
            is_other = isinstance(item, str) or isinstance(item, bool) != (wanted == {bool})
            if wanted in WANTED and type(item) in GIVEN and is_other:
                where = f"{prefix}{name}" + ("" if place is None else f".{place}")
                shown = shortened(repr(item)) if isinstance(item, str) else _toml_value(item)
                raise UsageError(f"{origin}: {where} = {shown}: give {WANTED[wanted]}, not {GIVEN[type(item)]}")


def _scalar_types(hint: Any) -> Iterator[Any]:
    """The types that a value of type `hint`, or an item of it, may have."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list):
        for part in typing.get_args(hint):
            if part is not Ellipsis:
                yield from _scalar_types(part)
    else:
        yield hint


def plain_values(config: Any) -> dict[str, Any]:
    """A config as nested plain values, tuples as lists, unset options left out (TOML has no null)."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = plain_values(value)
        elif value is not None:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def flat_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name.

    >>> flat_values({"lr": 1, "generate": {"steps": 2}})
    {'lr': 1, 'generate.steps': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(flat_values(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def to_toml(config: Any) -> str:
    """A config as TOML text; `load_toml` reads it back equal."""
    values = plain_values(config)
    lines = [f"{name} = {_toml_value(value)}" for name, value in values.items() if not isinstance(value, dict)]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"] + [f"{key} = {_toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        escaped = "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped)
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)


def load_toml(path: Path) -> dict[str, Any]:
    """The nested values of a TOML file. Raises `FileError` or `UsageError` naming the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of which TOML's and Unicode's errors are
        raise UsageError(f"{path} is not valid TOML: {shortened(error)}") from error
