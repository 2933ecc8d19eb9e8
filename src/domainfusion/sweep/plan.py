"""What a sweep consists of, and what of it the store has: every run is one that `benchmark` or `train` would make.

Without draws a run's folder is `benchmark`'s, `ALGORITHM/TARGET/trial-T`; draw h of hyperparameters is beside it as
`trial-T-draw-h`. Several data sets have a folder each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domainfusion.algorithms.zero_shot import ZeroShot
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.data.batches import with_steps
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.splits import build_split
from domainfusion.errors import UsageError, unknown_name
from domainfusion.experiments.benchmark import config_of
from domainfusion.experiments.hyperparameters import with_values
from domainfusion.experiments.run_folder import refuse_other_options
from domainfusion.experiments.search import Search
from domainfusion.files import read_json
from domainfusion.json_lines import read_json_lines
from domainfusion.registry import ALGORITHMS
from domainfusion.sweep.options import SweepConfig
from domainfusion.sweep.spaces import (
    Dimension,
    Draws,
    Observation,
    Place,
    RandomDraws,
    TableDraws,
    parse_space,
    read_overrides,
)  # fmt: skip

PRUNED = "pruned.json"  # in the folder of a run that was stopped because other draws were better


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: where it stands among the others, and its folder."""

    place: Place
    hparams_seed: int
    folder: Path

    @property
    def name(self) -> str:
        """What the run is called in messages: data set, algorithm, target, trial, draw."""
        place = self.place
        text = f"{Path(place.data).name} {place.algorithm}, target {place.target}, trial {place.trial}"
        return f"{text}, draw {self.hparams_seed}" if self.hparams_seed else text


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: `done` or `pruned` with what it came to on source validation, or `failed` with the reason."""

    status: str
    validation: float | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a sweep in the order they are begun, and what they are made from."""

    options: SweepConfig
    config: TrainConfig
    datasets: dict[str, MultiDomainDataset]
    targets: dict[str, list[str]]
    space: tuple[Dimension, ...]
    draws: Draws
    runs: list[Run]
    output: Path

    def config_of(self, run: Run, earlier: Sequence[Observation]) -> TrainConfig:
        """The options of a run, given the draws that it needs. What a begun run was made with stays."""
        place, number = run.place, run.hparams_seed
        config = config_of(self.config, (place.trial, place.target, place.algorithm))
        config = dataclasses.replace(config, hparams_seed=number)
        if number == 0:
            return config
        drawn = self.draws.draw(place, number, earlier)
        kept = run.folder / "config.toml"
        if self.draws.needed(number) and kept.exists():  # proposed then from what was known then
            had = read_overrides(build_config(TrainConfig, load_toml(kept), str(kept)), self.space)
            drawn = {name: value for name, value in had.items() if name in drawn}
        return with_values(config, drawn, f"draw {number}")

    def steps_of(self, place: Place, config: TrainConfig) -> int:
        """The optimizer steps of a run with `config`, whose epochs are those of its data."""
        split = build_split(self.datasets[place.data], config.data, place.target, place.trial)
        return with_steps(config, split).steps

    def observation(self, config: TrainConfig, outcome: Outcome) -> Observation:
        """What a run tells those that need it."""
        return read_overrides(config, self.space), outcome.validation

    def dataset_folder(self, data: str) -> Path:
        """The folder of a data set's runs."""
        return dataset_folder(self.output, data, list(self.datasets))


def dataset_folder(output: Path, data: str, all_data: list[str]) -> Path:
    """The sweep's own folder where there is one data set; else one below it, of the data set's name."""
    return output if len(all_data) == 1 else output / Path(data).name


def build_plan(options: SweepConfig, config: TrainConfig, output: Path, search: Search | None = None) -> Plan:
    """The plan of a sweep. Raises `UsageError` for what would fail later: names, trials, spaces.

    Args:
        search: what is drawn where the sweep has no space of its own, and which options are not drawn there.
    """
    if not options.data:
        raise UsageError("a sweep needs a data set: domainfusion sweep DATA, or `data` in the file's [sweep]")
    algorithms, all_data = list(dict.fromkeys(options.algorithms)), list(dict.fromkeys(options.data))
    for name in algorithms:
        ALGORITHMS.get(name)
    if len({Path(data).name for data in all_data}) < len(all_data):
        raise UsageError("two data sets have the same name, and would have the same folder; rename one")
    space = parse_space(options.space, config)
    if options.draws > 1 and options.search == "optuna" and not space:
        raise UsageError("--search optuna needs what to vary: --space lr=loguniform(1e-4,1e-2), say")
    if space and options.draws == 1:
        raise UsageError("--space does nothing with one draw, which is the options as they are given; give --draws")
    if options.prune and options.draws == 1:
        raise UsageError("--prune compares draws of hyperparameters: give --draws")
    datasets = {data: load_dataset(data, config.data) for data in all_data}
    targets = {data: _targets(options, dataset) for data, dataset in datasets.items()}
    for name in options.targets:
        if not any(name in found for found in targets.values()):
            raise unknown_name("target", name, {domain for item in datasets.values() for domain in item.domains})
    # What is not trained has nothing to draw.
    trained = [name for name in algorithms if not issubclass(ALGORITHMS.load(name), ZeroShot)]
    runs = []
    for trial in range(options.trials):
        for data, dataset in datasets.items():
            for target in targets[data]:
                build_split(dataset, config.data, target, trial)
            folder = dataset_folder(output, data, all_data)
            for number in range(options.draws):
                leaf = f"trial-{trial}-draw-{number}" if number else f"trial-{trial}"
                runs += [
                    Run(Place(algorithm, data, target, trial), number, folder / algorithm / target / leaf)
                    for target in targets[data]
                    for algorithm in (trained if number else algorithms)
                ]
    return Plan(
        options, config, datasets, targets, space, _draws(options, config, space, search or Search()), runs, output
    )


def _targets(options: SweepConfig, dataset: MultiDomainDataset) -> list[str]:
    wanted = list(dict.fromkeys(options.targets or dataset.domains))
    found = [name for name in wanted if name in dataset.domains]
    if not found:
        raise unknown_name(f"target of {dataset.name}", wanted[0], dataset.domains)
    return found


def _draws(options: SweepConfig, config: TrainConfig, space: tuple[Dimension, ...], search: Search) -> Draws:
    if not space:
        return TableDraws(config, search)
    if options.search == "random":
        return RandomDraws(space)
    from domainfusion.sweep.suggestions import OptunaDraws

    return OptunaDraws(space, options.startup)


def read_outcome(plan: Plan, run: Run, config: TrainConfig) -> Outcome | None:
    """How a run ended, by its folder; None where it has not.

    Raises `UsageError` where the folder holds a run with other options or on other images.
    """
    data, folder = run.place.data, run.folder
    refuse_other_options(folder, data, config)
    described = folder / "data.json"
    if described.exists() and read_json(described)["fingerprint"] != plan.datasets[data].fingerprint:
        raise UsageError(f"the images of {data} have changed since the run in {folder} began; choose another --output")
    if (folder / "result.json").exists():
        return Outcome("done", read_json(folder / "result.json")["validation_accuracy"])
    if plan.options.prune and (folder / PRUNED).exists():
        return Outcome("pruned", read_json(folder / PRUNED)["validation_accuracy"])
    return None


def source_metrics(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record search and pruning are told: the step, and the mean accuracy on source validation.

    A record also holds accuracies on the target, for curves and tables. They end here.
    """
    return {"step": int(record["step"]), "validation_accuracy": float(record["validation_accuracy"])}


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """`source_metrics` of each evaluation of a run so far."""
    return [source_metrics(record) for record in read_json_lines(folder / "metrics.jsonl")]
