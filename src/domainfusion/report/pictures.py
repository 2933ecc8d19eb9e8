"""Images for the page: PNG data URIs, the data set of a run, a contact sheet of its domains, LD-noise pictures."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from domainfusion.config import DataConfig
from domainfusion.config_files import build_config
from domainfusion.data.domains import MultiDomainDataset, load_recorded
from domainfusion.errors import DomainFusionError
from domainfusion.report.reading import Run
from domainfusion.report.study import Study

TILE = 72  # pixels: the largest side of a small picture
MOST_DOMAINS = 8
MOST_BYTES = 700_000  # of one large picture


def png_uri(image: np.ndarray | Image.Image, side: int | None = None) -> str:
    """A picture, shrunk to `side` where it is larger, as a PNG data URI."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    if side is not None and max(picture.size) > side:
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def load_run_dataset(run: Run) -> tuple[MultiDomainDataset | None, str]:
    """The data set of a run, or None and why it cannot be shown."""
    name = run.data["data"]
    try:
        values = {key.removeprefix("data."): value for key, value in run.options.items() if key.startswith("data.")}
        dataset = load_recorded(name, build_config(DataConfig, values, str(run.folder / "config.toml")), run.folder)
    except DomainFusionError as error:
        return None, f"The data set {name} cannot be read here, so its images are not shown ({error})."
    if dataset.fingerprint != run.data["fingerprint"]:
        return None, f"The data set {name} has changed since the run, so its images are not shown."
    return dataset, ""


def domain_samples(study: Study, dataset: MultiDomainDataset, classes: int = 6, each: int = 2) -> dict[str, Any]:
    """A column for each domain (`domains`: name, role, images), a row for each of some classes (`rows`)."""
    domains = sorted(dataset.domains, key=lambda name: _role(study, name) != "target")[:MOST_DOMAINS]
    shown = [dataset.classes[i] for i in _spread(len(dataset.classes), classes)]
    rows = []
    for name in shown:
        cells = []
        for domain in domains:
            number = dataset.index_of(domain)
            found = np.flatnonzero((dataset.domain_of == number) & (dataset.labels == dataset.classes.index(name)))
            chosen = found[_spread(len(found), each)]
            alt = f"{name}, {domain}"
            cells.append([{"uri": png_uri(dataset.images[row], TILE), "alt": alt} for row in chosen])
        rows.append({"name": name, "cells": cells})
    heads = [
        {"name": name, "role": _role(study, name), "images": len(dataset.rows(dataset.index_of(name)))}
        for name in domains
    ]
    return {
        "domains": heads,
        "rows": rows,
        "turns": any(head["role"] == "target in turn" for head in heads),
        "hidden": len(dataset.domains) - len(domains),
    }


def _role(study: Study, domain: str) -> str:
    """How the study uses a domain."""
    targets = {run.target for arm in study.arms for run in arm.runs}
    if domain not in targets:
        return "source"
    return "target" if len(targets) == 1 else "target in turn"


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `count`, evenly spaced, in order.

    >>> _spread(10, 3), _spread(2, 5)
    ([1, 5, 8], [0, 1])
    """
    wanted = min(count, wanted)
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]


def ld_noise(study: Study) -> dict[str, str] | None:
    """The first `ld_noise.png` of the study's runs, with the text of `ld_noise.txt`."""
    for arm in reversed(study.arms):
        for run in study.compared(arm):
            path = run.folder / "ld_noise.png"
            if path.exists():
                try:
                    with Image.open(path) as image:
                        picture = image.convert("RGB")
                except OSError:
                    continue
                sides = (1000, 700, 500, 350)  # noise hardly compresses
                uri = next((uri for side in sides if len(uri := png_uri(picture, side)) < MOST_BYTES), "")
                words = path.with_suffix(".txt")
                text = words.read_text(encoding="utf-8", errors="replace").strip() if words.exists() else ""
                return {"uri": uri, "text": text}
    return None
