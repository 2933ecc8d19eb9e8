"""The page of an audit: the most suspicious labels with their images, in the report's style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.files import write_text
from domainfusion.report.html import render
from domainfusion.report.pictures import png_uri

SIDE = 96  # pixels of a thumbnail at most


def write_audit_page(path: Path, found: dict[str, Any], dataset: MultiDomainDataset, top: int) -> None:
    """Write the `top` most suspicious labels of an audit's summary `found` as one HTML file."""
    shown = [entry | {"uri": png_uri(dataset.images[entry["row"]], SIDE)} for entry in found["labels"][:top]]
    title = f"Suspicious labels: {dataset.name}"
    write_text(path, render("audit.html", found=found, shown=shown, name=dataset.name, title=title))
