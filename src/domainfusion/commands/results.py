"""evaluate, report, collect: what came out of runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from domainfusion.commands.parsing import Flat, parse, show
from domainfusion.errors import UsageError, show_note


@dataclasses.dataclass(frozen=True)
class OtherImages:
    """How the images of DATA are read, in the size of the run's."""

    bad_images: Literal["error", "skip"] | None = None
    """What to do with an image that cannot be read: stop and name it, or leave it out and say so (default: as the run
    did)."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Options of `domainfusion evaluate` in groups."""

    data: OtherImages = OtherImages()


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Accuracy of a finished run's model on its target's test images, or on the domains of DATA."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a finished run."""
    data: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[DATA]")] = None
    """Data set to evaluate on instead: every domain of it, by class name."""
    options: Annotated[EvaluateOptions, Flat] = EvaluateOptions()
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print the result as JSON."""


@dataclasses.dataclass(frozen=True)
class ReportCommand:
    """Write one self-contained HTML file from finished runs."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders, or folders above them."""
    output: Path = Path("report.html")
    """The file to write."""
    heat_maps: bool = False
    """Add heat maps of some test images, by the runs' LDM (a few seconds with the embedded one)."""
    audit: tuple[Path, ...] = ()
    """Folders that `domainfusion audit` wrote of the runs' data sets: add their most suspicious labels."""


@dataclasses.dataclass(frozen=True)
class CollectCommand:
    """Tables of accuracies from folders of runs: ours, DomainBed's and SWAD's (every results.jsonl below them)."""

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER ...")]
    """Folders of runs."""
    format: Literal["text", "markdown", "latex", "json"] = "text"
    """Form of the tables."""
    selection: tuple[Literal["training-domain", "leave-one-domain-out", "oracle"], ...] = ()
    """Model selection methods (default: all three)."""
    domainbed: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Lay the runs' records out in DIR too, as DomainBed's own scripts read them (collect_results --input_dir DIR)."""
    json: bool = False
    """The same as --format json."""


def evaluate(words: list[str]) -> None:
    """`domainfusion evaluate`."""
    command = parse(EvaluateCommand, words, "domainfusion evaluate")
    from domainfusion.experiments.evaluation import evaluate_run
    from domainfusion.results.tables import text_table

    found = evaluate_run(command.run, command.data, command.device, bad_images=command.options.data.bad_images)
    rows = [["domain", "images", "accuracy"]]
    rows += [[name, str(entry["images"]), f"{100 * entry['accuracy']:.1f} %"] for name, entry in found.items()]
    text = text_table(rows)
    classes = sorted({name for entry in found.values() for name in entry["class_accuracy"]})
    if len(classes) > 40:
        text += f"\n\naccuracies of the {len(classes)} classes: --json"
    else:
        by_class = [["class", *found]]
        for name in classes:
            shares = [entry["class_accuracy"].get(name) for entry in found.values()]
            by_class.append([name, *("–" if share is None else f"{100 * share:.1f} %" for share in shares)])
        text += f"\n\n{text_table(by_class)}"
    show(found, text, command.json)


def report(words: list[str]) -> None:
    """`domainfusion report`."""
    command = parse(ReportCommand, words, "domainfusion report")
    if not command.runs:
        raise UsageError("name the runs to report on: their folders, or folders above them")
    from domainfusion.report.html import write_report

    print(write_report(list(command.runs), command.output, heat_maps=command.heat_maps, audits=command.audit))


def collect(words: list[str]) -> None:
    """`domainfusion collect`."""
    command = parse(CollectCommand, words, "domainfusion collect")
    if not command.folders:
        raise UsageError("name the folders that hold the runs")
    from domainfusion.results.collect import build_tables, tables_json, tables_text
    from domainfusion.results.domainbed import read_records
    from domainfusion.results.domainbed_layout import check_output, lay_out
    from domainfusion.results.variants import split_variants

    for folder in command.folders:
        if not folder.exists():
            raise UsageError(f"there is no folder {folder}")
    if command.domainbed is not None:
        check_output(command.domainbed, command.folders)
    found = read_records(list(command.folders))
    if not found.records:
        why = "".join(f"; {note}" for note in found.notes[:1])
        raise UsageError(f"no records (results.jsonl) at or below {', '.join(map(str, command.folders))}{why}")
    laid_out = lay_out(found.records, command.domainbed) if command.domainbed is not None else []
    records, told_apart = split_variants(found.records)
    for note in (*found.notes, *laid_out, *told_apart):
        show_note(note)
    tables = build_tables(records, list(command.selection) or None)
    form = "json" if command.json else command.format
    show(tables_json(tables), tables_text(tables, form), form == "json")
