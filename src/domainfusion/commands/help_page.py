"""What `domainfusion COMMAND --help` prints, read off the command: its fields' docstrings, types and defaults.

tyro parses the words; its own page would show what a command refuses, every `None`, and lines broken where the source
breaks them, so the page is laid out here.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
import shlex
import shutil
import sys
import textwrap
import typing
from typing import Any, Literal, TextIO

from domainfusion.commands.fields import Field, plain_type, shown_fields

TYPES = {int: "INT", float: "FLOAT", str: "TEXT", pathlib.Path: "PATH"}
NARROWEST, WIDEST = 40, 120  # lines that are longer are hard to read
COLUMN = 26  # where descriptions begin, in a page of at least three times that


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is typed, and what it does."""

    typed: str
    text: str


def print_help(kind: type, prog: str, default: Any = None) -> None:
    """Print the page of a command (`help_page`) as wide as the terminal, headings in bold where it shows them."""
    width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))
    page = help_page(kind, prog, default, width=width, bold=_shows_bold(sys.stdout))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(page.encode(encoding, "replace").decode(encoding), flush=True)


def help_page(kind: type, prog: str, default: Any = None, *, width: int = 80, bold: bool = False) -> str:
    """The page of a command.

    Args:
        kind: the dataclass that the command's words are parsed as.
        default: an instance of it with the defaults to show; the class's own where it has none.
        width: of a line, in characters.
        bold: whether headings and flags are bold, by the codes of a terminal.
    """
    start = COLUMN if width >= 3 * COLUMN else 6
    sections, required = _sections(kind, default)
    words = [prog, *(entry.typed for entry in sections["arguments"]), *required, "[OPTIONS]"]
    parts = [textwrap.fill(f"usage: {' '.join(words)}", width, subsequent_indent=" " * 7, break_on_hyphens=False)]
    parts += [_wrapped(_flowing(part), width) for part in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]
    for heading, entries in sections.items():
        if entries:
            name, _, what = heading.partition(": ")
            title = _wrapped(f"{name}: {what}".strip(), width)
            lines = [_bold(title, name) if bold else title]
            lines += [_laid_out(entry, start, width, bold=bold) for entry in entries]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _sections(kind: type, default: Any) -> tuple[dict[str, list[Entry]], list[str]]:
    """The entries of a page by heading, and what has to be typed of the options."""
    sections: dict[str, list[Entry]] = {"arguments": [], "options": []}
    required = []
    # A command's own options go before those of its flat config, which are many.
    for field in sorted(shown_fields(kind, default), key=lambda field: not issubclass(kind, field.owner)):
        typed = metavar(field.hint)
        if field.positional:
            sections["arguments"].append(Entry(typed, _flowing(field.text)))
            continue
        typed = f"{field.flag} {typed}" if typed else f"{field.flag}, {field.negative}"
        if field.required:
            required.append(typed)
        text = f"{_flowing(field.text)} {default_text(field)}".strip()
        sections.setdefault(_heading(field), []).append(Entry(typed, text))
    sections["options"].append(Entry("-h, --help", "Show this page."))
    return sections, required


def metavar(hint: Any) -> str:
    """What stands for the values of a field: DATA where the field names it so, else its type; nothing for a switch.

    >>> metavar(tuple[float, float]), metavar(tuple[str, ...]), metavar(Literal["a", "b"] | None), metavar(bool)
    ('FLOAT FLOAT', '[TEXT ...]', '{a,b}', '')
    """
    for part in getattr(hint, "__metadata__", ()):  # tyro.conf.arg(metavar=...)
        if isinstance(name := getattr(part, "metavar", None), str):
            return name
    plain = plain_type(hint)
    if plain is bool:
        return ""
    if typing.get_origin(plain) is tuple:
        first, *others = typing.get_args(plain)
        return f"[{metavar(first)} ...]" if others == [...] else " ".join(map(metavar, [first, *others]))
    if typing.get_origin(plain) is Literal:
        return f"{{{','.join(map(str, typing.get_args(plain)))}}}"
    return TYPES[plain]


def default_text(field: Field) -> str:
    """`(default: 800)` as it would be typed; nothing where the default is nothing."""
    if field.required:
        return "(required)"
    value = field.default
    if isinstance(value, bool):
        return f"(default: {'on' if value else 'off'})"
    values = value if isinstance(value, tuple) else (value,)
    shown = [f"{part:g}" if isinstance(part, float) else shlex.quote(str(part)) for part in values]
    return "" if value is None or value in ("", ()) else f"(default: {' '.join(shown)})"


def _heading(field: Field) -> str:
    """A group by its name and what it is about, the first paragraph of its class."""
    if not field.group:
        return "options"
    about = inspect.cleandoc(field.owner.__doc__ or "").split("\n\n")[0]
    return f"{field.group}: {_flowing(about)}"


def _flowing(text: str) -> str:
    """A text without the breaks that its lines have in the source."""
    return " ".join(text.split())


def _wrapped(text: str, width: int, indent: str = "") -> str:
    """A text in lines. Flags and paths stay whole, and `(default:` on the line of what follows it, if there is room."""
    room = width - len(indent)
    for part in (text.replace("(default: ", "(default:\0"), text):
        lines = textwrap.wrap(part, room, break_long_words=False, break_on_hyphens=False)
        if all(len(line) <= room for line in lines):
            break
    return "\n".join(indent + line for line in lines).replace("\0", " ")


def _laid_out(entry: Entry, start: int, width: int, *, bold: bool) -> str:
    """What is typed, and what it does beside it, or below where there is no room."""
    text = _wrapped(entry.text, width, " " * start)
    typed = f"  {entry.typed}"
    beside = len(typed) + 2 <= start
    first = f"{typed:<{start}}" if beside else typed
    if bold:
        for flag in entry.typed.split(", "):
            first = _bold(first, flag.split(" ")[0])
    return first + (text[start:] if beside else f"\n{text}" if text else "")


def _bold(text: str, part: str) -> str:
    return text.replace(part, f"\x1b[1m{part}\x1b[0m", 1)


def _shows_bold(stream: TextIO) -> bool:
    """Whether a stream is a terminal that has bold letters, and nobody asked for none (https://no-color.org)."""
    plain = os.environ.get("TERM") in (None, "dumb") or bool(os.environ.get("NO_COLOR"))
    return stream.isatty() and not plain
