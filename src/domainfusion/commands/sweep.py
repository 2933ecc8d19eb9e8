"""sweep: many runs on one machine or a cluster."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from pydantic.dataclasses import dataclass

from domainfusion.commands.layers import base_options, flag_value, given_options, search_table
from domainfusion.commands.parsing import Flat, parse, refuse, show
from domainfusion.config import STRICT, TrainConfig
from domainfusion.config_files import build_config, load_toml, plain_values
from domainfusion.errors import UsageError
from domainfusion.registry import ALGORITHMS
from domainfusion.sweep.options import SweepConfig, sweep_values


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SweepCommand(SweepConfig):
    """Train algorithms on data sets, targets, trials and draws of hyperparameters, by Ray, here or on a cluster.

    The same command again goes on: finished runs are read, others resumed from their own checkpoints.
    """

    hidden: ClassVar[Mapping[str, str]] = {
        "--target": "--targets", "--trial": "--trials", "--algorithm": "--algorithms", "--hparams-seed": "--draws",
        "--second-target": "",
    }  # fmt: skip

    data: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA ...")] = ()
    """Data sets: embedded benchmarks (pictograms) or folders DOMAIN/CLASS/IMAGE."""
    options: Annotated[TrainConfig, Flat]
    output: Path = Path("runs/sweep")
    """Folder of the runs; on a cluster one that all machines have."""
    config: Path | None = None
    """TOML file with options, those of the sweep in a table [sweep]; the command line has the last word."""
    json: bool = False
    """Print the result as JSON."""


def sweep(words: list[str]) -> int:
    """`domainfusion sweep`."""
    refuse(words, SweepCommand.hidden, "sweep")
    options, defaults = read_options(words)
    command = parse(SweepCommand, words, "domainfusion sweep", options, defaults)
    chosen = SweepConfig(**{name: getattr(command, name) for name in SweepConfig.__dataclass_fields__})
    for name in chosen.algorithms:
        ALGORITHMS.get(name)
    for package in ("ray", "optuna") if chosen.search == "optuna" else ("ray",):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"sweep needs {package}: pip install 'domainfusion[sweep]'")
    from domainfusion.experiments.search import Search

    table, origin = search_table(words)
    search = Search(table=table, origin=origin, given=given_options(words))
    if chosen.dry_run:
        from domainfusion.sweep.costs import estimate_sweep, estimate_text

        found = estimate_sweep(chosen, command.options, command.output, search)
        show(found, estimate_text(found), command.json)
        return 0
    from domainfusion.data.findings import number
    from domainfusion.results.tables import accuracy_rows, text_table
    from domainfusion.sweep.running import run_sweep

    spoken = " ".join(["domainfusion", "sweep", *words])
    summary = run_sweep(chosen, command.options, command.output, search=search, command=spoken)
    texts = []
    for name, found in summary["datasets"].items():
        draws = f", best of {chosen.draws} draws of hyperparameters" if chosen.draws > 1 else ""
        texts.append(
            f"{name}, {found['protocol']} splits, {number(len(found['trials']), 'trial')}, model chosen on source "
            f"validation{draws}: target accuracy in %\n\n{text_table(accuracy_rows(found['accuracy']))}"
        )
    show(summary, "\n\n".join(texts) or "no trial is complete, so there is no table", command.json)
    for failure in summary["failed"]:
        print(f"failed: {failure['run']}: {failure['reason']}; log: {failure['log']}", file=sys.stderr)
    if summary["failed"]:
        count = len(summary["failed"])
        print(f"domainfusion: {count} of the runs failed; the same command tries them again", file=sys.stderr)
    return 1 if summary["failed"] else 0


def read_options(words: list[str]) -> tuple[TrainConfig, dict[str, Any]]:
    """Options of the runs and of the sweep that a preset and a `--config FILE.toml` give, or the defaults."""
    options = base_options(TrainConfig, words, other_tables=("sweep",))
    path = flag_value(words, "--config")
    given = {} if path is None else load_toml(Path(path)).get("sweep", {})
    if not isinstance(given, dict):
        raise UsageError(f"{path}: sweep is a table, [sweep]")
    if not given:
        return options, {}
    chosen = build_config(SweepConfig, sweep_values(given), f"{path}: [sweep]")
    return options, {name: getattr(chosen, name) for name in plain_values(chosen)}
