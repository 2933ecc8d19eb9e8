"""A run's folder: whether it holds this very run, and whether what it holds is whole."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.config.settings import without_effect
from domainfusion.config.zero_shot import without_old_stages
from domainfusion.config_files import build_config, flat_values, load_toml, plain_values
from domainfusion.errors import FileError, UsageError, show_note
from domainfusion.files import (
    CHECKSUMS,
    altered_files,
    checksums_text,
    hash_of_file,
    json_text,
    read_json_object,
    write_text,
)

# The files of a finished run that its checksums cover.
KEPT = ("config.toml", "environment.json", "data.json", "metrics.jsonl", "results.jsonl", "predictions.csv",
        "model.json", "model.safetensors")  # fmt: skip
MODEL = ("model.safetensors", "model.json")


def refuse_other_options(folder: Path, data: str, config: TrainConfig) -> None:
    """Raise `UsageError` naming an option in which `folder`'s run differs from this one."""
    path = folder / "config.toml"
    if not path.exists():
        return
    written = load_toml(path)
    there = build_config(TrainConfig, written, str(path))
    if "recombination" not in written.get("generate", {}):  # of before there was any
        there = dataclasses.replace(there, generate=dataclasses.replace(there.generate, recombination=False))
    recorded = folder / "data.json"
    classes = len(recorded_data(folder).get("classes", [])) if recorded.exists() else 0
    kept, now = (
        without_old_stages(flat_values(plain_values(options)), options.algorithm, classes)
        for options in (there, config)
    )
    ignored = without_effect(there.algorithm, kept) & without_effect(config.algorithm, now)
    if _recombines(there) == _recombines(config):
        ignored.add("generate.recombination")
    changed = [name for name in sorted((set(kept) | set(now)) - ignored) if kept.get(name) != now.get(name)]
    if changed:
        named = "; ".join(f"{name} = {kept.get(name)!r}, not {now.get(name)!r}" for name in changed[:3])
        more = f", and {len(changed) - 3} more differences" if len(changed) > 3 else ""
        raise UsageError(
            f"{folder} holds a run with {named}{more}; choose another --output, or give its own options to go on "
            f"(--config {path})"
        )
    if recorded.exists():
        before = recorded_data(folder)["data"]
        moved = Path(data).is_dir() and before.startswith("/") and not Path(before).exists()  # what it holds will tell
        if before not in (data, str(Path(data).resolve())) and not moved:
            raise UsageError(f"{folder} holds a run on {before}; choose another --output")


def _recombines(config: TrainConfig) -> bool:
    """Whether a run trains on recombined candidates."""
    return config.algorithm == "domainfusion" and config.synthetic_weight > 0 and config.generate.recombines


def recorded_data(folder: Path) -> dict[str, Any]:
    """What the run in `folder` wrote down about its data."""
    return read_json_object(folder / "data.json", data=str, fingerprint=str)


def finish_run(folder: Path, result: dict[str, Any]) -> None:
    """Write `result.json`, which makes a run a finished one, and before it the checksums of all that people read."""
    text = json_text(result)
    hashes = {name: hash_of_file(folder / name) for name in KEPT if (folder / name).exists()}
    hashes["result.json"] = hashlib.sha256(text.encode()).hexdigest()
    write_text(folder / CHECKSUMS, checksums_text(hashes))
    write_text(folder / "result.json", text)
    write_text(folder / "done", "done")  # DomainBed's mark of a run that ended


def to_be_redone(folder: Path) -> bool:
    """Whether a finished run's files were damaged, and its checkpoint is there to make them again.

    Raises `FileError` where its result was damaged and no checkpoint is there.
    """
    altered = altered_files(folder)
    if not altered:
        return False
    trained = (folder / "model.json").exists() or "model.json" in altered
    checkpoint = (folder / "checkpoints" / "last.safetensors").exists() or not trained
    what = f"{folder}: {', '.join(altered)} changed since the run ended (see {CHECKSUMS})"
    if not checkpoint:
        if "result.json" in altered:
            raise FileError(f"{what}, and no checkpoint is left to make it again; train with another --output")
        show_note(what)
        return False
    show_note(f"{what}; made again{'' if set(MODEL) & set(altered) else ' from the last checkpoint'}")
    return True


def give_up_damaged_model(folder: Path) -> None:
    """Let a finished run whose model was altered be an unfinished one without it: training then makes it again.

    It is set aside although its own checksum may fit: it may be another run's.
    """
    altered = altered_files(folder) if (folder / "result.json").exists() else []
    if not set(MODEL) & set(altered):
        return
    for name in MODEL:
        if name in altered and (folder / name).exists():
            (folder / name).replace(folder / f"{name}.damaged")
            show_note(f"{folder / name} was set aside, as {name}.damaged")
    for name in ("result.json", "done", CHECKSUMS):  # an interruption leaves a run that goes on, not one that ended
        (folder / name).unlink(missing_ok=True)
