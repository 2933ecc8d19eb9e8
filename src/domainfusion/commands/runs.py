"""train, benchmark, reproduce, demo: the commands that train."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from domainfusion.api import default_folder
from domainfusion.commands.layers import base_options, drawn, given_options, search_table
from domainfusion.commands.parsing import OTHER_METHODS, Flat, parse, refuse, refuse_output_in_data, show
from domainfusion.config import TrainConfig
from domainfusion.errors import UsageError, show_note
from domainfusion.registry import ALGORITHMS


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train one classifier on DATA; the same command again resumes, or just prints what came out.

    Without --target it is trained on all domains, and then once without each, to say what to expect elsewhere.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """pictograms (embedded), a folder DOMAIN/CLASS/IMAGE or with metadata.csv, or hf://OWNER/NAME."""
    options: Annotated[TrainConfig, Flat]
    output: Path | None = None
    """Folder of the run (default: runs/DATA-ALGORITHM-TARGET-tTRIAL-sSEED)."""
    track: tuple[str, ...] = ()
    """Trackers that are told of the run as it goes on: tensorboard, wandb, mlflow, or MODULE:CLASS."""
    expect: bool = True
    """Without --target: also train without each domain in turn, and say what to expect on a new one."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class BenchmarkCommand:
    """Train algorithms on every target domain and trial, and print the table of their accuracies."""

    hidden: ClassVar[Mapping[str, str]] = {
        "--target": "--targets", "--trial": "--trials", "--algorithm": "--algorithms",
        "--second-target": "--selection leave-one-domain-out",
    }  # fmt: skip

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """pictograms (embedded), a folder DOMAIN/CLASS/IMAGE or with metadata.csv, or hf://OWNER/NAME."""
    options: Annotated[TrainConfig, Flat]
    algorithms: tuple[str, ...] = ("erm", "domainfusion")
    """Algorithms to compare; differences are taken to erm."""
    trials: int = 3
    """Number of trials (splits and seeds 0, 1, ...)."""
    hparams_seeds: int = 1
    """How many draws of hyperparameters are tried, from --hparams-seed on (0: as given); selection chooses one."""
    selection: Literal["training-domain", "leave-one-domain-out"] = "training-domain"
    """What chooses draw and step: the sources' validation images, or further domains held out one at a time, which
    takes a run more for each pair of domains."""
    run_seeds: Literal["trial", "domainbed"] = "trial"
    """A run's seed: its trial's number plus --seed, or DomainBed's hash of what the run is plus --seed."""
    targets: tuple[str, ...] = ()
    """Target domains (default: each in turn)."""
    output: Path = Path("runs/benchmark")
    """Folder of the runs."""
    track: tuple[str, ...] = ()
    """Trackers that are told of the run as it goes on: tensorboard, wandb, mlflow, or MODULE:CLASS."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class ReproduceCommand:
    """Make tables of the paper, row by row, and write them beside the paper's values."""

    hidden: ClassVar[Mapping[str, str]] = {
        "--target": "--targets", "--trial": "--trials", "--algorithm": "a table's name", "--hparams-seed": "",
        "--second-target": "",
    }  # fmt: skip

    tables: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="TABLE ...")]
    """table1 (costs), table2 (sampling, updating), table3 (N), table4 (corruptions), table5 (beside ERM and zero-shot
    classifiers), parts (each part off in turn), fig2 (corruptions and the LDM's prior), fig3 and fig4 (evolution and LD
    noise, any image and busy ones), fig5 (heat maps), all."""
    options: Annotated[TrainConfig, Flat]
    dataset: tuple[str, ...] = ("pictograms",)
    """Embedded benchmarks or folders DOMAIN/CLASS/IMAGE. Of several, each table is made over all of them too."""
    trials: int = 3
    """Number of trials (splits and seeds 0, 1, ...)."""
    targets: tuple[str, ...] = ()
    """Target domains (default: each in turn)."""
    budget: float = 0.0
    """Minutes after which no further run, cost or figure is begun; the same command goes on later (0: no limit)."""
    gpu: Literal["V100", "A100", "L4", "H100"] = "V100"
    """Of table1: the GPU whose days are counted."""
    counted_for: str = "DomainNet/clipart"
    """Of table1: the benchmark and target that they are counted for, as PACS/sketch."""
    output: Path = Path("runs/reproduce")
    """Folder of the runs, the tables (JSON) and reproduce.html."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print the tables as JSON."""


@dataclasses.dataclass(frozen=True)
class DemoCommand:
    """Train ERM and DomainFusion on the embedded benchmark without one drawing style, and test on that style."""

    refused: ClassVar[Mapping[str, str]] = {"--algorithm": "", "--preset": "", "--hparams-seed": ""}
    hidden: ClassVar[Collection[str]] = {*refused, *OTHER_METHODS}

    options: Annotated[TrainConfig, Flat]
    output: Path = Path("runs/demo")
    """Folder of the two runs and the report."""
    json: bool = False
    """Print the result as JSON."""


def train(words: list[str]) -> None:
    """`domainfusion train`."""
    command = parse(TrainCommand, words, "domainfusion train", base_options(TrainConfig, words))
    options = command.options
    ALGORITHMS.get(options.algorithm)
    from domainfusion.experiments.runs import train_run
    from domainfusion.processes import join_processes
    from domainfusion.results.tables import run_summary

    options = drawn(options, command.data, words)
    folder = command.output or default_folder(command.data, options)
    refuse_output_in_data(folder, command.data)  # the default may be: `train .`
    result = train_run(command.data, options, folder, track=command.track)
    first = join_processes().first  # of those that train together, the one that speaks
    text = run_summary(result, str(folder))
    if options.target is None and command.expect and result.get("steps"):  # zero-shot results have every domain already
        from domainfusion.experiments.expectation import expect_elsewhere, expectation_text

        if first:
            show_note(
                "the model is trained and saved; now once without each domain, to say what to expect on a new one "
                "(--no-expect leaves that out)"
            )
        spoken = " ".join(["domainfusion", "train", *words])
        expected = expect_elsewhere(command.data, options, folder, command=spoken)
        result, text = {**result, "expected": expected}, f"{text}\n{expectation_text(expected)}"
    if first:
        show(result, text, command.json)


def benchmark(words: list[str]) -> None:
    """`domainfusion benchmark`."""
    refuse(words, BenchmarkCommand.hidden, "benchmark")
    command = parse(BenchmarkCommand, words, "domainfusion benchmark", base_options(TrainConfig, words))
    for name in command.algorithms:
        ALGORITHMS.get(name)
    if command.hparams_seeds < 1:
        raise UsageError("--hparams-seeds is at least 1")
    from domainfusion.data.findings import number
    from domainfusion.experiments.benchmark import run_benchmark
    from domainfusion.experiments.search import SELECTIONS, Search
    from domainfusion.results.tables import accuracy_rows, text_table

    table, origin = search_table(words)
    first = command.options.hparams_seed
    search = Search(
        draws=tuple(range(first, first + command.hparams_seeds)), selection=command.selection, table=table,
        origin=origin, given=given_options(words), seeds=command.run_seeds,
    )  # fmt: skip
    summary = run_benchmark(
        command.data, command.options, list(command.algorithms), list(range(command.trials)),
        list(command.targets) or None, command.output, command=" ".join(["domainfusion", "benchmark", *words]),
        search=search, track=command.track,
    )  # fmt: skip
    heading = (
        f"{summary['dataset']}, {summary['protocol']} splits, {number(command.trials, 'trial')}, "
        f"model chosen by {SELECTIONS[command.selection]}"
        f"{f' of {command.hparams_seeds} draws' if command.hparams_seeds > 1 else ''}: target accuracy in %"
    )
    show(summary, f"{heading}\n\n{text_table(accuracy_rows(summary['accuracy']))}", command.json)


def reproduce(words: list[str]) -> None:
    """`domainfusion reproduce`."""
    refuse(words, ReproduceCommand.hidden, "reproduce")
    command = parse(ReproduceCommand, words, "domainfusion reproduce", base_options(TrainConfig, words))
    if not command.tables:
        raise UsageError("name what to reproduce: table1 to table5, parts, fig2 to fig5, or all")
    from domainfusion.experiments.reproducing import reproduce as make
    from domainfusion.experiments.reproducing import reproduction_text

    found = make(
        command.tables, command.dataset, command.options, command.trials, command.targets, command.output,
        minutes=command.budget, command=" ".join(["domainfusion", "reproduce", *words]), gpu=command.gpu,
        scale=command.counted_for,
    )  # fmt: skip
    show(found, reproduction_text(found), command.json)


def demo(words: list[str]) -> None:
    """`domainfusion demo`."""
    from domainfusion.experiments.demo import demo_options, run_demo

    refuse(words, DemoCommand.refused, "demo")
    command = parse(DemoCommand, words, "domainfusion demo", demo_options())
    if command.options.target is None:
        raise UsageError("the demo tests on a style held out: give --target ink, or another of the five styles")
    result, text = run_demo(command.options, command.output)
    show(result, text, command.json)
