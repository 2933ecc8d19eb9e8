"""What the documentation says is so: tables fit their figures, links lead somewhere, commands exist."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from domainfusion.cli import COMMANDS, PLACES
from domainfusion.commands.layers import base_options
from domainfusion.commands.ldm import PretrainCommand
from domainfusion.commands.parsing import parse
from domainfusion.commands.runs import BenchmarkCommand, TrainCommand
from domainfusion.commands.words import command_class, subcommands_of
from domainfusion.config import PretrainConfig, TrainConfig
from domainfusion.registry import ALGORITHMS, PRESETS

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
    if "methods" in found:  # costs
        assert set(found["methods"]) == {"dsi", "cdga", "domainfusion"}
        return
    if "figure" in found:
        assert path.with_suffix(".png").exists()
        assert found["texts"]
        return
    counts = {len(values) for by_target in found["accuracy"].values() for values in by_target.values()}
    assert len(counts) == 1
    assert counts.pop() >= 1


def test_figures_have_their_facts():
    pictures = sorted((ROOT / "docs" / "results").glob("fig*.png"))
    assert pictures
    assert [picture.name for picture in pictures if not picture.with_suffix(".json").exists()] == []


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_every_algorithm_has_its_page(name):
    text = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text(encoding="utf-8")
    for part in ("## Idea", "## Equation", "## Options", "## Cost", "## When not to use it", "xample\n"):
        assert part in text, part
    assert f"--algorithm {name}" in text
    assert f"({name}.md)" in (ROOT / "docs" / "algorithms" / "README.md").read_text(encoding="utf-8")


def documented_training():
    """(page, arguments) of every `domainfusion train` that a page of an algorithm shows."""
    for page in sorted((ROOT / "docs" / "algorithms").glob("*.md")):
        text = re.sub(r"\\\n *", "", page.read_text(encoding="utf-8"))
        for line in re.findall(r"^    domainfusion train (.+)$", text, re.MULTILINE):
            yield pytest.param(shlex.split(line), id=f"{page.stem}: {line[:40]}")


@pytest.mark.parametrize("words", list(documented_training()))
def test_documented_commands_are_understood(words):
    command = parse(TrainCommand, words, "domainfusion train")
    assert command.options.algorithm in ALGORITHMS.names()


def documented_ldms():
    """Command and arguments of every `domainfusion pretrain`, `train` and `benchmark` on the page about LDMs."""
    text = (ROOT / "docs" / "own-ldm.md").read_text(encoding="utf-8")
    for name, line in re.findall(r"^ +domainfusion (pretrain|train|benchmark) (.+)$", text, re.MULTILINE):
        yield pytest.param(name, shlex.split(line.replace("$target", "sketch")), id=f"{name} {line[:40]}")


@pytest.mark.parametrize(("name", "words"), list(documented_ldms()))
def test_commands_about_ldms_are_understood(name, words):
    kinds = {"pretrain": (PretrainCommand, PretrainConfig), "train": (TrainCommand, TrainConfig),
             "benchmark": (BenchmarkCommand, TrainConfig)}  # fmt: skip
    kind, options = kinds[name]
    command = parse(kind, words, f"domainfusion {name}", base_options(options, words))
    if name == "pretrain":
        assert command.target == "sketch"
    else:
        assert dataclasses.replace(command.options, target="sketch").ldm_source == "runs/ldm-sketch/pipeline"


def documented_protocol():
    """Arguments of every `domainfusion train` and `benchmark` that the page about the protocol shows, tables too."""
    text = re.sub(r"\\\n *", "", (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8"))
    for name, line in re.findall(r"(?:^    |`)domainfusion (train|benchmark) ([^`\n]+)", text, re.MULTILINE):
        yield pytest.param(name, shlex.split(line), id=f"{name} {line[:40]}")


@pytest.mark.parametrize(("name", "words"), list(documented_protocol()))
def test_commands_of_the_protocol_are_understood(name, words):
    kind = {"train": TrainCommand, "benchmark": BenchmarkCommand}[name]
    command = parse(kind, words, f"domainfusion {name}", base_options(TrainConfig, words))
    names = command.algorithms if name == "benchmark" else [command.options.algorithm]
    assert set(names) <= set(ALGORITHMS.names())
    assert command.options.preset == "domainbed-paper" or "paper" in words


def test_the_page_about_the_protocol_names_every_preset():
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    for name in PRESETS.names():
        assert f"| `{name}` |" in text


def shown_commands():
    """(page, words) of every command line that a page shows whole: in a block, or between backticks with arguments.

    What stands for something else is no command line: alternatives (a|b), what may be left out ([--json]), dots.
    """
    for page in PAGES:
        text = re.sub(r"\\\n *", "", page.read_text(encoding="utf-8"))
        lines = re.findall(r"^(?: {4,}|\$ |)(?:[A-Z_]+=\S+ )?domainfusion (.+)$", text, re.MULTILINE)
        lines += re.findall(r"`domainfusion (\w+ [^`\n]+)`", text)
        for line in lines:
            command = re.split(r" {2,}#| > |\s+→", line)[0]
            if not re.search(r"[\[\]{}|…]|\.\.\.|: ", command):
                name = page.relative_to(ROOT).as_posix()
                if command.split()[0].isupper():  # COMMAND --help
                    continue
                yield pytest.param(shlex.split(command, comments=True), id=f"{name}: {command[:50]}")


@pytest.mark.parametrize("words", list(shown_commands()))
def test_shown_commands_are_understood(words):
    """By the parser itself. `--help` and a configuration's file are taken out: the file is not there."""
    assert words[0] in COMMANDS
    name, rest = words[0], words[1:]
    if name not in PLACES or "--help" in rest:  # `list` and `completion`
        return
    if "--config" in rest:
        at = rest.index("--config")
        del rest[at : at + 2]
    own = subcommands_of(name, PLACES[name])
    if own:
        assert rest[0] in own
        if len(rest) == 1:  # its name in the prose
            return
        kind, rest = own[rest[0]], rest[1:]
    else:
        kind = command_class(name, PLACES[name])
    required = {"export": ["--output", "x"]}.get(name, []) if "--output" not in rest else []
    parse(kind, [*rest, *required], f"domainfusion {name}")


def test_the_pages_name_options_and_defaults_that_exist():
    """Tables `| `--option` | default | ... |` say what the config says."""
    checked = 0
    for page in sorted((ROOT / "docs" / "algorithms").glob("*.md")):
        for flag, default in re.findall(
            r"^\| `--([\w.-]+)` \| ([^|]+) \|", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            value = TrainConfig()
            for name in flag.replace("-", "_").split("."):
                value = getattr(value, name)
            if isinstance(value, bool):
                assert default.strip() == ("on" if value else "off"), f"{page.name}: --{flag}"
            elif isinstance(value, (int, float)):
                numerator, _, denominator = default.strip().partition("/")
                assert value == float(numerator) / float(denominator or 1), f"{page.name}: --{flag}"
            elif isinstance(value, str):
                assert value == default.strip(" `"), f"{page.name}: --{flag}"
            checked += 1
    assert checked >= 15
