"""What a sweep would take: its runs counted, and the time of one run of each kind estimated as `doctor` does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from domainfusion.config import TrainConfig
from domainfusion.data.findings import number
from domainfusion.doctor import duration
from domainfusion.experiments.benchmark import config_of
from domainfusion.experiments.planning import plan_run
from domainfusion.experiments.search import Search
from domainfusion.results.tables import text_table
from domainfusion.sweep.ledger import ENDED, Ledger
from domainfusion.sweep.options import SweepConfig, gpus_of_run, slots_of
from domainfusion.sweep.plan import build_plan


def estimate_sweep(
    options: SweepConfig, config: TrainConfig, output: Path, search: Search | None = None
) -> dict[str, Any]:
    """What there is to do, and about how long: nothing is trained, written or started, no cluster asked.

    {"runs", "ended", "left", "kinds": [{"data", "algorithm", "runs", "left", "seconds": of a run, "shared_seconds"}],
    "seconds": of all that is left, one after the other, "slots", "notes"}. What runs share is counted once for each
    set of options and target, as if none of it were in the caches beyond what is.
    """
    plan = build_plan(options, config, output, search)
    ledger = Ledger(plan)
    kinds, notes, total = [], [], 0.0
    for data, targets in plan.targets.items():
        for algorithm in dict.fromkeys(run.place.algorithm for run in plan.runs):
            mine = [
                entry for entry in ledger.entries.values()
                if (entry.run.place.data, entry.run.place.algorithm) == (data, algorithm)
            ]  # fmt: skip
            left = [entry for entry in mine if entry.status not in ENDED]
            kind: dict[str, Any] = {"data": data, "algorithm": algorithm, "runs": len(mine), "left": len(left)}
            if left:
                planned = plan_run(data, config_of(config, (0, targets[0], algorithm)))
                kind["seconds"], kind["shared_seconds"] = divide(planned, config, share=options.share)
                total += len(left) * kind["seconds"] + kind["shared_seconds"]
                notes += planned["notes"]
            kinds.append(kind)
    slots = None
    if options.address is None:
        gpus = torch.cuda.device_count()
        cpus = options.cpus or os.cpu_count() or 1
        slots = max(1, slots_of(options.cpus_per_run, gpus_of_run(options, gpus, config.device), cpus, gpus))
    return {
        "runs": len(plan.runs), "ended": ledger.count(*ENDED), "left": ledger.left, "kinds": kinds, "seconds": total,
        "slots": slots, "notes": list(dict.fromkeys(notes)), "output": str(output),
    }  # fmt: skip


def divide(planned: dict[str, Any], config: TrainConfig, *, share: bool) -> tuple[float, float]:
    """Seconds of a run (`plan_run`) that are its own, and those of what runs share.

    Without updating all generations are shared, with it the first alone.
    """
    seconds, generations = planned["seconds"], planned["counts"].get("generations", 0)
    shared = seconds.get("curves", 0.0)
    if generations:
        shared += seconds.get("generations", 0.0) / (generations if config.generate.updating else 1)
    if not share:
        shared = 0.0
    return seconds["total"] - shared, shared


def estimate_text(found: dict[str, Any]) -> str:
    """The estimate as text."""
    rows = [["data set", "algorithm", "runs", "to make", "each", "shared by them"]]
    for kind in found["kinds"]:
        times = [duration(kind[name]) if name in kind else "–" for name in ("seconds", "shared_seconds")]
        rows.append([Path(kind["data"]).name, kind["algorithm"], str(kind["runs"]), str(kind["left"]), *times])
    slots = min(found["slots"] or 0, found["left"])
    together = f", {slots} at a time about {duration(found['seconds'] / slots)}" if slots > 1 else ""
    notes = "".join(f"\nnote: {note}" for note in found["notes"])
    return (
        f"{number(found['runs'], 'run')} in {found['output']}, {found['ended']} ended, {found['left']} to make\n\n"
        f"{text_table(rows)}\n\none after the other about {duration(found['seconds'])}{together}\n"
        f"Times are a few steps timed on this machine, by all its threads, and multiplied.{notes}"
    )
