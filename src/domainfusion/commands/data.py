"""The commands of `domainfusion data`: which images train, what a folder is, and how benchmarks come to be folders."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from domainfusion.commands.parsing import Flat, parse, show
from domainfusion.config import DataConfig
from domainfusion.config_files import build_config
from domainfusion.errors import UsageError, nearest, show_note

USAGE = """\
usage: domainfusion data splits DATA [--trial T] [--data.protocol strict]
                                [--data.holdout-fraction F]
                                [--data.bad-images skip] [--json]
       domainfusion data verify PATH [--dataset NAME] [--quick] [--json]
       domainfusion data prepare DATASET SOURCE OUTPUT [--duplicates FILE]
                                 [--copy] [--json]
       domainfusion data download DATASET [--output FOLDER] [--mirror URL] [--json]

DATASET is PACS, VLCS, OfficeHome, TerraIncognita or DomainNet.
--help after a command lists its options."""


@dataclasses.dataclass(frozen=True)
class ReadImages:
    """How the images are read and split."""

    protocol: Literal["auto", "strict", "domainbed"] = "auto"
    """Splits: strict (by folds), domainbed (20 % of each domain held out), auto (strict if there are folds)."""
    holdout_fraction: float = 0.2
    """Share of each domain held out by the domainbed splits."""
    bad_images: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be read: stop and name it, or leave it out and say so."""


@dataclasses.dataclass(frozen=True)
class SplitsOptions:
    """Options of `domainfusion data splits` in groups."""

    data: ReadImages = ReadImages()


@dataclasses.dataclass(frozen=True)
class SplitsCommand:
    """Which images train and which are held out, as row numbers of each domain in sorted order.

    Of a source domain "in" trains and "out" validates. Of the target "in" is tested on, in strict splits "test".
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """pictograms (embedded), a folder DOMAIN/CLASS/IMAGE or with metadata.csv, or hf://OWNER/NAME."""
    options: Annotated[SplitsOptions, Flat] = SplitsOptions()
    trial: int = 0
    """Number of the split."""
    json: bool = False
    """Print the row numbers as JSON."""


@dataclasses.dataclass(frozen=True)
class VerifyCommand:
    """Say what a folder of images is and what is wrong with it: missing, extra, damaged, doubled, mislabelled.

    Every image is decoded. The exit code is 0 where nothing is to be repaired, else 1.
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    """A folder DOMAIN/CLASS/IMAGE, or with metadata.csv or metadata.jsonl (file_name, label, domain)."""
    dataset: str | None = None
    """The benchmark it should be, or none for a data set of its own (default: the one that its folder names say)."""
    quick: bool = False
    """Only list the files: decode nothing, look for no equal images."""
    workers: int = 0
    """Threads that decode (0: one for each CPU, at most 8)."""
    json: bool = False
    """Print everything found as JSON."""


@dataclasses.dataclass(frozen=True)
class PrepareCommand:
    """Make the folder DOMAIN/CLASS/IMAGE of a benchmark from what its authors publish; the same command goes on.

    TerraIncognita is made from its JSON annotations, DomainNet without its listed duplicates, VLCS with its splits
    merged, PACS and OfficeHome with the usual names. The source is never changed.
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """PACS, VLCS, OfficeHome, TerraIncognita or DomainNet."""
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """A folder, an archive (.zip, .tar, .tar.gz), or a folder with archives."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to write."""
    duplicates: Path | None = None
    """List of images to leave out, one path a line (default for DomainNet: domain_net_duplicates.txt in SOURCE)."""
    keep_duplicates: bool = False
    """Prepare DomainNet with its duplicates."""
    allow_missing: bool = False
    """Go on where images that the annotations name are missing (TerraIncognita)."""
    copy: bool = False
    """Copy files where they could be hard-linked."""
    json: bool = False
    """Print what was done as JSON."""


@dataclasses.dataclass(frozen=True)
class DownloadCommand:
    """Download the files of a benchmark, with checks; the same command goes on where it stopped.

    DomainNet (18 GB) and TerraIncognita (6.5 GB) can be loaded; for the others the steps by hand are printed.
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """PACS, VLCS, OfficeHome, TerraIncognita or DomainNet."""
    output: Path | None = None
    """Folder for the files (default: downloads/domain_net or downloads/terra_incognita)."""
    mirror: str | None = None
    """Address of a server that has the same files, by name."""
    json: bool = False
    """Print sizes and checksums as JSON."""


def data(words: list[str]) -> int:
    """`domainfusion data ...`; returns the exit code."""
    if words in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if not words or words[0] not in SUBCOMMANDS:
        near = nearest(words[0], SUBCOMMANDS, 0.6) if words else None
        hint = f"; did you mean {near!r}?" if near else ""
        given = f"unknown command data {words[0]!r}{hint} " if words else ""
        raise UsageError(f"{given}usage: domainfusion data {{{','.join(SUBCOMMANDS)}}} ...")
    kind, function = SUBCOMMANDS[words[0]]
    return function(parse(kind, words[1:], f"domainfusion data {words[0]}"))


def splits(command: SplitsCommand) -> int:
    """`domainfusion data splits`."""
    from domainfusion.data.domains import load_dataset
    from domainfusion.data.splits import parts_of

    if not 0 <= command.trial <= 10**9:
        raise UsageError(f"--trial {command.trial}: splits are numbered from 0 (to 10**9)")
    options = build_config(DataConfig, dataclasses.asdict(command.options.data), "the options")
    dataset = load_dataset(command.data, options)
    protocol, found = parts_of(dataset, options, command.trial)
    # Numbers count from 0 within each domain, as DomainBed's do.
    plain = {
        domain: {part: (rows - dataset.rows(dataset.index_of(domain))[0]).tolist() for part, rows in parts.items()}
        for domain, parts in found.items()
    }
    text = f"{protocol} splits, trial {command.trial}\n"
    text += "\n".join(f"{d}: " + ", ".join(f"{part} {len(rows)}" for part, rows in p.items()) for d, p in plain.items())
    show(plain, text, command.json)
    for note in dataset.notes:
        show_note(note)
    return 0


def verify(command: VerifyCommand) -> int:
    """`domainfusion data verify`."""
    from domainfusion.data.benchmarks import get_benchmark
    from domainfusion.data.verification import verify_folder

    own = command.dataset == "none"
    benchmark = get_benchmark(command.dataset) if command.dataset and not own else None
    if not command.path.is_dir():
        raise UsageError(
            f"{command.path} is a file, not a folder: if it is an archive, unpack it first (`domainfusion data "
            "prepare` does so for the five benchmarks only)"
            if command.path.is_file()
            else f"there is no folder {command.path}"
        )
    state = verify_folder(command.path, benchmark, own=own, quick=command.quick, workers=command.workers)
    show(state.as_json(), state.as_text(), command.json)
    return 0 if state.ok else 1


def prepare(command: PrepareCommand) -> int:
    """`domainfusion data prepare`."""
    from domainfusion.data.benchmarks import get_benchmark
    from domainfusion.data.preparation import prepare as prepare_folder

    benchmark = get_benchmark(command.dataset)
    done = prepare_folder(
        benchmark, command.source, command.output, duplicates=command.duplicates,
        keep_duplicates=command.keep_duplicates, allow_missing=command.allow_missing, copy=command.copy,
    )  # fmt: skip
    expected = dict(zip(benchmark.domains, benchmark.counts, strict=True))
    ways = ", ".join(f"{done[way]} {way}" for way in ("linked", "copied", "unpacked", "present") if done[way])
    lines = [f"{command.output}: {benchmark.name}, {done['images']} images ({ways or 'none written'})"]
    if done["already"]:
        lines[0] = f"{command.output} holds {benchmark.name} from this source already: {done['images']} images"
    lines += [f"  {domain}: {done['counts'].get(domain, 0)} of {count} expected" for domain, count in expected.items()]
    lines += [f"note: {note}" for note in done["notes"]]
    if done["counts"] != expected:
        lines.append(f"the numbers differ from the published ones: domainfusion data verify {command.output}")
    show(done, "\n".join(lines), command.json)
    return 0


def download(command: DownloadCommand) -> int:
    """`domainfusion data download`."""
    from domainfusion.data.benchmarks import get_benchmark
    from domainfusion.data.downloads import DOWNLOADS
    from domainfusion.data.downloads import download as download_files

    benchmark = get_benchmark(command.dataset)
    folder = command.output or Path("downloads") / benchmark.folder
    for remote in DOWNLOADS.get(benchmark.name, ()):
        print(f"{remote.url} ({remote.size_text})", file=sys.stderr)
    print(f"licence: {benchmark.licence}", file=sys.stderr)
    records = download_files(benchmark.name, folder, mirror=command.mirror)
    lines = []
    for name, record in records.items():
        checked = "MD5 as expected" if record["md5_known"] else "no checksum known to compare with"
        lines.append(f"{folder / name}: {record['size']} bytes, {checked}, SHA-256 {record['sha256']}")
    lines.append(f"next: domainfusion data prepare {benchmark.name} {folder} OUTPUT")
    show(records, "\n".join(lines), command.json)
    return 0


SUBCOMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "splits": (SplitsCommand, splits), "verify": (VerifyCommand, verify), "prepare": (PrepareCommand, prepare),
    "download": (DownloadCommand, download),
}  # fmt: skip
