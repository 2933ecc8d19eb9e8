"""Writes `examples/*.py` as notebooks, `examples/notebooks/*.ipynb`.

    python scripts/make_notebooks.py          # write the notebooks
    python scripts/make_notebooks.py --check  # fail where one does not fit its script

A line `# %%` begins a cell of code, `# %% [markdown]` one of text, whose lines are comments.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
CELL = re.compile(r"^# %%( \[markdown\])?$", re.MULTILINE)


def cells(script: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a script, kind being "markdown" or "code"."""
    parts = CELL.split(script)
    if parts[0].strip():
        raise ValueError("a script begins with a cell: # %%")
    found = []
    for mark, text in zip(parts[1::2], parts[2::2], strict=True):
        if mark is None:
            found.append(("code", text.strip("\n")))
            continue
        lines = text.strip("\n").splitlines()
        wrong = [line for line in lines if not line.startswith("#")]
        if wrong:
            raise ValueError(f"a line of text is no comment: {wrong[0]}")
        found.append(("markdown", "\n".join(line[1:].removeprefix(" ") for line in lines)))
    return found


def notebook(script: str) -> str:
    """A script as a notebook: JSON of nbformat 4.5, with nothing run."""
    made: list[dict[str, Any]] = []
    for number, (kind, source) in enumerate(cells(script)):
        cell: dict[str, Any] = {
            "cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)
        }  # fmt: skip
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(arguments: list[str] | None = None, examples: Path = EXAMPLES) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    wanted = {
        examples / "notebooks" / f"{path.stem}.ipynb": notebook(path.read_text(encoding="utf-8"))
        for path in sorted(examples.glob("*.py"))
    }
    there = {path: path.read_text(encoding="utf-8") for path in (examples / "notebooks").glob("*.ipynb")}
    stale = sorted(path.name for path in {*wanted, *there} if wanted.get(path) != there.get(path))
    if check:
        if stale:
            sys.exit(f"notebooks do not fit examples/*.py: {', '.join(stale)}; run scripts/make_notebooks.py")
        return
    (examples / "notebooks").mkdir(exist_ok=True)
    for path in set(there) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
