"""The command line as a whole: help, wrong usage, failures, exit codes, lists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import domainfusion
from domainfusion import cli
from domainfusion.commands import runs
from domainfusion.errors import TrainingError

HEAVY = ("torch", "diffusers", "transformers", "timm", "ray", "matplotlib")


def run_apart(*words: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and which heavy packages a fresh interpreter had imported after running the command."""
    program = (
        "import sys\nfrom domainfusion.cli import run\n"
        "try:\n    code = run(sys.argv[1:])\nexcept SystemExit as error:\n    code = error.code or 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    return done.returncode, done.stdout, json.loads(last.replace("'", '"'))


@pytest.mark.parametrize("words", [("--help",), (), ("--version",), ("train", "--help"), ("list", "algorithms"),
                                   ("list", "datasets")])  # fmt: skip
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    code, output, heavy = run_apart(*words)
    assert code == 0
    assert output
    assert heavy == []


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in printed
        assert callable(cli.find_command(name))


@pytest.mark.parametrize("words", [["report"], ["collect"]])
def test_nothing_named_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 2
    assert "name the " in capsys.readouterr().err


def test_bars_write_little_to_a_file(tmp_path: Path) -> None:
    """A bar over a second, which tqdm would draw ten times, is drawn at its start and its end."""
    program = (
        "import sys, time\nfrom domainfusion.cli import calm_progress\ncalm_progress()\nfrom tqdm import tqdm\n"
        "with tqdm(total=50) as bar:\n    for _ in range(50):\n        time.sleep(0.02)\n        bar.update()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert len(re.findall(r"\d+/50", done.stderr)) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"domainfusion {domainfusion.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'"),
        (["qqqq"], "unknown command 'qqqq'"),
        (["list", "algoritms"], "unknown list 'algoritms'; did you mean 'algorithms'"),
        (["train", "pictograms", "--stesp", "3"], "unknown option --stesp; did you mean --steps?"),
        (["train", "pictograms", "--distill.sampels=3"], "--distill.sampels; did you mean --distill.samples"),
        (["train", "pictograms", "--algorithm", "emr"], "unknown algorithm 'emr'; did you mean 'erm'"),
        (["train", "pictograms", "--algorithm", "ERM"], "unknown algorithm 'ERM'; did you mean 'erm'?"),
        (["train", "pictograms", "--preset", "Paper"], "unknown preset 'Paper'; did you mean 'paper'?"),
        (["train", "pictograms", "--Algorithm", "erm"], "unknown option --Algorithm; did you mean --algorithm?"),
        (["TRAIN"], "unknown command 'TRAIN'; did you mean 'train'?"),
        (["benchmark", "pictograms", "--algorithms", "erm", "domainfusio"], "did you mean 'domainfusion'"),
        (["train", "pictogram", "--algorithm", "erm", "--output", "o"], "unknown data set 'pictogram'; did you mean"),
        (["train", "./absent", "--algorithm", "erm", "--output", "o"], "there is no folder ./absent"),
        (["train", "pictograms", "--steps", "0"], "--steps 0: "),
        (["train", "pictograms", "--data.crop", "1.5"], "--data.crop 1.5: "),
        (["train", "pictograms", "--generate.content-weight", "-1"], "--generate.content-weight -1.0: "),
        (["train", "pictograms", "--generate.strength", "0.5", "7"], "--generate.strength 7.0: "),
        (["train", "pictograms", "--dropout", "1"], "--dropout 1.0: "),
        (["train", "pictograms", "--target", "ink", "--target=flat"], "--target is given twice"),
        (["train", "pictograms", "--batch-size", "4", "--batch_size", "4"], "--batch-size is given twice"),
        (["train", "pictograms", "--data.flip", "--data.no-flip"], "--data.flip is given twice"),
        (["benchmark", "pictograms", "--algorithms", "erm", "--algorithms", "mixup"], "--algorithms is given twice"),
        (["data", "splits", "pictograms", "--trial", "1", "--trial", "2"], "--trial is given twice"),
        (["data", "splits", "pictograms", "--protocol", "strict"], "did you mean --data.protocol?"),
        (["data", "splits", "pictograms", "--data.protocol", "loose"], "--data.protocol"),
        (["data", "splits", "pictograms", "--trial", "-1"], "--trial -1: splits are numbered from 0"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("domainfusion: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing: DATA"),
        (["pictograms", "--steps", "many"], "--steps many: not a whole number"),
        (["pictograms", "--target"], "argument '--target'"),
        (["pictograms", "more"], "superfluous: more"),
        (["pictograms", "--lr-schedule", 300 * "x"], f"invalid choice '{300 * 'x'}' for"),  # in one piece
        (["pictograms", "--lr-schedule", "line"], "invalid choice 'line' for argument '--lr-schedule'"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_what_the_parser_refuses_is_one_line_and_code_2(
    words: list[str], message: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.run(["train", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("domainfusion: ")
    assert message in printed.err
    assert printed.err.endswith("; see domainfusion train --help\n")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("columns", ["50", "80"])
@pytest.mark.parametrize("coloured", [False, True])
def test_help_says_nothing_of_none(
    columns: str, coloured: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: coloured)
    with pytest.raises(SystemExit) as caught:
        cli.run(["train", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert ("\x1b[" in printed) == coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert "domainfusion train DATA [OPTIONS]\n" in plain
    assert "--output PATH" in plain
    assert "(default: 800)" in plain
    assert "None" not in plain
    # A flag stays in one piece with the names that it takes.
    assert all(len(line) <= int(columns) or line.startswith("  --") for line in plain.splitlines())


def test_a_failure_is_one_line_and_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    assert cli.run(["data", "splits", str(tmp_path / "data")]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("domainfusion: ")
    assert "holds no folders" in printed
    assert printed.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    assert cli.run(["data", "splits", str(tmp_path / "data"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_codes_of_failure_and_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(words: list[str]) -> None:
        raise TrainingError("the loss is not finite at step 3")

    def interrupt(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", fail)
    assert cli.run(["train", "x"]) == 1
    assert capsys.readouterr().err == "domainfusion: the loss is not finite at step 3\n"
    monkeypatch.setattr(runs, "train", interrupt)
    assert cli.run(["train", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_before_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(["help", "export"])
    assert caught.value.code == 0
    assert "usage: domainfusion export" in capsys.readouterr().out


def test_help_hides_what_a_command_chooses_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for words, there, hidden in (
        (["train"], ["--algorithm", "--target", "--trial"], []),
        (["benchmark"], ["--algorithms", "--targets", "--trials", "--seed", "--data.size"],
         ["--algorithm", "--target", "--trial", "--second-target"]),
        (["demo"], ["--target", "--steps"], ["--algorithm", "--preset"]),
        (["reproduce"], ["--targets", "--seed"], ["--target", "--second-target", "--hparams-seed"]),
        (["sweep"], ["--targets", "--seed"], ["--target", "--second-target", "--hparams-seed"]),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            cli.run([*words, "--help"])
        flags = re.findall(r"^  (--[\w.-]+)", capsys.readouterr().out, re.MULTILINE)
        assert set(there) <= set(flags)
        assert not set(hidden) & set(flags)


@pytest.mark.parametrize("words", [["reproduce", "table2"], ["sweep", "pictograms"]])
def test_a_second_target_is_refused_where_targets_are_not_given(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*words, "--second-target", "ink"]) == 2
    assert f"--second-target does nothing in `domainfusion {words[0]}`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["PACS", "office_home"])
def test_a_benchmark_that_is_not_there_is_told_how_to_get(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", name, "--algorithm", "erm"]) == 2
    assert f"`domainfusion data download {'PACS' if name == 'PACS' else 'OfficeHome'}`" in capsys.readouterr().err


def test_help_of_data_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "--help"]) == 0
    assert "domainfusion data splits DATA" in capsys.readouterr().out


def test_it_is_said_once_that_the_embedded_ldm_may_not_know_the_images(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(image_folder), "--target", "photo", "--steps", "1", "--evaluations", "1", "--data.size", "16"]
    words += ["--batch-size", "2", "--distill-weight", "0", "--generate.worker", "off"]
    said = "the embedded LDM knows icons and emoji"
    assert cli.run([*words, "--synthetic-weight", "0", "--output", str(tmp_path / "raw")]) == 0
    assert said not in capsys.readouterr().err
    for trial in ("0", "1"):
        assert cli.run([*words, "--trial", trial, "--output", str(tmp_path / trial)]) == 0
    assert capsys.readouterr().err.count(said) == 1


def test_notes_go_to_stderr(image_folder_lacking_class: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["data", "splits", str(image_folder_lacking_class), "--json"]) == 0
    printed = capsys.readouterr()
    assert set(json.loads(printed.out)) == {"cartoon", "photo", "sketch"}
    assert "note: domain photo has no images of 1 of 3 classes: dog" in printed.err


def test_no_trial_is_wrong_usage(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["benchmark", str(image_folder), "--algorithms", "erm", "--trials", "0", "--output", str(tmp_path / "b")]
    assert cli.run(words) == 2
    assert "--trials" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno
    import os

    def full(_: list[str]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/run/metrics.jsonl")

    monkeypatch.setattr(cli, "list_names", full)
    assert cli.run(["list", "algorithms"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("domainfusion: /data/run/metrics.jsonl: No space left on device")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "train DATA --ldm ./absent --target photo --output OUT",
        "generate DATA --ldm DATA --data.size 16",
        "predict DATA DATA",
        "export DATA --output OUT",
        "evaluate DATA",
        "evaluate ABSENT",
        "data prepare PACS ABSENT OUT",
        "doctor DATA --config ABSENT",
        "sweep DATA --config ABSENT",
        "audit DATA --config ABSENT",
    ],
)
def test_what_is_named_and_is_not_there_or_none_is_wrong_usage(
    words: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DATA": image_folder, "OUT": tmp_path / "out", "ABSENT": tmp_path / "absent"}
    assert cli.run([str(places.get(word, word)) for word in words.split()]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("domainfusion: ")
