"""Reading runs back: what a folder of runs came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domainfusion.errors import show_note
from domainfusion.files import CHECKSUMS, altered_files, read_json, read_json_lines


def find_runs(root: Path) -> list[Path]:
    """The finished runs (folders with `result.json` and `data.json`) at or below `root`, sorted."""
    return sorted(path.parent for path in root.rglob("result.json") if (path.parent / "data.json").exists())


def load_run(folder: Path) -> dict[str, Any]:
    """All that a run wrote down: `result`, `data`, `environment`, `records`, `config` (TOML text)."""
    text = folder / "config.toml"
    if altered := altered_files(folder):
        show_note(f"{folder}: {', '.join(altered)} changed since the run ended (see {CHECKSUMS})")
    return {
        "folder": folder, "result": read_json(folder / "result.json"), "data": read_json(folder / "data.json"),
        "environment": read_json(folder / "environment.json"), "records": read_json_lines(folder / "metrics.jsonl"),
        "config": text.read_text(encoding="utf-8") if text.exists() else "",
    }  # fmt: skip
