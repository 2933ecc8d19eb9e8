"""The commands behind the command line, one function each; torch is imported only where a command computes."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import ValidationError
from pydantic_core import ArgsKwargs

from domainfusion.config import GenerateConfig, PretrainConfig, TrainConfig, build_config, load_toml
from domainfusion.errors import UsageError
from domainfusion.registry import ALGORITHMS

Flat = tyro.conf.arg(name="")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train one classifier on DATA; the same command again resumes, or just prints what came out."""

    data: tyro.conf.Positional[str]
    """An embedded benchmark (pictograms) or a folder DOMAIN/CLASS/IMAGE."""
    options: Annotated[TrainConfig, Flat]
    output: Path | None = None
    """Folder of the run (default: runs/DATA-ALGORITHM-TARGET-tTRIAL-sSEED)."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class BenchmarkCommand:
    """Train algorithms on every target domain and trial, and print the table of their accuracies."""

    data: tyro.conf.Positional[str]
    """An embedded benchmark (pictograms) or a folder DOMAIN/CLASS/IMAGE."""
    options: Annotated[TrainConfig, Flat]
    algorithms: tuple[str, ...] = ("erm", "domainfusion")
    """Algorithms to compare; differences are taken to erm."""
    trials: int = 3
    """Number of trials (splits and seeds 0, 1, ...)."""
    targets: tuple[str, ...] = ()
    """Target domains (default: each in turn)."""
    output: Path = Path("runs/benchmark")
    """Folder of the runs."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class PretrainCommand:
    """Train a small latent diffusion model in Stable Diffusion's layout from captioned images."""

    corpus: tyro.conf.Positional[Path]
    """A folder with images and metadata.csv (file_name, text), or an .npz file."""
    options: Annotated[PretrainConfig, Flat]
    output: Path = Path("runs/ldm")
    """Folder of states, losses, samples, and the finished pipeline."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""


@dataclasses.dataclass(frozen=True)
class JudgeCommand:
    """Measure an LDM for DomainFusion: candidates still recognised, style moved, slopes that know labels."""

    data: tyro.conf.Positional[str]
    """An embedded benchmark or a folder DOMAIN/CLASS/IMAGE."""
    ldm: str = "embedded"
    """Latent diffusion model: embedded, a diffusers folder, or a hub id."""
    images: int = 400
    """Images measured on."""
    output: Path = Path("runs/judge")
    """Folder for the figures (judge.json) and a sheet of candidates (candidates.png)."""
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    json: bool = False
    """Print the figures as JSON."""


@dataclasses.dataclass(frozen=True)
class GenerateCommand:
    """Make the candidates of all images of DATA, and keep them for every run that asks for the same.

    The same command again makes what is missing. Runs share them where the LDM, the --generate options and the styles
    that --target leaves are equal.
    """

    data: tyro.conf.Positional[str]
    """An embedded benchmark (pictograms) or a folder DOMAIN/CLASS/IMAGE."""
    options: Annotated[TrainConfig, Flat]
    generations: int = 1
    """Generations made from the stored images (more than one with --generate.no-updating only)."""
    shard: tuple[int, int] = (0, 1)
    """I N: only every N-th image from the I-th, so that N processes share the work."""
    output: Path | None = None
    """Folder for the candidates as DOMAIN/CLASS/NAME.png."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print what was made as JSON."""


@dataclasses.dataclass(frozen=True)
class DistillCommand:
    """Tabulate the slopes of latent distillation for every image of DATA; the same command again goes on.

    Training with --distill.estimator curve and the same --ldm, --distill and --generate options reads the table.
    """

    data: tyro.conf.Positional[str]
    """An embedded benchmark (pictograms) or a folder DOMAIN/CLASS/IMAGE."""
    options: Annotated[TrainConfig, Flat]
    export: Path | None = None
    """Also write the table as one file."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print what the table came to as JSON."""


@dataclasses.dataclass(frozen=True)
class DemoCommand:
    """Train ERM and DomainFusion on the embedded benchmark without one drawing style, and test on that style."""

    options: Annotated[TrainConfig, Flat]
    output: Path = Path("runs/demo")
    """Folder of the two runs and the report."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class ReportCommand:
    """Write one self-contained HTML file from finished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders above them."""
    output: Path = Path("report.html")
    """The file to write."""


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Accuracy of a finished run's model on its target's test images, or on the domains of DATA."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    data: tyro.conf.Positional[str | None] = None
    """Data set to evaluate on instead: every domain of it, by class name."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class PredictCommand:
    """Labels and calibrated confidences of images. A file that cannot be read is a row with an error."""

    model: tyro.conf.Positional[Path]
    """Folder of a run, or of an exported model."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders (with their subfolders), patterns such as 'new/*.jpg'."""
    output: Path | None = None
    """File to write, its form by its ending: .csv, .json, .parquet (default: CSV to stdout)."""
    format: Literal["csv", "json", "parquet"] | None = None
    """Form of the table."""
    top: int = 1
    """Classes named for each image, the most probable first."""
    batch_size: int = 64
    """Images in a pass."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """The same as --format json."""


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Write a model to deploy: a self-contained folder, or an ONNX file checked against PyTorch."""

    model: tyro.conf.Positional[Path]
    """Folder of a run, or of an exported model."""
    output: Path
    """Folder to write to."""
    format: Literal["folder", "onnx"] = "folder"
    """folder: model.safetensors, config.json and model card; onnx: model.onnx and model card (extra: export)."""
    input: Literal["uint8", "float"] = "uint8"
    """What the ONNX graph takes: uint8 (batch, height, width, 3), or float (batch, 3, height, width) in [0, 1]."""
    benchmark: Path | None = None
    """benchmark.json whose leave-one-domain-out accuracies the card quotes (default: the one the run is part of)."""
    json: bool = False
    """Print the files written as JSON."""


@dataclasses.dataclass(frozen=True)
class CollectCommand:
    """Tables of accuracies from folders of runs: ours, DomainBed's and SWAD's (every results.jsonl below them)."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    format: Literal["text", "markdown", "latex", "json"] = "text"
    """Form of the tables."""
    selection: tuple[Literal["training-domain", "leave-one-domain-out", "oracle"], ...] = ()
    """Model selection methods (default: all three)."""
    json: bool = False
    """The same as --format json."""


@dataclasses.dataclass(frozen=True)
class DoctorCommand:
    """What this machine can do and what will be slow; with DATA, what a run with these options would take.

    Nothing is trained or kept: a few real steps are timed, the rest is counted.
    """

    options: Annotated[TrainConfig, Flat]
    data: tyro.conf.Positional[str | None] = None
    """Data set of a planned run: its time, disk and memory are estimated."""
    online: bool = False
    """Also ask whether the model hub can be reached."""
    config: Path | None = None
    """TOML file with the planned run's options; the command line has the last word."""
    json: bool = False
    """Print the findings as JSON."""


def parse(kind: type[T], words: list[str], prog: str, options: Any = None) -> T:
    """`kind` from the command line, with `options` as the defaults of its flat config.

    Raises `UsageError` for an unknown or missing option (naming the nearest) and a value out of range.
    """
    known = _flags(kind)
    for word in words:
        flag = word.split("=")[0]
        if flag.startswith("--") and flag not in ("--help",) and flag.replace("_", "-") not in known:
            near = difflib.get_close_matches(flag.replace("_", "-"), sorted(known), n=1, cutoff=0.4)
            raise UsageError(f"unknown option {flag}" + (f"; did you mean {near[0]}?" if near else ""))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            if options is None:
                return tyro.cli(kind, args=words, prog=prog)
            # tyro takes the fields of a flat config from the default of the whole command.
            return tyro.cli(kind, args=words, prog=prog, default=_with_options(kind, options))
    except (ValidationError, SystemExit) as error:
        # A value refused by a group (`--data.crop 2`) ends in an exit: what was refused is in the exit's context.
        group, cause = "", error.__context__ if isinstance(error, SystemExit) else error
        while cause is not None and not isinstance(cause, ValidationError):
            group, cause = str(getattr(cause, "arg", "")), cause.__context__
        if cause is None:
            sys.stderr.write(printed.getvalue())
            raise
        first = cause.errors()[0]
        where = [*group.split(".")[1:], *(part for part in first["loc"] if isinstance(part, str))]
        if isinstance(first["input"], ArgsKwargs):  # a rule about several options, which names them itself
            raise UsageError(
                (f"--{'.'.join(where)}: " if where else "") + first["msg"].removeprefix("Value error, ")
            ) from None
        raise UsageError(f"--{'.'.join(where).replace('_', '-')} {first['input']}: {first['msg']}") from None


def _with_options(kind: Any, options: Any) -> Any:
    """A command whose flat config is `options`, its other required fields still to be given."""
    values: dict[str, Any] = {"options": options}
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is dataclasses.MISSING:
            values[field.name] = tyro.MISSING
    return kind(**values)


def _flags(kind: Any, prefix: str = "") -> set[str]:
    """Every long flag of a command."""
    import typing

    flags: set[str] = set()
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        name = (prefix + field.name).replace("_", "-")
        if dataclasses.is_dataclass(hint):
            flags |= _flags(hint, "" if field.name == "options" else f"{prefix}{field.name}.")
        else:
            stem, _, leaf = name.rpartition(".")
            flags |= {f"--{name}", f"--{stem}.no-{leaf}" if stem else f"--no-{leaf}"}
    return flags


def _base_options(kind: type, words: list[str]) -> Any:
    """The options that a `--config FILE.toml` on the command line gives, or the defaults."""
    for i, word in enumerate(words):
        if word == "--config" and i + 1 < len(words):
            return build_config(kind, load_toml(Path(words[i + 1])), words[i + 1])
        if word.startswith("--config="):
            path = word.split("=", 1)[1]
            return build_config(kind, load_toml(Path(path)), path)
    return kind()


def _show(value: Any, text: str, as_json: bool) -> None:
    print(json.dumps(value, indent=2, sort_keys=True) if as_json else text)


def _refuse(words: list[str], flags: dict[str, str], command: str) -> None:
    """Raise `UsageError` for options of a single run that `command` sets itself, naming what it has instead."""
    for word in words:
        flag = word.split("=")[0]
        if flag in flags:
            instead = f"; use {flags[flag]}" if flags[flag] else ""
            raise UsageError(f"{flag} does nothing in `domainfusion {command}`, which chooses it itself{instead}")


def train(words: list[str]) -> None:
    """`domainfusion train`."""
    command = parse(TrainCommand, words, "domainfusion train", _base_options(TrainConfig, words))
    options = command.options
    ALGORITHMS.get(options.algorithm)
    from domainfusion.experiments.runs import train_run
    from domainfusion.results.tables import run_summary

    name = "-".join([Path(command.data).name, options.algorithm, options.target or "all"])
    folder = command.output or Path("runs") / f"{name}-t{options.trial}-s{options.seed}"
    result = train_run(command.data, options, folder)
    _show(result, run_summary(result, str(folder)), command.json)


def benchmark(words: list[str]) -> None:
    """`domainfusion benchmark`."""
    _refuse(words, {"--target": "--targets", "--trial": "--trials", "--algorithm": "--algorithms"}, "benchmark")
    command = parse(BenchmarkCommand, words, "domainfusion benchmark", _base_options(TrainConfig, words))
    for name in command.algorithms:
        ALGORITHMS.get(name)
    from domainfusion.experiments.benchmark import run_benchmark
    from domainfusion.results.tables import accuracy_rows, text_table

    summary = run_benchmark(
        command.data, command.options, list(command.algorithms), list(range(command.trials)),
        list(command.targets) or None, command.output, command=" ".join(["domainfusion", "benchmark", *words]),
    )  # fmt: skip
    heading = (
        f"{summary['dataset']}, {summary['protocol']} splits, {command.trials} trials, "
        f"model chosen on source validation: target accuracy in %"
    )
    _show(summary, f"{heading}\n\n{text_table(accuracy_rows(summary['accuracy']))}", command.json)


def demo(words: list[str]) -> None:
    """`domainfusion demo`."""
    from domainfusion.experiments.demo import demo_options, run_demo

    _refuse(words, {"--algorithm": ""}, "demo")
    command = parse(DemoCommand, words, "domainfusion demo", demo_options())
    if command.options.target is None:
        raise UsageError("the demo tests on a style held out: give --target pixel, or another of the five styles")
    result, text = run_demo(command.options, command.output)
    _show(result, text, command.json)


def report(words: list[str]) -> None:
    """`domainfusion report`."""
    command = parse(ReportCommand, words, "domainfusion report")
    from domainfusion.report.html import write_report

    print(write_report(list(command.runs), command.output))


def evaluate(words: list[str]) -> None:
    """`domainfusion evaluate`."""
    command = parse(EvaluateCommand, words, "domainfusion evaluate")
    from domainfusion.experiments.evaluation import evaluate_run
    from domainfusion.results.tables import text_table

    found = evaluate_run(command.run, command.data, command.device)
    rows = [["domain", "images", "accuracy"]]
    rows += [[name, str(entry["images"]), f"{100 * entry['accuracy']:.1f} %"] for name, entry in found.items()]
    _show(found, text_table(rows), command.json)


def predict(words: list[str]) -> int:
    """`domainfusion predict`; 1 where no image could be read."""
    command = parse(PredictCommand, words, "domainfusion predict")
    if command.top < 1 or command.batch_size < 1:
        raise UsageError("--top and --batch-size are at least 1")
    from domainfusion.model import load
    from domainfusion.predict import choose_format, run_predictions

    form = choose_format("json" if command.json else command.format, command.output)
    model = load(command.model, device=command.device)
    top = min(command.top, len(model.classes))
    read = run_predictions(
        model, command.images, top=top, batch_size=command.batch_size, form=form, output=command.output
    )
    return 0 if read else 1


def export(words: list[str]) -> None:
    """`domainfusion export`."""
    command = parse(ExportCommand, words, "domainfusion export")
    from domainfusion.export import export_folder, export_onnx
    from domainfusion.model import load
    from domainfusion.model_card import find_leave_one_out

    model = load(command.model, device="cpu")
    found = find_leave_one_out(model, command.benchmark)
    if found is not None:
        model.facts["leave_one_domain_out"] = found
    onnx = command.format == "onnx"
    files = export_onnx(model, command.output, command.input) if onnx else export_folder(model, command.output)
    names = [str(path) for path in files]
    _show({"format": command.format, "files": names}, "\n".join(names), command.json)


def collect(words: list[str]) -> None:
    """`domainfusion collect`."""
    command = parse(CollectCommand, words, "domainfusion collect")
    from domainfusion.results.collect import collect as collect_tables
    from domainfusion.results.collect import tables_json, tables_text

    for folder in command.folders:
        if not folder.exists():
            raise UsageError(f"there is no folder {folder}")
    tables, notes = collect_tables(list(command.folders), list(command.selection) or None)
    if not tables:
        raise UsageError(f"no records (results.jsonl) at or below {', '.join(map(str, command.folders))}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    form = "json" if command.json else command.format
    _show(tables_json(tables), tables_text(tables, form), form == "json")


def pretrain(words: list[str]) -> None:
    """`domainfusion pretrain`."""
    command = parse(PretrainCommand, words, "domainfusion pretrain", _base_options(PretrainConfig, words))
    from domainfusion.diffusion.pretraining import pretrain as run_pretraining

    print(run_pretraining(command.corpus, command.options, command.output))


def generate(words: list[str]) -> None:
    """`domainfusion generate`."""
    command = parse(GenerateCommand, words, "domainfusion generate", _base_options(TrainConfig, words))
    from domainfusion.experiments.generating import generate_candidates, generation_text

    found = generate_candidates(
        command.data, command.options, generations=command.generations, shard=command.shard, output=command.output
    )
    _show(found, generation_text(found), command.json)


def distill(words: list[str]) -> None:
    """`domainfusion distill`."""
    command = parse(DistillCommand, words, "domainfusion distill", _base_options(TrainConfig, words))
    from domainfusion.experiments.tabulating import tabulate_curves, tabulation_text

    found = tabulate_curves(command.data, command.options, command.export)
    _show(found, tabulation_text(found), command.json)


def judge(words: list[str]) -> None:
    """`domainfusion judge`."""
    command = parse(JudgeCommand, words, "domainfusion judge")
    from domainfusion.experiments.judging import judge_ldm, judgement_text

    found = judge_ldm(command.data, command.ldm, command.images, command.output, generate=command.generate)
    _show(found, judgement_text(found), command.json)


def doctor(words: list[str]) -> int:
    """`domainfusion doctor`; 1 where something stops runs."""
    command = parse(DoctorCommand, words, "domainfusion doctor", _base_options(TrainConfig, words))
    from domainfusion.doctor import examine, machine_text, plan, plan_text

    found = examine(online=command.online)
    text = machine_text(found)
    if command.data is not None:
        found["plan"] = plan(command.data, command.options, found)
        text += f"\n\n{plan_text(found['plan'])}"
    _show(found, text, command.json)
    return 1 if found["problems"] else 0


def data(words: list[str]) -> int:
    """`domainfusion data splits|verify|prepare|download`."""
    from domainfusion.data_commands import run_data

    return run_data(words, parse, _show)
