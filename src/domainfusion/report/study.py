"""Which of the runs can be compared, and what each is called.

A study holds the runs on one data set under one protocol. Its arms are the algorithms, or, where one algorithm was run
with several settings, its variants. A figure is comparable where every arm has it: same target, same trial, same seed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from domainfusion.config import TrainConfig
from domainfusion.config.settings import without_effect
from domainfusion.config_files import flat_values, plain_values
from domainfusion.report.reading import Run, Unit

BASELINE = "erm"
TITLES = {
    "erm": "ERM", "domainfusion": "DomainFusion", "diffusion_classifier": "Diffusion Classifier",
    "diffusion_net": "DiffusionNet", "cdga": "CDGA", "dsi": "DSI",
}  # fmt: skip
# In what the runs of one arm differ, beside what has no effect on them.
PER_RUN = ("target", "trial", "seed", "device")


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
    by_trial: bool = False  # a unit is a trial, whatever its runs' seeds (its own is -1)

    def unit_of(self, run: Run) -> Unit:
        """The unit that a run is one of."""
        return _unit(run, self.by_trial)

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
    def challenger(self) -> Arm | None:
        """The arm that the report is about: DomainFusion (of variants, the one nearest the defaults) where it is there.

        Otherwise the only arm of another algorithm than the baseline's, or the only variant of the baseline, or the
        baseline alone.

        None where several are left: the one that is best on the target must not be chosen by its figure there, source
        validation is not measured by every algorithm, and any other choice is arbitrary.
        """
        own = [arm for arm in self.arms if arm.algorithm == "domainfusion"]
        others = [arm for arm in self.arms if arm.algorithm != BASELINE]
        others = others or [arm for arm in self.arms if arm is not self.baseline] or list(self.arms)
        return own[0] if own else others[0] if len(others) == 1 else None

    @property
    def leading(self) -> list[Arm]:
        """The arms that headlines name: challenger and baseline; of two without a challenger both."""
        if self.challenger is None and len(self.arms) == 2:
            return list(self.arms)
        return [arm for arm in dict.fromkeys((self.challenger, self.baseline)) if arm is not None]

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
        cells = {(run.target, self.unit_of(run)): run for run in arm.runs}
        return [cells[target, unit] for unit in self.units for target in self.targets]

    def accuracy(self) -> dict[str, dict[str, list[float]]]:
        """{arm: {target: [per cent, by unit]}} of the comparable runs."""
        found: dict[str, dict[str, list[float]]] = {}
        for arm in self.arms:
            cells = {(run.target, self.unit_of(run)): run.accuracy or 0.0 for run in arm.runs}
            found[arm.title] = {target: [cells[target, unit] for unit in self.units] for target in self.targets}
        return found


def build_studies(runs: list[Run]) -> list[Study]:
    """The runs by data set, protocol and whether they were tested at all, in the order in which they are met."""
    groups: dict[tuple[str, str, bool], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data["fingerprint"], run.data["protocol"], run.accuracy is None), []).append(run)
    return [_study_of(build_arms(group)) for group in groups.values()]


def _study_of(arms: tuple[Arm, ...]) -> Study:
    data = arms[0].runs[0].data
    # Where no arm repeats a target in a trial, trials are what it is repeated over, whatever the seeds: DomainBed's are
    # another for each run. Else the seeds tell the repetitions of a trial apart.
    tested = [[run for run in arm.runs if run.accuracy is not None] for arm in arms]
    by_trial = all(len({(run.target, run.unit[0]) for run in part}) == len(part) for part in tested) and any(
        len({run.unit[1] for part in tested for run in part if run.unit[0] == trial}) > 1
        for trial in {run.unit[0] for part in tested for run in part}
    )
    cells = [{(run.target, _unit(run, by_trial)) for run in part} for part in tested]
    shared_targets = set.intersection(*({target for target, _ in part} for part in cells))
    targets = [domain for domain in data["domains"] if domain in shared_targets]
    units = [
        unit
        for unit in sorted({unit for part in cells for _, unit in part})
        if targets and all((target, unit) in part for part in cells for target in targets)
    ]
    return Study(data["name"], data["protocol"], arms, tuple(targets if units else ()), tuple(units), by_trial)


def _unit(run: Run, by_trial: bool) -> Unit:
    return (run.unit[0], -1) if by_trial else run.unit


def held_out_study(study: Study) -> Study | None:
    """The runs that left a domain out to say what to expect of a study's own, which trained on all domains.

    Its arms have numbers and titles of the study's. None where there are no such runs.
    """
    arms = []
    for arm in study.arms:
        inside = [held for run in arm.runs if run.expectation is not None for held in run.expectation.runs]
        if inside:
            arms.append(dataclasses.replace(arm, runs=tuple(_without_repeats(inside))))
    return _study_of(tuple(arms)) if arms else None


def build_arms(runs: list[Run]) -> tuple[Arm, ...]:
    """Runs grouped by algorithm and settings: ERM first, then DomainFusion, then the others by name."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        idle = without_effect(run.algorithm, run.options).union(PER_RUN)
        settings = {name: value for name, value in run.options.items() if name not in idle}
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
        before = sum(other == title or other.startswith(f"{title}, no. ") for other in titles)
        titles.append(f"{title}, no. {before + 1}" if before else title)
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
    defaults = flat_values(plain_values(TrainConfig()))
    return sum(run.options[name] != value for name, value in defaults.items() if name in run.options)


def shown_option(run: Run, name: str) -> str:
    """The value of an option as people write it."""
    value = run.options.get(name, "not set")
    return f"{value:g}" if isinstance(value, float) else str(value)


def differing_options(runs: Iterable[Run]) -> list[str]:
    """The names of the options with an effect, other than target, trial and seed, that are not the same in all runs."""
    runs = list(runs)
    idle = set.intersection(*(without_effect(run.algorithm, run.options) for run in runs)).union(PER_RUN)
    names = sorted({name for run in runs for name in run.options} - idle)
    return [name for name in names if any(run.options.get(name) != runs[0].options.get(name) for run in runs)]


def _without_repeats(runs: list[Run]) -> list[Run]:
    """The first run of each target, trial and seed."""
    first: dict[tuple[str | None, Unit], Run] = {}
    for run in runs:
        first.setdefault((run.target, run.unit), run)
    return list(first.values())
