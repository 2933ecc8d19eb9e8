"""The completion scripts in the shells that they are for."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domainfusion import cli
from domainfusion.commands.completion import script
from domainfusion.commands.parsing import _flags
from domainfusion.commands.words import command_class, commands, subcommands_of
from domainfusion.config import DistillConfig
from domainfusion.registry import ALGORITHMS

KNOWN = commands(cli.COMMANDS, cli.PLACES)
Complete = Callable[..., list[str]]

# What zsh's own completion would do with what the script offers.
ZSH_STUBS = """
_describe() { while [[ "$1" == -* ]]; do [[ "$1" == -t ]] && shift; shift; done; shift; print -rl -- "${(@P)1}"; }
compadd() { if [[ "$1" == -a ]]; then print -rl -- "${(@P)2}"; else print -rl -- "$@"; fi }
_files() { print -rl -- *(N); }
_path_files() { print -rl -- "$3"/*(/N:t); }
"""
BASH = """source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_domainfusion domainfusion "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
(( ${#COMPREPLY[@]} )) && printf '%s\\n' "${COMPREPLY[@]}"; true
"""
ZSH = f"""{ZSH_STUBS}
source "$1"; shift
words=("$@"); CURRENT=$#
_domainfusion
true
"""


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(script(shell, KNOWN), encoding="utf-8")
    return folder


def run_shell(program: list[str], folder: Path) -> list[str]:
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(request: pytest.FixtureRequest, scripts: Path, tmp_path: Path) -> Complete:
    """`complete("train", "--alg")`: what the shell offers for the last word, without descriptions; in `tmp_path`."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")

    def in_bash(*words: str) -> list[str]:
        return run_shell(
            ["bash", "--norc", "-c", BASH, "bash", str(scripts / "bash"), "domainfusion", *words], tmp_path
        )

    def in_zsh(*words: str) -> list[str]:
        found = run_shell(["zsh", "-f", "-c", ZSH, "zsh", str(scripts / "zsh"), "domainfusion", *words], tmp_path)
        # compadd leaves out what does not fit: so does this
        return [word for line in found if (word := line.split(":")[0]).startswith(words[-1])]

    def in_fish(*words: str) -> list[str]:
        line = " ".join(["domainfusion", *words])
        program = f"source {scripts / 'fish'}; complete -C '{line}'"
        found = run_shell(["fish", "--no-config", "-c", program], tmp_path)
        return [line.split("\t")[0] for line in found]

    return {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell]


def test_every_command_is_offered(complete: Complete) -> None:
    assert set(complete("")) >= set(cli.COMMANDS)
    assert complete("bench") == ["benchmark"]


def test_options_of_the_command_are_offered_and_no_others(complete: Complete) -> None:
    assert complete("train", "pictograms", "--algo") == ["--algorithm"]
    assert complete("benchmark", "pictograms", "--algo") == ["--algorithms"]  # it refuses --algorithm
    assert complete("distill", "pictograms", "--generate.im") == ["--generate.image-size"]
    assert complete("distill", "pictograms", "--generate.str") == []  # it does not read the strength
    assert complete("evaluate", "run", "--algo") == []
    assert "--distill.samples" in complete("train", "pictograms", "--distill.")
    assert {"--pretrained", "--no-pretrained"} <= set(
        complete("train", "x", "--pre") + complete("train", "x", "--no-pre")
    )


def test_names_follow_their_options(complete: Complete) -> None:
    assert sorted(complete("train", "pictograms", "--algorithm", "")) == ALGORITHMS.names()
    assert complete("train", "pictograms", "--algorithm", "dom") == ["domainfusion"]
    assert sorted(complete("train", "pictograms", "--distill.estimator", "")) == ["auto", "autograd", "curve", "score"]
    assert sorted(complete("train", "pictograms", "--track", "")) == ["mlflow", "tensorboard", "wandb"]
    assert complete("export", "run", "--format", "on") == ["onnx"]
    assert complete("reproduce", "fig") == ["fig2", "fig3", "fig4", "fig5"]
    assert "table1" in complete("reproduce", "ta")


def test_an_option_of_several_reaches_further_than_one_of_one(complete: Complete) -> None:
    assert complete("benchmark", "pictograms", "--algorithms", "erm", "cor") == ["coral"]
    assert complete("train", "pictograms", "--algorithm", "erm", "groupd") == []


def test_domains_are_those_of_the_data_set(complete: Complete, tmp_path: Path) -> None:
    assert sorted(complete("train", "pictograms", "--target", "")) == ["clipart", "flat", "ink", "pixel", "render3d"]
    for name in ("photo", "sketch", "Real World"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    (tmp_path / "mine" / "notes.txt").touch()
    assert complete("train", "mine", "--target", "sk") == ["sketch"]
    assert sorted(complete("benchmark", "mine", "--targets", "photo", "")) == ["Real World", "photo", "sketch"]
    (tmp_path / "mine").rename(tmp_path / "my images")
    assert complete("train", r"my\ images", "--target", "sk") == ["sketch"]
    assert complete("train", '"my images"', "--target", "sk") == ["sketch"]


def test_commands_of_a_command(complete: Complete) -> None:
    assert set(complete("data", "")) >= {"download", "prepare", "splits", "verify"}
    assert complete("data", "verify", "some", "--qu") == ["--quick"]
    assert complete("data", "prepare", "PA") == ["PACS"]
    assert complete("list", "algo") == ["algorithms"]
    assert complete("completion", "f") == ["fish"]


def test_data_sets_are_names_or_folders(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    assert sorted(word.rstrip("/") for word in complete("train", "pict")) == ["pictograms", "pictures"]


def test_bash_completes_after_an_equals_sign(scripts: Path, tmp_path: Path) -> None:
    """Readline hands `--track=ten` over as three words."""
    program = [
        "bash",
        "--norc",
        "-c",
        BASH,
        "bash",
        str(scripts / "bash"),
        "domainfusion",
        "train",
        "x",
        "--track",
        "=",
    ]
    assert sorted(run_shell(program, tmp_path)) == ["mlflow", "tensorboard", "wandb"]
    assert run_shell([*program, "ten"], tmp_path) == ["tensorboard"]


@pytest.mark.parametrize("command", KNOWN, ids=lambda command: command.name)
def test_every_option_that_a_command_reads_is_offered_and_no_other(command: Any) -> None:
    name, _, sub = command.name.partition(" ")
    if name in ("list", "completion") or (not sub and subcommands_of(name, cli.PLACES[name])):
        return
    place = cli.PLACES[name]
    kind = subcommands_of(name, place)[sub] if sub else command_class(name, place)
    positional = {field.name for field in dataclasses.fields(kind) if "Positional" in str(field.type)}
    parsed = _flags(kind)
    offered = {option.flag for option in command.options} - {"--help"}
    assert offered <= parsed
    hidden = getattr(kind, "hidden", ())
    unread = {flag for flag in parsed if flag in hidden or flag.rpartition(".")[0] in hidden}
    assert not offered & unread
    missing = {flag for flag in parsed - offered if not flag.split(".")[-1].removeprefix("--").startswith("no-")}
    assert {flag.removeprefix("--") for flag in missing - unread} <= positional


def test_descriptions_are_the_first_sentences_of_what_stands_below_a_field() -> None:
    (train,) = [command for command in KNOWN if command.name == "train"]
    texts = {option.flag: option.summary for option in train.options}
    names = {f"--distill.{field.name.replace('_', '-')}" for field in dataclasses.fields(DistillConfig)}
    assert names <= set(texts)
    assert texts["--distill.samples"] == "Draws of (timestep, noise) per image and step (T in Algorithm 2)"
    assert [flag for flag, text in texts.items() if not text] == []


def test_a_command_is_described_by_what_it_does() -> None:
    summaries = {command.name: command.summary for command in KNOWN if " " not in command.name}
    assert summaries == cli.COMMANDS
    (verify,) = [command for command in KNOWN if command.name == "data verify"]
    assert verify.summary.startswith("Say what a folder of images is")


def test_quotes_in_descriptions_are_kept_from_the_shells(scripts: Path) -> None:
    assert "paper's" in (scripts / "zsh").read_text().replace("'\"'\"'", "'")
    for shell in ("bash", "zsh", "fish"):
        if shutil.which(shell):
            subprocess.run([shell, "-n", str(scripts / shell)], check=True)


def test_printing_a_script_is_quick_and_needs_no_torch() -> None:
    program = (
        "import sys\nfrom domainfusion.cli import run\ncode = run(['completion', 'bash'])\n"
        "print([name for name in ('torch', 'timm', 'diffusers', 'matplotlib') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == script("bash", KNOWN)
    assert done.stderr.strip() == "[]"


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion"]) == 2
    assert "completion bash|zsh|fish" in capsys.readouterr().err
    assert cli.run(["completion", "zhs"]) == 2
    assert "unknown shell 'zhs'; did you mean 'zsh'" in capsys.readouterr().err
    assert cli.run(["completion", "--help"]) == 0
    assert "bash-completion" in capsys.readouterr().out
