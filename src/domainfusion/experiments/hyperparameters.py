"""Hyperparameter search: DomainBed's random draws, exactly, and spaces of one's own by the same mechanism.

Draw 0 is the options as they are given. Draw h > 0 of trial t takes hyperparameter `name` from

    RandomState(seed_hash(seed_hash(h, t), name)),

so that a draw does not depend on which other hyperparameters there are (Gulrajani and Lopez-Paz, arXiv 2007.01434,
table 8, and the code of DomainBed, whose names are hashed).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.algorithms.zero_shot import ZeroShot
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, flat_values, plain_values
from domainfusion.data.benchmarks import canonical_name
from domainfusion.errors import UsageError, nearest
from domainfusion.registry import ALGORITHMS
from domainfusion.seeding import seed_hash

DRAW = "the hyperparameter draw"
Draw = Callable[[np.random.RandomState], Any]

# What a run is, rather than how it trains: not to be drawn.
IDENTITY = (
    "algorithm", "target", "second_target", "trial", "seed", "hparams_seed", "preset", "device", "data.protocol",
    "data.holdout_fraction",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """An option that is drawn: its dotted name, the name that its seed is hashed from, and its distribution."""

    option: str
    name: str
    draw: Draw


def uniform(low: float, high: float) -> Draw:
    """A number between two."""
    return lambda random: float(random.uniform(low, high))


def power(base: float, low: float, high: float) -> Draw:
    """`base` to the power of a number between two."""
    return lambda random: float(base ** random.uniform(low, high))


def whole(draw: Draw) -> Draw:
    """What `draw` gives without its decimals."""
    return lambda random: int(draw(random))


def choice(values: list[Any]) -> Draw:
    """One of a list."""
    return lambda random: values[int(random.choice(len(values)))]


COMMON = (
    Hyperparameter("lr", "lr", power(10, -5, -3.5)),
    Hyperparameter("weight_decay", "weight_decay", power(10, -6, -2)),
    Hyperparameter("dropout", "resnet_dropout", choice([0.0, 0.1, 0.5])),
)
# Methods that DomainBed does not have (mixstyle, domainfusion) draw the common ones, as a new method there does.
OWN = {
    "mixup": (Hyperparameter("mixup.alpha", "mixup_alpha", power(10, -1, 1)),),
    "groupdro": (Hyperparameter("groupdro.eta", "groupdro_eta", power(10, -3, -1)),),
    "coral": (Hyperparameter("coral.weight", "mmd_gamma", power(10, -1, 1)),),
    "rsc": (
        Hyperparameter("rsc.feature_drop", "rsc_f_drop_factor", uniform(0, 0.5)),
        Hyperparameter("rsc.batch_drop", "rsc_b_drop_factor", uniform(0, 0.5)),
    ),
}


def domainbed_space(algorithm: str, dataset: str) -> tuple[Hyperparameter, ...]:
    """DomainBed's space for an algorithm on a data set of photographs (`dataset` by its canonical name)."""
    batch_size = whole(power(2, 3, 5 if dataset == "DomainNet" else 5.5))
    return (*COMMON, Hyperparameter("batch_size", "batch_size", batch_size), *OWN.get(algorithm, ()))


def read_space(table: dict[str, Any], origin: str) -> tuple[Hyperparameter, ...]:
    """The space of a table `[search]`: by option, a list of choices, `{uniform = [a, b]}` or `{log_uniform = [a, b]}`.

    Options of groups are nested or dotted: `[search.generate] candidates = [1, 3, 5]`. Whole-number options take a
    range's draws without their decimals. Raises `UsageError` naming the option for what the option does not take.
    """
    defaults = flat_values(plain_values(TrainConfig()))
    space = []
    for option, described in _entries(table):
        if option not in defaults or option in IDENTITY:
            near = nearest(option, sorted(set(defaults) - set(IDENTITY)), 0.4)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UsageError(f"{origin}: [search] {option}: no option to search over{hint}")
        is_whole = isinstance(defaults[option], int) and not isinstance(defaults[option], bool)
        draw, extremes = _distribution(described, is_whole, f"{origin}: [search] {option}")
        for value in extremes:
            build_config(TrainConfig, nested({option: value}), f"{origin}: [search]")
        space.append(Hyperparameter(option, option, draw))
    return tuple(space)


def searched_options(table: dict[str, Any]) -> set[str]:
    """The dotted names of the options that a table `[search]` is over."""
    return {option for option, _ in _entries(table)}


def _entries(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and not {"uniform", "log_uniform"} & set(value):
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _distribution(described: Any, is_whole: bool, where: str) -> tuple[Draw, list[Any]]:
    """A distribution, and the values that the option must be able to take for it."""
    if isinstance(described, list) and described:
        return choice(described), described
    if isinstance(described, dict) and len(described) == 1:
        ((kind, ends),) = described.items()
        if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends):
            low, high = map(float, ends)
            if low < high and (kind == "uniform" or low > 0):
                draw = uniform(low, high) if kind == "uniform" else power(10, math.log10(low), math.log10(high))
                return (whole(draw), [int(low), int(high)]) if is_whole else (draw, [low, high])
    raise UsageError(
        f"{where} = {described!r}: give a list of choices, {{uniform = [low, high]}} or {{log_uniform = [low, high]}} "
        "with low below high, and above 0 for log_uniform"
    )


def space_of(
    algorithm: str, data: str, table: dict[str, Any] | None = None, origin: str = ""
) -> tuple[Hyperparameter, ...]:
    """What is drawn for an algorithm on a data set: the table `[search]` of `origin`, or DomainBed's own space."""
    if table is not None:
        return read_space(table, origin)
    folder = Path(data)  # by its own name, from wherever and through whichever link one comes to it
    return domainbed_space(algorithm, canonical_name((folder.resolve() if folder.is_dir() else folder).name))


def draw_values(space: tuple[Hyperparameter, ...], hparams_seed: int, trial: int) -> dict[str, Any]:
    """{option: value} of a draw (1, 2, ...) in a trial."""
    seed = seed_hash(hparams_seed, trial)
    return {entry.option: entry.draw(np.random.RandomState(seed_hash(seed, entry.name))) for entry in space}


def draw_options(
    config: TrainConfig, data: str, *, table: dict[str, Any] | None = None, origin: str = "",
    given: Collection[str] = (),
) -> TrainConfig:  # fmt: skip
    """`config` with what its `hparams_seed` draws for its algorithm and trial; itself where that is 0.

    Args:
        data: the data set's name or folder (DomainBed's batches are smaller on DomainNet).
        table: the table `[search]` of `origin`; DomainBed's own space without one.
        given: options given on the command line or in a file, which keep their values.

    Raises `UsageError` for an algorithm that is not trained.
    """
    if config.hparams_seed == 0:
        return config
    if is_zero_shot(config.algorithm):
        raise UsageError(f"--hparams-seed {config.hparams_seed}: {config.algorithm} is not trained; nothing is drawn")
    values = draw_values(space_of(config.algorithm, data, table, origin), config.hparams_seed, config.trial)
    return with_values(config, {option: value for option, value in values.items() if option not in given}, DRAW)


def with_values(config: TrainConfig, values: Mapping[str, Any], origin: str) -> TrainConfig:
    """`config` with other values of some options, by their dotted names. Raises `UsageError` naming `origin`."""
    changed: dict[str, Any] = flat_values(plain_values(config)) | dict(values)
    built: TrainConfig = build_config(TrainConfig, nested(changed), origin)
    return built


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted name as nested tables.

    >>> nested({"lr": 1, "generate.steps": 2})
    {'lr': 1, 'generate': {'steps': 2}}
    """
    tables: dict[str, Any] = {}
    for name, value in values.items():
        *groups, leaf = name.split(".")
        functools.reduce(lambda table, group: table.setdefault(group, {}), groups, tables)[leaf] = value
    return tables


def is_zero_shot(algorithm: str) -> bool:
    """Whether an algorithm classifies without training."""
    return issubclass(ALGORITHMS.load(algorithm), ZeroShot)
