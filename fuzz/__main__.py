"""`python -m fuzz [TARGET…] [--seconds 60] [--output FOLDER]`: fuzzes the readers and prints one table."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from fuzz.running import ROOT, Outcome, fuzz
from fuzz.targets import TARGETS


def text(outcomes: dict[str, Outcome]) -> str:
    """The table for people, and below it the files that fail."""
    lines = [f"{'target':<10}{'executions':>12}{'edges':>8}{'features':>10}{'crashes':>9}"]
    for name, found in outcomes.items():
        lines.append(
            f"{name:<10}{found.executions:>12}{found.edges:>8}{found.features:>10}{len(found.crashes):>9}"
            + (f"  {found.problem}" if found.problem else "")
        )
    for found in outcomes.values():
        for path in found.crashes:
            about = path.with_suffix(".txt")
            place = about.read_text(encoding="utf-8").split("\n", 1)[0] if about.exists() else "too slow or too large"
            lines.append(f"{path}: {place}")
    return "\n".join(lines)


def main() -> int:
    """Fuzz, print; 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "fuzz", help="for seeds, corpus and crashes")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {min(unknown)!r}; targets: {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is missing: pip install 'domainfusion[fuzz]'")
    outcomes: dict[str, Outcome] = {}
    for name in arguments.targets or TARGETS:
        print(f"fuzzing {name} for {arguments.seconds} s ...", file=sys.stderr)
        outcomes[name] = fuzz(TARGETS[name], arguments.output / name, arguments.seconds)
    print(text(outcomes))
    return int(any(found.crashes or found.problem for found in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
