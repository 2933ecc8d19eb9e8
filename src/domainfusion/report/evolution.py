"""What the diffusion model made of some images: how they changed over generations, and which candidates were fused."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainfusion.data.domains import MultiDomainDataset
from domainfusion.errors import FileError
from domainfusion.files import read_json
from domainfusion.fusion.generation import SHEET_ROWS, sheet_positions
from domainfusion.fusion.schedule import describe
from domainfusion.report.pictures import TILE, png_uri
from domainfusion.report.reading import Run
from domainfusion.report.study import Study

MOST_GENERATIONS = 6  # columns behind the raw image


@dataclasses.dataclass(frozen=True, eq=False)
class StoredGeneration:
    """A generation on disk; `images` stay on disk until one is looked at."""

    number: int
    folder: Path
    position: dict[int, int]  # row of the data set -> place in images and lineage
    images: np.ndarray  # (n, S, S, 3) uint8, memory-mapped
    lineage: list[dict[str, str]]


def stored_generations(run: Run, most: int = MOST_GENERATIONS) -> list[StoredGeneration]:
    """At most `most` of a run's generations, evenly spaced, the first and the last among them."""
    paths = [path for path in sorted((run.folder / "synthetic").glob("generation-*")) if (path / "images.npy").exists()]
    if len(paths) > most:
        paths = [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]
    return [found for path in paths if (found := _read_generation(path)) is not None]


def _read_generation(folder: Path) -> StoredGeneration | None:
    """The generation in `folder`, or None where it is damaged: a report leaves it out."""
    try:
        described = read_json(folder / "generation.json")
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        with open(folder / "lineage.csv", newline="", encoding="utf-8") as file:
            lineage = list(csv.DictReader(file))
        number, position = int(described["number"]), {int(row): i for i, row in enumerate(described["rows"])}
    except (OSError, ValueError, KeyError, FileError):
        return None
    if not len(position) == len(images) == len(lineage):
        return None
    return StoredGeneration(number, folder, position, images, lineage)


def build_evolution(study: Study, dataset: MultiDomainDataset | None, images: int) -> dict[str, Any] | None:
    """The first run that made generations: `items` (raw, generation 0, 1, …) and `strips` of the first generation."""
    for arm in [*study.leading, *study.arms]:
        for run in study.compared(arm):
            generations = stored_generations(run)
            if generations:
                strips = candidate_strips(generations[0], run, min(images, 6))
                updating = run.options.get("generate.updating", True)
                return {
                    "arm": arm, "run": run, "count": len(list((run.folder / "synthetic").glob("generation-*"))),
                    "updating": updating, "when": _schedule(run),
                    "recombines": run.options.get("generate.recombination", False) and not updating,
                    "items": [_item(row, generations, dataset) for row in choose_rows(generations[-1], images)],
                    "frames": len(generations) + (dataset is not None),
                    "strips": strips, "sheet": None if strips else _whole_sheet(generations[0]),
                }  # fmt: skip
    return None


def _schedule(run: Run) -> str:
    """When the run made its generations, in words; empty where it does not tell."""
    steps, interval = run.options.get("steps"), run.options.get("generate.interval")
    per_epoch = run.data.get("steps_per_epoch")
    most, until = run.options.get("generate.generations", 0), run.options.get("generate.until", 0.9)
    return describe(steps, per_epoch, interval, most, until) if steps and interval and per_epoch else ""


def choose_rows(generation: StoredGeneration, count: int) -> list[int]:
    """`count` rows spread over classes and domains."""
    places: dict[str, dict[str, list[int]]] = {}
    for row, place in generation.position.items():
        record = generation.lineage[place]
        places.setdefault(record["class"], {}).setdefault(record["domain"], []).append(row)
    classes = sorted(places)
    chosen: list[int] = []
    for k in range(count):
        name = classes[k * len(classes) // count] if len(classes) >= count else classes[k % len(classes)]
        domains = sorted(places[name])
        rows = places[name][domains[(k + k // len(classes)) % len(domains)]]
        free = [row for row in rows if row not in chosen]
        if free:
            chosen.append(free[len(free) // 2])
    return chosen


def _item(row: int, generations: list[StoredGeneration], dataset: MultiDomainDataset | None) -> dict[str, Any]:
    frames = []
    if dataset is not None and row < len(dataset):
        frames.append({"name": "raw", "uri": png_uri(dataset.images[row], TILE), "chosen": ""})
    for generation in generations:
        if row in generation.position:
            image = generation.images[generation.position[row]]
            frames.append({"name": str(generation.number), "uri": png_uri(image, TILE), "chosen": ""})
    last = generations[-1].lineage[generations[-1].position[row]]
    return {"frames": frames, "class": last["class"], "domain": last["domain"], "parts": parts_of(last)}


def parts_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """What content and style of an image were made with; one entry where they are the same candidate."""
    parts = []
    for kind in ("content", "style"):
        strength = _strength(record.get(f"{kind}_strength"))
        parts.append({"kind": kind, "prompt": record.get(f"{kind}_prompt", ""), "strength": strength})
    if record.get("content_candidate") == record.get("style_candidate"):
        return [{**parts[0], "kind": "content and style"}]
    return parts


def _strength(text: str | None) -> str:
    try:
        return f"{float(text or ''):.2f}"
    except ValueError:
        return text or "?"


def candidate_strips(generation: StoredGeneration, run: Run, count: int) -> list[dict[str, Any]]:
    """Rows of `sheet.png` cut into tiles: raw, candidates, fused, with what was chosen.

    Strip k of the sheet belongs to image `sheet_positions(n)[k]`; where its last tile is not that image, the sheet
    is of another make and nothing is cut (empty list).
    """
    sheet = _open_sheet(generation)
    candidates = run.options.get("generate.candidates") if run.options.get("generate.sampling", True) else 1
    if sheet is None or not isinstance(candidates, int):
        return []
    side, tiles = generation.images.shape[1], candidates + 2
    columns, rest = divmod(sheet.shape[1], tiles * side)
    if rest or not columns or sheet.shape[0] != SHEET_ROWS * side:
        return []
    strips = []
    for k, place in enumerate(sheet_positions(len(generation.images))[: columns * SHEET_ROWS]):
        column, row = divmod(k, SHEET_ROWS)
        strip = sheet[row * side : (row + 1) * side, column * tiles * side : (column + 1) * tiles * side]
        parts = np.split(strip, tiles, axis=1)
        if not np.array_equal(parts[-1], generation.images[place]):
            return []
        strips.append(_strip(parts, generation.lineage[place]))
    return _of_different_classes(strips, count)


def _of_different_classes(strips: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` of the strips, a class for the second time only where there are no others left."""
    seen: dict[str, int] = {}
    turns = []
    for strip in strips:
        seen[strip["class"]] = seen.get(strip["class"], 0) + 1
        turns.append(seen[strip["class"]])
    order = sorted(range(len(strips)), key=lambda i: turns[i])[:count]
    return [strips[i] for i in sorted(order)]


def _strip(parts: list[np.ndarray], record: dict[str, str]) -> dict[str, Any]:
    frames = []
    for number, part in enumerate(parts):
        name = "raw" if number == 0 else "fused" if number == len(parts) - 1 else str(number)
        chosen = [
            kind for kind in ("content", "style")
            if 0 < number < len(parts) - 1 and record.get(f"{kind}_candidate") == str(number - 1)
        ]  # fmt: skip
        mark = "both" if len(chosen) > 1 else "".join(chosen)
        frames.append({"name": name, "uri": png_uri(part, TILE), "chosen": mark})
    return {"frames": frames, "class": record["class"], "domain": record["domain"], "parts": parts_of(record)}


def _whole_sheet(generation: StoredGeneration) -> str | None:
    sheet = _open_sheet(generation)
    return None if sheet is None else png_uri(sheet, 760)


def _open_sheet(generation: StoredGeneration) -> np.ndarray | None:
    path = generation.folder / "sheet.png"
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError:
        return None
