"""One page of several tables and pictures, in the report's style: what `domainfusion reproduce` writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainfusion.files import write_text
from domainfusion.report.html import render


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a page; `uri` holds its bytes."""

    uri: str
    alt: str
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """One section: sentences, a table (its first row the heading), notes, pictures, and rows of options."""

    id: str
    name: str
    title: str
    texts: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    options: tuple[tuple[str, ...], ...] = ()
    compares: bool = False  # its table compares rows of runs with each other and with the paper


def write_tables_page(
    parts: Sequence[Part], output: Path, *, headline: str, command: str, environment: dict[str, Any]
) -> Path:
    """Write the page to `output`, and return `output`. Raises `FileError` where it cannot be written."""
    versions = [("", "")]
    versions += [(name, str(value)) for name, value in environment.items() if name != "versions" and value is not None]
    versions += [(name, str(value)) for name, value in environment.get("versions", {}).items()]
    page = render(
        "tables.html", parts=list(parts), headline=headline, command=command,
        compares=any(part.compares for part in parts),
        versions=versions if environment else [], title=f"DomainFusion: {', '.join(part.name for part in parts)}",
    )  # fmt: skip
    write_text(output, page)
    return output
