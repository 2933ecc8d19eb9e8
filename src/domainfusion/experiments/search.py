"""Which runs a benchmark consists of, and which draw of hyperparameters counts in each of its cells.

A cell is an algorithm on a target in a trial. With several draws it is run with each, and the draw counts that a
selection method prefers which never looks at the target: accuracy on the sources' validation images, or on further
domains held out one at a time, in runs of their own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from domainfusion.config import TrainConfig
from domainfusion.data.benchmarks import canonical_name
from domainfusion.errors import DomainFusionError, UsageError
from domainfusion.experiments.hyperparameters import draw_options, is_zero_shot, space_of
from domainfusion.registry import ALGORITHMS
from domainfusion.results.domainbed import read_records
from domainfusion.results.model_selection import select
from domainfusion.seeding import seed_hash
from domainfusion.training.records import ALGORITHM_NAMES

Selection = Literal["training-domain", "leave-one-domain-out"]
SELECTIONS = {
    "training-domain": "training-domain validation", "leave-one-domain-out": "leave-one-domain-out validation"
}  # fmt: skip


class PlannedRun(NamedTuple):
    """One run; `draw` is its hyperparameter seed, `second` another domain held out to select by."""

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
class Plan:
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

    def runs(self) -> list[PlannedRun]:
        """Every run, trial by trial and target by target, and behind a trial's runs those that only serve selection."""
        found = []
        for trial in self.trials:
            cells = [(target, algorithm) for target in self.targets for algorithm in self.algorithms]
            found += [PlannedRun(trial, t, algorithm, draw) for t, algorithm in cells for draw in self.draws(algorithm)]
            if self.search.selection == "leave-one-domain-out":
                trained = [algorithm for algorithm in self.algorithms if not is_zero_shot(algorithm)]
                found += [
                    PlannedRun(trial, first, algorithm, draw, second)
                    for first, second in itertools.combinations(self.domains, 2)
                    if first in self.targets or second in self.targets
                    for algorithm in trained for draw in self.draws(algorithm)
                ]  # fmt: skip
        return found

    def options(self, run: PlannedRun) -> TrainConfig:
        """The options of one run."""
        search = self.search
        seed = domainbed_seed(run, self.dataset, self.domains) if search.seeds == "domainbed" else run.trial
        config = dataclasses.replace(
            self.config, algorithm=run.algorithm, trial=run.trial, hparams_seed=run.draw, target=run.target,
            second_target=run.second, seed=self.config.seed + seed,
        )  # fmt: skip
        return draw_options(config, self.data, table=search.table, origin=search.origin, given=search.given)

    def check(self) -> None:
        """Raise `UsageError` where there is nothing to draw, and where runs that hold out one domain and two would not
        be measured at the same steps."""
        search = self.search
        for algorithm in self.algorithms:
            if len(self.draws(algorithm)) < 2:
                continue
            space = {entry.option for entry in space_of(algorithm, self.data, search.table, search.origin)}
            if space <= set(search.given):
                raise UsageError(
                    f"--hparams-seeds {len(search.draws)}: the draws for {algorithm} are all the same, because all "
                    f"that is drawn is given ({', '.join(sorted(space))}); leave out what the search is to be over"
                )
        if self.search.selection != "leave-one-domain-out":
            return
        if len(self.domains) < 3:
            raise UsageError(
                f"--selection leave-one-domain-out holds out two domains and trains on others; {self.dataset} has "
                f"{len(self.domains)}"
            )
        late = [name for name in self.algorithms if not getattr(ALGORITHMS.load(name), "tests_by_classifier", True)]
        if late:
            raise UsageError(
                f"--selection leave-one-domain-out compares runs at the same steps; {late[0]} is tested once, after "
                "training, at a step that each run chooses"
            )
        if self.config.epochs or self.config.average.method == "swad":
            wrong = "--epochs: give --steps" if self.config.epochs else "--average.method swad"
            raise UsageError(
                f"--selection leave-one-domain-out compares runs at the same steps, which there are not with {wrong}"
            )


def domainbed_seed(run: PlannedRun, dataset: str, domains: tuple[str, ...]) -> int:
    """The seed that DomainBed's sweeps give a run: the hash of what it is."""
    held = sorted(domains.index(name) for name in (run.target, run.second) if name is not None)
    name = ALGORITHM_NAMES.get(run.algorithm, run.algorithm)
    return seed_hash(canonical_name(dataset), name, held, run.draw, run.trial)


def choose(
    plan: Plan, results: Mapping[PlannedRun, dict[str, Any]], trial: int, target: str, algorithm: str
) -> dict[str, Any]:
    """What counts of a cell whose runs are all finished, in the form of a run's result.

    {"target_accuracy", "validation_accuracy", "seconds" (of all its draws), "protocol", "draw"}, and under
    leave-one-domain-out the "step" at which the accuracies are, which need not be the one whose weights the run kept.
    The accuracy on the target is reported, and takes no part in the choice. `validation_accuracy` is what the choice
    went by.
    """
    mine = {draw: results[PlannedRun(trial, target, algorithm, draw)] for draw in plan.draws(algorithm)}
    # The last of equals, as DomainBed's scripts and `collect` have it (`results.model_selection`).
    draw = max(reversed(mine), key=lambda number: mine[number]["validation_accuracy"] or 0.0)
    found = {name: mine[draw][name] for name in ("target_accuracy", "validation_accuracy", "protocol")}
    if plan.search.selection == "leave-one-domain-out" and not is_zero_shot(algorithm):
        mates = [run for run in results if (run.trial, run.algorithm) == (trial, algorithm)]
        folders = [plan.folder / run.place for run in mates if target in (run.target, run.second)]
        chosen = select(read_records(folders).records, "leave-one-domain-out")
        if chosen is None:
            raise DomainFusionError(
                f"leave-one-domain-out cannot choose for {algorithm}, target {target}, trial {trial}: the runs in "
                f"{plan.folder} that hold out one domain and two have no step in common"
            )
        draw = int(chosen.hparams_seed)
        found |= {"target_accuracy": chosen.test, "validation_accuracy": chosen.validation, "step": chosen.step}
    return found | {"seconds": sum(result["seconds"] for result in mine.values()), "draw": draw}
