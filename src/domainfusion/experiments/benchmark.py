"""Every algorithm on every target and trial, by the same options, with the table of their accuracies.

With several draws of hyperparameters each (algorithm, target, trial) is run with each of them, and the draw counts that
a selection method prefers which never looks at the target: accuracy on the sources' validation images, or on further
domains held out one at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from domainfusion.config import TrainConfig
from domainfusion.data.benchmarks import canonical_name
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import Busy, DomainFusionError, UsageError
from domainfusion.experiments.hyperparameters import draw_options, is_zero_shot
from domainfusion.experiments.runs import describe_environment, train_run
from domainfusion.files import write_json
from domainfusion.registry import ALGORITHMS
from domainfusion.results.domainbed import read_records
from domainfusion.results.model_selection import select
from domainfusion.seeding import seed_hash
from domainfusion.training.records import ALGORITHM_NAMES

Selection = Literal["training-domain", "leave-one-domain-out"]
SELECTIONS = {
    "training-domain": "training-domain validation", "leave-one-domain-out": "leave-one-domain-out validation"
}  # fmt: skip


class Run(NamedTuple):
    """One run of a benchmark; `draw` is its hyperparameter seed, `second` another domain held out to select by."""

    trial: int
    target: str
    algorithm: str
    draw: int = 0
    second: str | None = None

    @property
    def place(self) -> Path:
        """Its folder, below the benchmark's."""
        domains = self.target if self.second is None else f"{self.target}+{self.second}"
        return Path(self.algorithm) / domains / (f"trial-{self.trial}" + (f"-draw-{self.draw}" if self.draw else ""))


@dataclasses.dataclass(frozen=True)
class Search:
    """Which hyperparameters are tried, and how one is chosen.

    `table` is the table `[search]` of `origin` (None: DomainBed's space), `given` the options that are not drawn;
    `seeds` says whether a run's seed is its trial's number plus `seed`, or DomainBed's hash of what the run is.
    """

    draws: tuple[int, ...] = (0,)
    selection: Selection = "training-domain"
    table: dict[str, Any] | None = None
    origin: str = ""
    given: Collection[str] = ()
    seeds: Literal["trial", "domainbed"] = "trial"


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a benchmark consists of."""

    data: str
    config: TrainConfig
    algorithms: list[str]
    trials: list[int]
    targets: list[str]
    domains: tuple[str, ...]  # of the data set, in order
    dataset: str  # its name
    folder: Path
    search: Search

    def draws(self, algorithm: str) -> tuple[int, ...]:
        """The hyperparameter seeds that an algorithm is run with; what is not trained has nothing to draw."""
        return (0,) if is_zero_shot(algorithm) else self.search.draws

    def runs(self) -> list[Run]:
        """Every run, trial by trial and target by target, and behind a trial's runs those that only serve selection."""
        found = []
        for trial in self.trials:
            cells = [(target, algorithm) for target in self.targets for algorithm in self.algorithms]
            found += [Run(trial, t, algorithm, draw) for t, algorithm in cells for draw in self.draws(algorithm)]
            if self.search.selection == "leave-one-domain-out":
                trained = [algorithm for algorithm in self.algorithms if not is_zero_shot(algorithm)]
                found += [
                    Run(trial, first, algorithm, draw, second)
                    for first, second in itertools.combinations(self.domains, 2)
                    if first in self.targets or second in self.targets
                    for algorithm in trained for draw in self.draws(algorithm)
                ]  # fmt: skip
        return found

    def options(self, run: Run) -> TrainConfig:
        """The options of one run."""
        search = self.search
        config = dataclasses.replace(
            self.config, algorithm=run.algorithm, trial=run.trial, hparams_seed=run.draw, target=run.target,
            second_target=run.second, seed=self.config.seed + run.trial,
        )  # fmt: skip
        if search.seeds == "domainbed":
            config = dataclasses.replace(
                config, seed=self.config.seed + domainbed_seed(run, self.dataset, self.domains)
            )
        return draw_options(config, self.data, table=search.table, origin=search.origin, given=search.given)


def domainbed_seed(run: Run, dataset: str, domains: tuple[str, ...]) -> int:
    """The seed that DomainBed's sweeps give a run: the hash of what it is."""
    held = sorted(domains.index(name) for name in (run.target, run.second) if name is not None)
    name = ALGORITHM_NAMES.get(run.algorithm, run.algorithm)
    return seed_hash(canonical_name(dataset), name, held, run.draw, run.trial)


def run_benchmark(
    data: str, config: TrainConfig, algorithms: list[str], trials: list[int], targets: list[str] | None, folder: Path,
    *, command: str = "", search: Search | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train every (algorithm, target, trial, draw) in `folder/algorithm/target/trial-t`; finished runs are kept.

    Several processes with the same command share the work. Returns and writes `benchmark.json` in the form of the
    committed results: {"command", "versions", "accuracy": {algorithm: {target: [per cent, by trial]}}, ...}.
    """
    if not algorithms or not trials:
        raise UsageError("a benchmark needs one of --algorithms and one of --trials at least")
    for algorithm in algorithms:
        ALGORITHMS.get(algorithm)
    dataset = load_dataset(data, config.data)
    for trial in trials:  # a trial that the protocol does not have is refused before anything is trained
        build_split(dataset, config.data, None, trial)
    chosen = list(dict.fromkeys(targets or dataset.domains))
    for target in chosen:
        dataset.index_of(target)
    search = search or Search(draws=(config.hparams_seed,))
    bench = Bench(
        data, config, list(dict.fromkeys(algorithms)), trials, chosen, dataset.domains, dataset.name, folder, search
    )
    _refuse_what_cannot_be_selected(bench)
    runs = bench.runs()
    options = {run: bench.options(run) for run in runs}  # a draw that an option does not take is refused now
    results: dict[Run, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    for run, result in finished(runs, lambda run: train_run(data, options[run], folder / run.place)):
        results[run] = result
        whole = [trial for trial in trials if all(item in results for item in runs if item.trial == trial)]
        if whole and whole != summary.get("trials"):
            summary = {"command": command, "dataset": dataset.name} | summarize_runs(bench, results, whole)
            write_json(folder / "benchmark.json", summary)
    return summary


def _refuse_what_cannot_be_selected(bench: Bench) -> None:
    """Raise `UsageError` where runs that hold out one domain and two would not be measured at the same steps."""
    if bench.search.selection != "leave-one-domain-out":
        return
    if len(bench.domains) < 3:
        raise UsageError(
            f"--selection leave-one-domain-out holds out two domains and trains on others; {bench.dataset} has "
            f"{len(bench.domains)}"
        )
    for flag, wrong in (("--epochs", bench.config.epochs > 0), ("swad", bench.config.average.method == "swad")):
        if wrong:
            raise UsageError(
                "--selection leave-one-domain-out compares runs at the same steps, which they do not have with "
                + (f"{flag}: give --steps" if flag == "--epochs" else f"--average.method {flag}")
            )


def finished(
    runs: Iterable[Run], make: Callable[[Run], dict[str, Any]], pause: float = 5.0
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """(run, result) of each run as it is made, those that other processes are at work on last.

    So several processes with the same command share a benchmark: each makes what no other has begun, and waits for the
    rest, `pause` seconds at a time.
    """
    waiting = list(runs)
    said = False
    while waiting:
        busy = []
        for run in waiting:
            try:
                result = make(run)
            except Busy as error:
                busy.append(run)
                if not said:
                    print(f"note: {error.args[0].split(':')[0]}; going on with the other runs", file=sys.stderr)
                    said = True
                continue
            yield run, result
        if len(busy) == len(waiting):
            time.sleep(pause)
        waiting = busy


@dataclasses.dataclass(frozen=True)
class Cell:
    """What was selected for one algorithm, target and trial: shares, the draw, and the seconds that all draws took."""

    accuracy: float
    validation: float | None  # None where nothing was selected: zero-shot
    draw: int
    seconds: float


def choose(bench: Bench, results: dict[Run, dict[str, Any]], trial: int, target: str, algorithm: str) -> Cell:
    """The cell of a trial whose runs are all finished. The target's accuracy is reported, and takes no part."""
    mine = {draw: results[Run(trial, target, algorithm, draw)] for draw in bench.draws(algorithm)}
    seconds = sum(result["seconds"] for result in mine.values())
    if bench.search.selection == "leave-one-domain-out" and not is_zero_shot(algorithm):
        needed = [
            run for run in results
            if (run.trial, run.algorithm) == (trial, algorithm) and target in (run.target, run.second)
            and (run.second is not None or run.target == target)
        ]  # fmt: skip
        records = read_records([bench.folder / run.place for run in needed]).records
        found = select(records, "leave-one-domain-out")
        if found is None:
            raise DomainFusionError(
                f"leave-one-domain-out cannot choose for {algorithm}, target {target}, trial {trial}: the runs in "
                f"{bench.folder} that hold out one domain and two have no step in common"
            )
        return Cell(found.test, found.validation, int(found.hparams_seed), seconds)
    draw = max(mine, key=lambda number: mine[number]["validation_accuracy"] or 0.0)  # the first of equals
    return Cell(mine[draw]["target_accuracy"], mine[draw]["validation_accuracy"], draw, seconds)


def summarize_runs(bench: Bench, results: dict[Run, dict[str, Any]], trials: list[int]) -> dict[str, Any]:
    """Accuracies, validation (None where nothing was chosen: zero-shot), draws and times of complete trials."""
    tables: dict[str, dict[str, Any]] = {"accuracy": {}, "validation": {}, "seconds": {}, "draws": {}}
    for algorithm in bench.algorithms:
        cells = {t: [choose(bench, results, trial, t, algorithm) for trial in trials] for t in bench.targets}
        tables["accuracy"][algorithm] = {t: [_percent(cell.accuracy) for cell in row] for t, row in cells.items()}
        tables["validation"][algorithm] = {t: [_percent(cell.validation) for cell in row] for t, row in cells.items()}
        tables["draws"][algorithm] = {t: [cell.draw for cell in row] for t, row in cells.items()}
        tables["seconds"][algorithm] = [
            round(cells[t][k].seconds, 1) for k in range(len(trials)) for t in bench.targets
        ]  # fmt: skip
    if bench.search.draws == (0,):
        del tables["draws"]
    environment = describe_environment()
    first = next(iter(results.values()))
    return {
        "protocol": first["protocol"], "trials": trials, "selection": SELECTIONS[bench.search.selection],
        **tables, "versions": environment["versions"], "processor": environment["processor"],
        **({"hparams_seeds": list(bench.search.draws)} if bench.search.draws != (0,) else {}),
    }  # fmt: skip


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 3)
