"""Which of the runs can be compared, and what each is called.

A study holds the runs on one data set under one protocol. Its arms are the algorithms, or, where one algorithm was run
with several settings, its variants. A figure is comparable where every arm has it: same target, same trial, same seed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.config_files import load_toml, plain_values
from domainfusion.errors import UsageError
from domainfusion.files import read_json, read_json_object
from domainfusion.results.records import find_runs, load_run

Unit = tuple[int, int]  # (trial, seed): what an algorithm is repeated over

BASELINE = "erm"
TITLES = {
    "erm": "ERM", "domainfusion": "DomainFusion", "diffusion_classifier": "Diffusion Classifier",
    "diffusion_net": "DiffusionNet", "cdga": "CDGA", "dsi": "DSI",
}  # fmt: skip
# In what the runs of one arm differ.
PER_RUN = ("target", "trial", "seed")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What leave-one-domain-out selection, of the benchmark that a run is part of, says of the run's target."""

    accuracy: float  # per cent
    step: int | None  # None in benchmarks of older versions, which do not tell


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run as it lies on disk; `options` are its settings by dotted name (`generate.steps`).

    `accuracy`, `step` and `validation` are those that its benchmark's selection reports. The weights that it kept, and
    with them its predictions, are of the step that training-domain validation chose within the run (`kept_accuracy`).
    """

    folder: Path
    result: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    records: list[dict[str, Any]]
    text: str
    options: dict[str, Any]
    choice: Choice | None = None  # None: training-domain validation
    search: str = ""  # the benchmark or sweep that chose its hyperparameters; its runs differ in them and are one arm

    @property
    def algorithm(self) -> str:
        """The name of its algorithm."""
        return str(self.result["algorithm"])

    @property
    def target(self) -> str | None:
        """The domain that was held out."""
        return self.result["target"]

    @property
    def unit(self) -> Unit:
        """Its trial and seed."""
        return int(self.result["trial"]), int(self.result["seed"])

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the target in per cent, where there is a target."""
        return self.kept_accuracy if self.choice is None else self.choice.accuracy

    @property
    def kept_accuracy(self) -> float | None:
        """That of the weights that the run kept."""
        share = self.result.get("target_accuracy")
        return None if share is None else 100 * share

    @property
    def step(self) -> int | None:
        """The step that was chosen, where one was and is known."""
        return self.result.get("selected_step") if self.choice is None else self.choice.step

    @property
    def validation(self) -> str:
        """Source validation accuracy at that step in per cent, or a dash where none was measured."""
        share = self.result["validation_accuracy"]
        if self.choice is not None:
            at_step = [record for record in self.records if record["step"] == self.choice.step]
            share = at_step[0].get("validation_accuracy") if at_step else None
        return "–" if share is None else f"{100 * share:.1f} %"

    @property
    def images(self) -> int:
        """How many images of the target it was tested on."""
        return int(self.result.get("test_images", 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in target, trial and seed only."""

    number: int  # chooses its colour
    title: str
    algorithm: str
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """The runs on one data set under one protocol, either all tested on a target or all without one.

    `targets` and `units` are those that every arm has; both are empty where the arms have nothing in common.
    """

    name: str
    protocol: str
    arms: tuple[Arm, ...]
    targets: tuple[str, ...]
    units: tuple[Unit, ...]

    @property
    def data(self) -> dict[str, Any]:
        """What the first run wrote down about its data."""
        return self.arms[0].runs[0].data

    @property
    def classes(self) -> list[str]:
        """The class names."""
        return list(self.data["classes"])

    @property
    def baseline(self) -> Arm | None:
        """The arm that the others are compared with: ERM."""
        return next((arm for arm in self.arms if arm.algorithm == BASELINE), None)

    @property
    def challenger(self) -> Arm:
        """The arm that the report is about: DomainFusion, the first other algorithm, or a variant of the baseline."""
        others = [arm for arm in self.arms if arm is not self.baseline]
        return min(others, key=lambda arm: arm.algorithm == BASELINE, default=self.arms[0])

    @property
    def tested(self) -> bool:
        """Whether a target was held out and tested."""
        return self.arms[0].runs[0].accuracy is not None

    @property
    def left_out(self) -> int:
        """How many tested runs have no partner in some arm and take no part in the comparison."""
        if not self.units:
            return 0
        tested = sum(run.accuracy is not None for arm in self.arms for run in arm.runs)
        return tested - len(self.arms) * len(self.targets) * len(self.units)

    def compared(self, arm: Arm) -> list[Run]:
        """The runs of an arm that take part in the comparison, by unit and target; all of them where none can."""
        if not self.units:
            return list(arm.runs)
        cells = {(run.target, run.unit): run for run in arm.runs}
        return [cells[target, unit] for unit in self.units for target in self.targets]

    def accuracy(self) -> dict[str, dict[str, list[float]]]:
        """{arm: {target: [per cent, by unit]}} of the comparable runs."""
        found: dict[str, dict[str, list[float]]] = {}
        for arm in self.arms:
            cells = {(run.target, run.unit): run.accuracy or 0.0 for run in arm.runs}
            found[arm.title] = {target: [cells[target, unit] for unit in self.units] for target in self.targets}
        return found


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The finished runs at or below `paths`, each once. Raises `UsageError` where there is none."""
    paths = list(paths)
    folders: dict[Path, Path] = {}
    for path in paths:
        for folder in find_runs(path):
            # Other tools write a result.json too (Ray does); a run of ours also tells of its data.
            # A run that held out a second domain was made to select others by.
            if (folder / "data.json").exists() and "second_target" not in read_json_object(folder / "data.json"):
                folders.setdefault(folder.resolve(), folder)
    if not folders:
        places = ", ".join(str(path) for path in paths) or "no folder"
        raise UsageError(
            f"no finished run (a folder with result.json and data.json) at or below {places}; "
            "train one first: domainfusion train DATA --output DIR"
        )
    runs = [_read_run(folder) for folder in folders.values()]
    return [run for run in runs if not run.search or _was_chosen(run)]


def _read_run(folder: Path) -> Run:
    path = folder / "config.toml"
    values = load_toml(path) if path.exists() else {}
    found = load_run(folder)
    return Run(
        folder=folder, result=found["result"], data=found["data"], environment=found["environment"],
        records=found["records"], text=found["config"], options=dict(_flat(values)), search=_search_of(folder),
        choice=_choice_of(folder, found["result"]),
    )  # fmt: skip


def _search_of(folder: Path) -> str:
    """The folder of the benchmark or sweep that chose among draws of hyperparameters, this run's too; or empty."""
    root = (folder.resolve() / "../../..").resolve()  # of ROOT/ALGORITHM/TARGET/trial-T
    return "" if _draws_that_count(root) is None else str(root)


def _draws_that_count(root: Path) -> dict[str, Any] | None:
    """{algorithm: {target: {trial: draw}}} of a benchmark or sweep with several draws; None of any other folder."""
    for path, name in ((root / "sweep.json", "chosen"), (root / "benchmark.json", "draws")):
        found = read_json_object(path) if path.exists() else {}
        if name not in found:
            continue
        draws: dict[str, Any] = {}
        for algorithm, targets in found[name].items():
            for target, row in targets.items():
                # A sweep adds the options of the draw to its number.
                numbers = [cell["hparams_seed"] if name == "chosen" else cell for cell in row]
                draws.setdefault(algorithm, {})[target] = dict(zip(found["trials"], numbers, strict=False))
        return draws
    return None


def _choice_of(folder: Path, result: dict[str, Any]) -> Choice | None:
    """What the benchmark that a run is part of chose for it by leave-one-domain-out, and has come to already."""
    path = folder.resolve() / "../../.." / "benchmark.json"  # of ROOT/ALGORITHM/TARGET/trial-T
    found = read_json(path) if path.exists() else {}
    if not str(found.get("selection", "")).startswith("leave-one-domain-out"):
        return None
    trial = dict(zip(found["trials"], range(len(found["trials"])), strict=True)).get(result["trial"])
    accuracies = found["accuracy"].get(result["algorithm"], {}).get(result["target"])
    if trial is None or accuracies is None:
        return None
    steps = found.get("steps", {}).get(result["algorithm"], {}).get(result["target"])
    if steps is not None and steps[trial] is None:  # not trained: there was nothing to choose
        return None
    return Choice(accuracies[trial], None if steps is None else steps[trial])


def _was_chosen(run: Run) -> bool:
    """Whether the run's draw is the one that counts in its cell; True where the search has not come to it yet."""
    by_trial = (_draws_that_count(Path(run.search)) or {}).get(run.algorithm, {}).get(run.target, {})
    return by_trial.get(run.unit[0], -1) in (-1, run.options.get("hparams_seed", 0))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def build_studies(runs: list[Run]) -> list[Study]:
    """The runs by data set, protocol and whether they were tested at all, in the order in which they are met."""
    groups: dict[tuple[str, str, bool], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data["fingerprint"], run.data["protocol"], run.accuracy is None), []).append(run)
    return [_build_study(group) for group in groups.values()]


def _build_study(runs: list[Run]) -> Study:
    arms = build_arms(runs)
    cells = [{(run.target, run.unit) for run in arm.runs if run.accuracy is not None} for arm in arms]
    shared_targets = set.intersection(*({target for target, _ in part} for part in cells))
    targets = [domain for domain in runs[0].data["domains"] if domain in shared_targets]
    units = [
        unit
        for unit in sorted({unit for part in cells for _, unit in part})
        if targets and all((target, unit) in part for part in cells for target in targets)
    ]
    data = runs[0].data
    return Study(data["name"], data["protocol"], arms, tuple(targets if units else ()), tuple(units))


def build_arms(runs: list[Run]) -> tuple[Arm, ...]:
    """Runs grouped by algorithm and settings: ERM first, then DomainFusion, then the others by name."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        settings = {name: value for name, value in run.options.items() if name not in PER_RUN}
        settings = {"search": run.search} if run.search else settings
        groups.setdefault((run.algorithm, json.dumps(settings, sort_keys=True, default=str)), []).append(run)
    # Of the variants of an algorithm, the one nearest to the default options comes first.
    order = sorted(
        groups, key=lambda key: (key[0] != "erm", key[0] != "domainfusion", key[0], _unusual(groups[key][0]), key[1])
    )
    titles: list[str] = []
    for key in order:
        algorithm = key[0]
        variants = [groups[other][0] for other in order if other[0] == algorithm]
        title = TITLES.get(algorithm, algorithm)
        if len(variants) > 1:
            title = f"{title} ({_settings(groups[key][0], variants)})"
        titles.append(title if title not in titles else f"{title}, no. {titles.count(title) + 1}")
    return tuple(
        Arm(number, title, key[0], tuple(_without_repeats(groups[key])))
        for number, (key, title) in enumerate(zip(order, titles, strict=True))
    )


def _settings(run: Run, variants: list[Run], most: int = 3) -> str:
    """In what `run` differs from the other variants of its algorithm, as "distill_weight = 0"."""
    names = differing_options(variants)
    shown = [f"{name} = {shown_option(run, name)}" for name in names[:most]]
    return ", ".join(shown) + (" …" if len(names) > most else "")


def _unusual(run: Run) -> int:
    """How many of its options are not the defaults."""
    defaults = dict(_flat(plain_values(TrainConfig())))
    return sum(run.options[name] != value for name, value in defaults.items() if name in run.options)


def shown_option(run: Run, name: str) -> str:
    """The value of an option as people write it."""
    value = run.options.get(name, "not set")
    return f"{value:g}" if isinstance(value, float) else str(value)


def differing_options(runs: Iterable[Run]) -> list[str]:
    """The names of the options, other than target, trial and seed, that are not the same in all runs."""
    runs = list(runs)
    names = sorted({name for run in runs for name in run.options} - set(PER_RUN))
    return [name for name in names if any(run.options.get(name) != runs[0].options.get(name) for run in runs)]


def _without_repeats(runs: list[Run]) -> list[Run]:
    """The first run of each target, trial and seed."""
    first: dict[tuple[str | None, Unit], Run] = {}
    for run in runs:
        first.setdefault((run.target, run.unit), run)
    return list(first.values())
