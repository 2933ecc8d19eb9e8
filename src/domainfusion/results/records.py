"""Reading runs back: what a folder of runs came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domainfusion.errors import show_note
from domainfusion.files import CHECKSUMS, altered_files, read_json_object
from domainfusion.json_lines import read_json_lines

HELD_OUT = "held-out"  # folder of the runs without one domain each, within the run on all domains that they speak of
EXPECTATION = "expectation.json"  # what they came to, beside that folder

# What every finished run tells, and in which form.
RESULT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "algorithm": str, "target": (str, type(None)), "trial": int, "seed": int,
    "validation_accuracy": (int, float, type(None)),
}  # fmt: skip
DATA_FIELDS: dict[str, type | tuple[type, ...]] = {
    "fingerprint": str, "protocol": str, "name": str, "domains": list, "classes": list,
}  # fmt: skip


def find_runs(root: Path) -> list[Path]:
    """The finished runs (folders with `result.json` and `data.json`) at or below `root`, sorted."""
    return sorted(path.parent for path in root.rglob("result.json") if (path.parent / "data.json").exists())


def load_run(folder: Path) -> dict[str, Any]:
    """All that a run wrote down: `result`, `data`, `environment`, `records`, `config` (TOML text)."""
    text = folder / "config.toml"
    if altered := altered_files(folder):
        show_note(f"{folder}: {', '.join(altered)} changed since the run ended (see {CHECKSUMS})")
    return {
        "folder": folder, "data": read_json_object(folder / "data.json", **DATA_FIELDS),
        "result": read_json_object(folder / "result.json", **RESULT_FIELDS),
        "environment": read_json_object(folder / "environment.json"),
        "records": read_json_lines(folder / "metrics.jsonl"),
        "config": text.read_text(encoding="utf-8") if text.exists() else "",
    }  # fmt: skip
