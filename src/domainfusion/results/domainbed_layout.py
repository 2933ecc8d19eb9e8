"""Records of runs laid out as DomainBed's own scripts read them: `DIR/RUN/results.jsonl`, and `done`.

Its `load_records` (domainbed/lib/reporting.py) reads the file `results.jsonl` of each folder in the one that it is
given, and of none below; what a run is it takes from the records' `args` alone. Runs here lie deeper.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainfusion.data.benchmarks import BENCHMARKS
from domainfusion.errors import FileError, UsageError
from domainfusion.files import hash_of, make_folder, read_json_object, write_json, write_text
from domainfusion.results.domainbed import is_finished
from domainfusion.results.model_selection import draw_order

INDEX = "runs.json"  # {folder: the run's own} of what was laid out; DomainBed's scripts pass over it
# The names of which its tables speak (`DATASETS` of domainbed/datasets.py).
DATASETS = frozenset(BENCHMARKS) | {
    "Debug28", "Debug224", "ColoredMNIST", "RotatedMNIST", "SVIRO", "WILDSCamelyon", "WILDSFMoW", "SpawriousO2O_easy",
    "SpawriousO2O_medium", "SpawriousO2O_hard", "SpawriousM2M_easy", "SpawriousM2M_medium", "SpawriousM2M_hard",
}  # fmt: skip


def check_output(output: Path, roots: Sequence[Path]) -> None:
    """Raise `UsageError` where runs cannot be laid out in `output`.

    It must be new, empty, or made by `lay_out`; and apart from `roots`, or the next collection would read each record
    twice.
    """
    for root in roots:
        here, there = output.resolve(), root.resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise UsageError(
                f"--domainbed {output} and {root} lie in each other, where each record would be read twice: choose a "
                "folder elsewhere"
            )
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / INDEX).is_file())):
        raise UsageError(f"--domainbed {output} is there already and holds other things: choose a new folder")


def lay_out(records: Sequence[dict[str, Any]], output: Path) -> list[str]:
    """Write each run's records to a folder of its own in `output`; remarks on what DomainBed's scripts do with them.

    Args:
        records: in DomainBed's form, each with the `folder` that it was read in, as `read_records` returns them.
        output: a folder that `check_output` accepts; runs that an earlier call put there are replaced.

    A folder is named by what the run is and by the hash of where it lies. `done` is there where the run
    is finished.
    Raises `FileError` where `output` cannot be written.
    """
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in _with_numbered_draws(records):
        runs[record["folder"]].append({name: value for name, value in record.items() if name != "folder"})
    names = {folder_name(found[0], folder): folder for folder, found in runs.items()}
    make_folder(output)
    earlier = read_json_object(output / INDEX) if (output / INDEX).exists() else {}
    write_json(output / INDEX, earlier | names)  # before the folders, so that none is left unknown by an interruption
    for name in earlier.keys() - names.keys():
        _remove(output, name)
    for name, folder in names.items():
        lines = [json.dumps(record, sort_keys=True) + "\n" for record in runs[folder]]
        # Each line ends, the last one too: DomainBed's loader cuts off the last letter of each.
        write_text(output / name / "results.jsonl", "".join(lines))
        if is_finished(Path(folder)):
            write_text(output / name / "done", "done")
        else:
            (output / name / "done").unlink(missing_ok=True)
    write_json(output / INDEX, names)
    return _remarks(records, len(names), output)


def folder_name(record: dict[str, Any], folder: str) -> str:
    """The name of a run's folder in the layout: what its record says it is, and the hash of where it lies."""
    args = record["args"]
    held = "+".join(f"env{number}" for number in args["test_envs"]) or "none"
    words = f"{args['dataset']}-{args['algorithm']}-{held}-trial{args['trial_seed']}-draw{args['hparams_seed']}"
    return f"{re.sub(r'[^A-Za-z0-9_+-]+', '_', words)[:100]}-{hash_of(folder)[:12]}"


def _with_numbered_draws(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with a number for each draw that has no seed but its hyperparameters (SWAD's).

    DomainBed's scripts sort draws by their seed, and cannot sort texts among numbers.
    """
    seeds: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for record in records:
        args = record["args"]
        seeds[args["dataset"], args["algorithm"]].add(args["hparams_seed"])
    numbers: dict[tuple[str, str, Any], int] = {}
    for (dataset, algorithm), found in seeds.items():
        following = max((seed for seed in found if not isinstance(seed, str)), default=-1) + 1
        for seed in sorted(found, key=draw_order):
            if isinstance(seed, str):
                numbers[dataset, algorithm, seed], following = following, following + 1
    numbered = []
    for record in records:
        args = record["args"]
        seed = numbers.get((args["dataset"], args["algorithm"], args["hparams_seed"]), args["hparams_seed"])
        numbered.append(record | {"args": args | {"hparams_seed": seed}})
    return numbered


def _remove(output: Path, name: str) -> None:
    """Remove a folder that an earlier call made."""
    folder = output / name
    if not re.fullmatch("[A-Za-z0-9_+-]+", name) or not folder.is_dir() or folder.is_symlink():
        return
    try:
        for file in ("results.jsonl", "done"):
            (folder / file).unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        raise FileError(f"cannot remove {folder}, whose run is not collected any more: {error.strerror}") from error


def _remarks(records: Sequence[dict[str, Any]], runs: int, output: Path) -> list[str]:
    remarks = [
        f"{runs} run{'s' * (runs != 1)} laid out for DomainBed's scripts: "
        f"python -m domainbed.scripts.collect_results --input_dir {shlex.quote(str(output))}"
    ]
    names = {record["args"]["dataset"] for record in records}
    if unknown := sorted(names - DATASETS):
        remarks.append(
            f"DomainBed's collect_results prints no table of {', '.join(unknown)}, which its list of data sets lacks"
            + ("" if names & DATASETS else ", and stops where it finds no other")
        )
    return remarks
