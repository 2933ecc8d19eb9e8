"""Writes the tables of `docs/results/*.json` and `docs/speed*.json` into the documentation, between their markers.

    python scripts/update_results.py          # rewrite the tables
    python scripts/update_results.py --check  # fail where a table does not fit its JSON

A marker is `<!-- results: NAME -->`, the table's end `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from domainfusion.experiments.comparison import table_rows
from domainfusion.experiments.cost_table import cost_rows
from domainfusion.results.tables import accuracy_rows, markdown_table

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/results/README.md", "docs/speed.md")
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n)(?:(?!<!-- ).)*(<!-- end -->)", re.DOTALL)  # an empty one too


def table(name: str) -> str:
    """The table of one results file."""
    places = (ROOT / "docs" / "results" / f"{name}.json", ROOT / "docs" / f"{name}.json")
    place = next((path for path in places if path.exists()), places[0])
    summary = json.loads(place.read_text(encoding="utf-8"))
    if "rows" in summary:
        return speed_table(summary)
    if "methods" in summary:  # Table 1
        return markdown_table(cost_rows(summary))
    if "arms" in summary:  # a table of the paper
        return markdown_table(table_rows(summary))
    return markdown_table(accuracy_rows(summary["accuracy"], summary.get("baseline", "erm")))


def speed_table(summary: dict[str, Any]) -> str:
    """What `python -m benchmarks --json` measured, and on what."""
    about = summary["machine"]
    lines = ["| row | ratio | to reach | | ours | against |", "|---|---|---|---|---|---|"]
    for row in summary["rows"]:
        mark = "reached" if row["reached"] else "**short**"
        ours, theirs = (f"{row[side]:.4g} {row['unit']}" for side in ("ours", "theirs"))
        lines.append(
            f"| `{row['row']}` | {row['ratio']:.3g} | {row['target'].replace('<=', '≤').replace('>=', '≥')} | {mark} "
            f"| {ours} ({row['what']}) | {theirs} ({row['against']}) |"
        )
    named = f"{about['gpu']}, " if about.get("gpu") else ""
    lines.append(
        f"\n{named}{about['processor']}, {about['threads']} thread(s), {about['type']}: a matrix product reaches "
        f"{about['matmul_gflops']:,} GFLOP/s; torch {about['versions']['torch']}. `{summary['command']}`"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda match: f"{match[1]}{table(match[2])}\n{match[3]}", old)
        if new != old:
            stale.append(page)
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"tables do not fit their JSON files: {', '.join(stale)}; run scripts/update_results.py")


if __name__ == "__main__":
    main()
