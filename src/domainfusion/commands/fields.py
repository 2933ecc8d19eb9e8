"""The fields of a command, read off its dataclass: what the help shows of them, and what the shells complete."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any

import tyro

POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1]


@dataclasses.dataclass(frozen=True)
class Field:
    """An option or a positional argument of a command.

    `option` is its dotted name, `group` what stands before the last dot, `owner` the dataclass that it is a field of.
    """

    option: str
    hint: Any
    text: str
    default: Any  # that of the command's instance, or of its class
    required: bool
    owner: type

    @property
    def name(self) -> str:
        """Its name in its class."""
        return self.option.rpartition(".")[2]

    @property
    def group(self) -> str:
        """The group that it is in, as flags have it; empty for the command's own."""
        return self.option.rpartition(".")[0].replace("_", "-")

    @property
    def flag(self) -> str:
        """What sets it on the command line."""
        return f"--{self.option.replace('_', '-')}"

    @property
    def negative(self) -> str:
        """What switches it off, where it is a switch."""
        stem = f"{self.group}." if self.group else ""
        return f"--{stem}no-{self.name.replace('_', '-')}"

    @property
    def positional(self) -> bool:
        """Whether it has no flag."""
        return _is_positional(self.hint)


def fields_of(kind: Any, default: Any = None, prefix: str = "") -> Iterator[Field]:
    """Every field of a command, those of its groups in their place; those of its field `options` have no prefix.

    Args:
        default: an instance of `kind`, whose values are the defaults; the class's own where there is none.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = docstrings(kind)
    for field in dataclasses.fields(kind):
        value = _own_default(field) if default is None else getattr(default, field.name)
        group = plain_type(hints[field.name])
        required = value is dataclasses.MISSING or value is tyro.MISSING
        if dataclasses.is_dataclass(group):
            below = "" if field.name == "options" else f"{prefix}{field.name}."
            yield from fields_of(group, None if required else value, below)
        else:
            text = texts.get(field.name, "")
            yield Field(prefix + field.name, hints[field.name], text, None if required else value, required, kind)


def shown_fields(kind: type, default: Any = None) -> list[Field]:
    """The fields of a command that its help and completion show.

    A command's `hidden` holds the flags that they do not, and groups (`--data`) of which they show none: what the
    command refuses or does not read.
    """
    hidden: Collection[str] = getattr(kind, "hidden", ())
    return [f for f in fields_of(kind, default) if f.flag not in hidden and f"--{f.group}" not in hidden]


def flags_without(kind: Any, read: Collection[str]) -> set[str]:
    """The flags of a config's options but those of `read`, which holds dotted names."""
    return {field.flag for field in fields_of(kind) if field.option not in read}


def _own_default(field: dataclasses.Field[Any]) -> Any:
    """The default that a class gives a field, or `dataclasses.MISSING`."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def plain_type(hint: Any) -> Any:
    """A type without what is annotated and without None.

    >>> plain_type(typing.Annotated[int | None, "seconds"])
    <class 'int'>
    """
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = hint.__origin__
        elif typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        else:
            return hint


def _is_positional(hint: Any) -> bool:
    return POSITIONAL in getattr(hint, "__metadata__", ())


def docstrings(kind: type) -> dict[str, str]:
    """What stands below each field of a class and of those it inherits from."""
    texts: dict[str, str] = {}
    for part in reversed(kind.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
                texts[field.target.id] = ast.literal_eval(text.value)
    return texts
