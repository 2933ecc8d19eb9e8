"""What the documentation says is so: tables fit their figures, links lead somewhere, commands exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from domainfusion.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])


def test_tables_fit_their_figures():
    done = subprocess.run([sys.executable, "scripts/update_results.py", "--check"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_commands_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"(?:^ +|`)domainfusion (\w+)", text, re.MULTILINE))
    assert commands
    assert commands <= set(COMMANDS)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_results_have_every_trial_and_their_command(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["command"].startswith("domainfusion ")
    assert "torch" in found["versions"]
    counts = {len(values) for by_target in found["accuracy"].values() for values in by_target.values()}
    assert len(counts) == 1
    assert counts.pop() >= 1
