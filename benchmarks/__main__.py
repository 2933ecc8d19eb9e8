"""`python -m benchmarks [ROW…] [--json]`: measures the rows and prints one table, beside what they are to reach."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    alternatives,
    candidates,
    curve_error,
    derivatives,
    distillation,
    growth,
    labels,
    overlap,
    slope_views,
    startup,
    training,
    zero_shot,
)
from benchmarks.timing import device
from domainfusion.files import write_json

ROWS = {
    "startup": startup.startup,
    "training_step": training.training_step,
    "depthwise": training.depthwise,
    "loading": training.loading,
    "slope_variance": distillation.slope_variance,
    "distillation_run": distillation.distillation_run,
    "curve_error": curve_error.curve_error,
    "derivatives": derivatives.derivatives,
    "slope_views": slope_views.slope_views,
    "sweep_share": distillation.sweep_share,
    "candidates": candidates.candidates,
    "solver_error": candidates.solver_error,
    "generation_share": candidates.generation_share,
    "candidates_full_size": candidates.candidates_full_size,
    "distillation_memory": distillation.distillation_memory,
    "zero_shot": zero_shot.zero_shot,
    "whole_run": training.whole_run,
    "overlap": overlap.overlap,
    "label_information": labels.label_information,
    "feature_reuse": alternatives.feature_reuse,
    "token_merging": alternatives.token_merging,
    "compile": alternatives.compiled,
    "growth": growth.growth,
    "domainnet": growth.domainnet,
}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from domainfusion.devices import choose_dtype
    from domainfusion.experiments.descriptions import describe_environment

    found = describe_environment()
    dtype = choose_dtype("auto", device())
    gpu = {"gpu": found["gpu"]} if found["gpu"] else {}
    return {**gpu, "processor": found["processor"], "threads": torch.get_num_threads(),
            "type": str(dtype).split(".")[-1],
            "matmul_gflops": round(candidates.matmul_rate(dtype) / 1e9), "python": platform.python_version(),
            "versions": found["versions"]}  # fmt: skip


def told(item: dict[str, Any]) -> str:
    """A row for people, two lines."""
    mark = "reached" if item["reached"] else "NOT reached"
    return (
        f"{item['row']}: {item['what']} against {item['against']}\n"
        f"    {item['ratio']:.3g} (to reach: {item['target']}, {mark}); "
        f"{item['ours']:.4g} against {item['theirs']:.4g} {item['unit']}"
    )


def text(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table for people."""
    named = about.get("gpu") or f"{about['processor']}, {about['threads']} threads"
    lines = [f"{named}, {about['type']} {about['matmul_gflops']} GFLOP/s", ""]
    return "\n".join([*lines, *map(told, rows)])


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: all of {', '.join(ROWS)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON there too, after each row")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"unknown row {min(unknown)!r}; rows: {', '.join(ROWS)}")
    rows: list[dict[str, Any]] = []
    failed = False
    about = machine()
    for name in arguments.rows or ROWS:
        print(f"measuring {name} ...", file=sys.stderr)
        try:
            found = ROWS[name]()
        except Exception:  # the other rows' minutes are not lost for it
            traceback.print_exc()
            failed = True
            continue
        found = found if isinstance(found, list) else [found]
        rows += found
        print(*map(told, found), sep="\n", file=sys.stderr)  # there, should a later row be stopped
        if arguments.output:
            write_json(arguments.output, {"machine": about, "rows": rows})
    print(json.dumps({"machine": about, "rows": rows}, indent=2) if arguments.json else text(rows, about))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
