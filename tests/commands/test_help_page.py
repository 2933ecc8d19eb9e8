"""The pages of `--help`: every option is there or left out on purpose, and says what it takes and what it is."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import shlex
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from domainfusion import cli
from domainfusion.commands import data, help_page, ldm, models, parsing
from domainfusion.commands.fields import fields_of
from domainfusion.commands.words import subcommands_of
from domainfusion.config import TrainConfig
from domainfusion.config_files import plain_values
from domainfusion.experiments.demo import demo_options

COMMANDS = [
    " ".join(words)
    for name in cli.PLACES
    for words in ([[name, sub] for sub in subcommands_of(name, cli.PLACES[name])] or [[name]])
]
HIDDEN = {
    "benchmark": {"--target", "--trial", "--algorithm", "--second-target"},
    "reproduce": {"--target", "--trial", "--algorithm", "--hparams-seed", "--second-target"},
    "sweep": {"--target", "--trial", "--algorithm", "--hparams-seed", "--second-target"},
    "demo": {"--algorithm", "--preset", "--hparams-seed", *parsing.OTHER_METHODS},
    "doctor": models.UNCOUNTED,
}


def page_of(words: str, monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> tuple[str, type, set[str]]:
    """What `domainfusion WORDS --help` prints, of which class, and which flags and groups that leaves out."""
    seen: list[type] = []
    printed = io.StringIO()

    def spy(kind: type, prog: str, default: Any = None) -> None:
        seen.append(kind)
        help_page.print_help(kind, prog, default)

    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(parsing, "print_help", spy)
        patch.setattr(sys, "stdout", printed)
        with pytest.raises(SystemExit) as caught:
            cli.run([*words.split(), "--help"])
    assert caught.value.code == 0
    (kind,) = seen
    return printed.getvalue(), kind, set(getattr(kind, "hidden", ()))


def leaves(kind: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: type} of the options of a class, read by no code of the help's own."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        inner = typing.get_args(hints[field.name])[0] if field.name == "options" else hints[field.name]
        if dataclasses.is_dataclass(inner):
            found |= leaves(inner, "" if field.name == "options" else f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = hints[field.name]
    return found


def shown_flags(page: str) -> list[str]:
    """Flags that begin an entry."""
    return re.findall(r"^  (--[\w.-]+)", page, re.MULTILINE)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_is_in_the_help_or_left_out_on_purpose(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page, kind, hidden = page_of(words, monkeypatch)
    positional, options = set(), {}
    for name, hint in leaves(kind).items():
        if "Positional" in str(hint):
            positional.add(name)
        else:
            options[f"--{name}".replace("_", "-")] = name
    groups = {flag.rpartition(".")[0] for flag in options if "." in flag}
    left_out = {flag for flag in options if flag in hidden or flag.rpartition(".")[0] in hidden}
    shown = shown_flags(page)
    assert len(shown) == len(set(shown))
    assert set(shown) == set(options) - left_out
    assert hidden <= set(options) | groups  # no name of an option that has gone
    assert ("\narguments:\n" in page) == bool(positional)
    expected = HIDDEN.get(words, set())
    if words in ("generate", "distill"):
        read = {"generate": ldm.READ_TO_GENERATE, "distill": ldm.READ_TO_DISTILL}[words]
        expected = {f"--{name}".replace("_", "-") for name in leaves(TrainConfig) if name not in read}
        assert read <= set(leaves(TrainConfig))
    assert hidden == expected


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("columns", [80, 120])
def test_pages_flow_and_name_no_nothings(words: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    page, kind, _ = page_of(words, monkeypatch, columns)
    assert page.startswith(f"usage: domainfusion {words} ")
    assert "None" not in page
    assert "(default: )" not in page
    assert all(len(line) <= columns for line in page.splitlines())
    assert not any(line.endswith(" ") for line in page.splitlines())
    flowing = " ".join(page.split())
    for field in fields_of(kind):
        assert field.text, field.option
        if field.flag in shown_flags(page) or field.positional:
            assert " ".join(field.text.split()) in flowing  # whole, whatever its lines are in the source
    # No line ends early: the first word of the next one would not have fitted.
    for entry in re.split(r"\n(?=  -)|\n\n", page):
        lines = [line for line in entry.splitlines() if line.startswith(" " * 26)]
        for line, following in itertools.pairwise(lines):
            first = re.match(r"\(default: \S+|\S+", following.strip())
            assert first is not None
            assert len(line) + 1 + len(first[0]) > columns


@dataclasses.dataclass(frozen=True)
class Group:
    """What a group
    is about.

    And more.
    """

    on: bool = True
    """Whether it
    is so."""


@dataclasses.dataclass(frozen=True)
class Example:
    """What the command does."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE ...")]
    """What it is done with."""
    output: Path
    """Where to."""
    pair: tuple[int, float] = (3, 0.5)
    """Two numbers."""
    words: tuple[str, ...] = ("a b", "c")
    """Some words."""
    nothing: str | None = None
    """May be left out."""
    empty: str = ""
    """Empty."""
    kind: Literal["x", "y"] | None = None
    """One or the other."""
    a_group: Group = dataclasses.field(default_factory=Group)


def test_a_page_word_for_word() -> None:
    assert (
        help_page.help_page(Example, "domainfusion example", width=80)
        == """\
usage: domainfusion example FILE ... --output PATH [OPTIONS]

What the command does.

arguments:
  FILE ...                What it is done with.

options:
  --output PATH           Where to. (required)
  --pair INT FLOAT        Two numbers. (default: 3 0.5)
  --words [TEXT ...]      Some words. (default: 'a b' c)
  --nothing TEXT          May be left out.
  --empty TEXT            Empty.
  --kind {x,y}            One or the other.
  -h, --help              Show this page.

a-group: What a group is about.
  --a-group.on, --a-group.no-on
                          Whether it is so. (default: on)"""
    )


def test_defaults_are_those_of_the_instance_and_can_be_typed() -> None:
    default = Example((), Path("my folder"), pair=(4, 1e-5), nothing="it's", kind="y", a_group=Group(on=False))
    page = help_page.help_page(Example, "example", default, width=100)
    for name, shown in (("output", "'my folder'"), ("pair", "4 1e-05"), ("kind", "y"), ("a-group.on", "off")):
        assert re.search(rf"--{re.escape(name)}\b[^-]*(-[^-]*)*?\(default: {re.escape(shown)}\)", page)
    assert f"(default: {shlex.quote(default.nothing or '')})" in page
    assert "required" not in page


@pytest.mark.parametrize("words", COMMANDS)
def test_the_defaults_of_a_page_can_be_typed_and_are_the_defaults(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page, kind, _ = page_of(words, monkeypatch, 120)
    given: list[str] = []
    for entry in re.split(r"\n(?=  -)|\n\n", page):
        found = re.match(r"  (--[\w.-]+)(?:, (--[\w.-]+))?( [^\n]*?)?(?:  |\n)", entry + "\n")
        shown = re.search(r"\(default: ([^()]*)\)$", " ".join(entry.split()))
        if found is None or shown is None:
            continue
        flag, negative, metavar = found.groups()
        values = shlex.split(shown[1])
        if negative:
            given.append(flag if values == ["on"] else negative)
        else:
            assert metavar.endswith(" ...]") or len(values) == len(metavar.split())
            given += [flag, *values]
    required = ["x" for field in fields_of(kind) if field.positional and field.required]
    required += ["--output", "x"] if words == "export" else []
    defaults = demo_options() if words == "demo" else None
    assert given or words in ("data download", "report")
    typed, untyped = (parsing.parse(kind, [*required, *more], "x", defaults) for more in (given, []))
    assert six_digits(plain_values(typed)) == six_digits(plain_values(untyped))


def six_digits(value: Any) -> Any:
    """Plain values with numbers to as many digits as a page shows."""
    if isinstance(value, dict):
        return {name: six_digits(part) for name, part in value.items()}
    if isinstance(value, list):
        return [six_digits(part) for part in value]
    return float(f"{value:g}") if isinstance(value, float) else value


def test_a_file_and_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "options.toml"
    path.write_text('steps = 7\n[generate]\ntemplate = "{label}, größer"\n', encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "1")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    with pytest.raises(SystemExit):
        cli.run(["train", "--config", str(path), "--help"])
    narrow.seek(0)
    page = narrow.read()
    assert "(default: 7)" in page
    assert "gr??er" in page
    assert re.search(r"--steps INT\n {6}Optimizer steps\. \(default: 7\)\n", page)


@pytest.mark.parametrize(
    ("terminal", "no_color", "bold"), [("xterm", None, True), ("dumb", None, False), ("xterm", "1", False)]
)
def test_bold_letters(terminal: str, no_color: str | None, bold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    printed = Terminal()
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdout", printed)
    help_page.print_help(data.VerifyCommand, "x")
    assert ("\x1b[1m--json\x1b[0m, \x1b[1m--no-json\x1b[0m" in printed.getvalue()) == bold
    assert ("\x1b" in printed.getvalue()) == bold
    monkeypatch.undo()
    page = help_page.help_page(data.VerifyCommand, "x", width=80)
    assert re.sub(r"\x1b\[\d+m", "", help_page.help_page(data.VerifyCommand, "x", width=80, bold=True)) == page


def test_the_demo_shows_the_groups_of_its_two_algorithms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    page, _, _ = page_of("demo", monkeypatch)
    groups = {flag.split(".")[0] for flag in shown_flags(page) if "." in flag}
    assert groups == {"--data", "--distill", "--generate", "--average"}
    assert {"--mixup", "--coral"} <= parsing.OTHER_METHODS
    assert {flag[2:].replace("-", "_") for flag in parsing.OTHER_METHODS} <= {
        field.name for field in dataclasses.fields(TrainConfig)
    }
