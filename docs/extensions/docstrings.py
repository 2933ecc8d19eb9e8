"""Docstrings as they are written here (code between single backticks, formulae indented) become reStructuredText."""

from __future__ import annotations

import re
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Yields|Example|Examples):$")
CODE = re.compile(r"(`+[^`]+`+)")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, as reStructuredText with Google's sections.

    >>> to_rst(["A `name` of *.py."])
    ['A ``name`` of \\\\*.py.']
    """
    made: list[str] = []
    state = "text"  # or "section" of named arguments, "literal" block, "doctest"
    for number, line in enumerate(lines):
        indented = line.startswith((" ", "\t"))
        after_blank = number == 0 or not lines[number - 1].strip()
        if not line.strip():
            state = "text" if state == "doctest" else state
        elif line.lstrip().startswith(">>> "):
            state = "doctest"
        elif state != "doctest" and not indented:
            if state == "literal" and not after_blank:
                made.append("")
            state = "section" if SECTION.match(line) else "text"
        elif state == "text" and indented and after_blank:
            made += ["::", ""]
            state = "literal"
        made.append(line if state in ("literal", "doctest") else inline(line))
    return made


def inline(line: str) -> str:
    """A line of prose: code as literals, and nothing else taken for markup.

    >>> inline("see `a_b`, _run | x_")
    'see ``a_b``, \\\\_run \\\\| x\\\\_'
    """
    parts = CODE.split(line)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"``{part.strip('`')}``"
            # a literal ends before space or punctuation only: ``p``s would not
            if i + 1 < len(parts) and re.match(r"\w", parts[i + 1]):
                parts[i] += "\\ "
        else:
            parts[i] = re.sub(r"\*|\||(?<!\w)_(?=\w)|(?<=\w)_(?!\w)", lambda found: f"\\{found[0]}", part)
    return "".join(parts)


def sections(what: str, lines: list[str]) -> list[str]:
    """Lines with their sections (Args:) as fields; what stands below a field has none, and its colons are colons."""
    if what in ("attribute", "data", "property"):
        return lines
    return GoogleDocstring(lines, Config(napoleon_use_rtype=False), what=what).lines()


def convert(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place, as autodoc asks."""
    lines[:] = sections(what, to_rst(lines))


def setup(app: Any) -> dict[str, bool]:
    """Convert each docstring that autodoc reads."""
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
