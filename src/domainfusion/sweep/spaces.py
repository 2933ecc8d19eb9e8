"""Hyperparameter draws: what a sweep varies, and the draws of it, each a function of names and numbers.

A draw is {dotted option name: value}, laid over the options of the command line; its number is its `hparams_seed`, and
number 0 is the options as they are, as in DomainBed.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np

from domainfusion.config import TrainConfig
from domainfusion.config_files import flat_values, plain_values
from domainfusion.errors import UsageError
from domainfusion.experiments.hyperparameters import draw_options, with_values
from domainfusion.experiments.search import Search
from domainfusion.seeding import seed_hash

Kind = Literal["uniform", "loguniform", "randint", "choice"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Overrides = Mapping[str, Any]
# An earlier draw of the same algorithm, data set, target and trial, and its source validation (None: it failed).
Observation = tuple[Overrides, float | None]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a draw is made: nothing else may decide it, and the target's images least of all."""

    algorithm: str
    data: str
    target: str
    trial: int


class Draws(Protocol):
    """A source of hyperparameter draws."""

    def needed(self, hparams_seed: int) -> int:
        """How many of the draws before this one must have ended before it can be made."""

    def draw(self, place: Place, hparams_seed: int, earlier: Sequence[Observation]) -> Overrides:
        """The options of a draw, given the first `needed` ones and what source validation said of them."""


@dataclasses.dataclass(frozen=True)
class Dimension:
    """How one option varies."""

    name: str
    kind: Kind
    values: tuple[Any, ...]  # low and high, both included, or the choices

    def sample(self, random: np.random.RandomState) -> Any:
        """A value drawn at random."""
        if self.kind == "choice":
            return self.values[int(random.choice(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(random.randint(low, high + 1))
        if self.kind == "loguniform":
            return min(max(float(10 ** random.uniform(math.log10(low), math.log10(high))), low), high)
        return float(random.uniform(low, high))

    def __contains__(self, value: Any) -> bool:
        if self.kind == "choice":
            return value in self.values
        return isinstance(value, (int, float)) and self.values[0] <= value <= self.values[1]


def parse_dimension(text: str) -> Dimension:
    """The dimension that `NAME=RULE` describes. Raises `UsageError` where it describes none.

    >>> parse_dimension("lr=loguniform(1e-4, 1e-2)")
    Dimension(name='lr', kind='loguniform', values=(0.0001, 0.01))
    >>> parse_dimension("backbone=choice(resnet18, resnet50)").values
    ('resnet18', 'resnet50')
    """
    match = re.fullmatch(rf"\s*([\w.-]+)\s*=\s*({'|'.join(KINDS)})\s*\((.*)\)\s*", text)
    if match is None:
        raise UsageError(
            f"--space {text} is none of NAME=uniform(LOW,HIGH), NAME=loguniform(LOW,HIGH), NAME=randint(LOW,HIGH), "
            "NAME=choice(A,B,...)"
        )
    name, inside = match[1].replace("-", "_"), match[3]
    kind = next(known for known in KINDS if known == match[2])
    values = tuple(_literal(part) for part in inside.split(",")) if inside.strip() else ()
    if kind == "choice":
        if not values:
            raise UsageError(f"--space {text}: there is nothing to choose from")
        return Dimension(name, "choice", values)
    if len(values) != 2 or not all(isinstance(value, (int, float)) for value in values):
        raise UsageError(f"--space {text}: {kind} takes two numbers, LOW and HIGH")
    if kind == "randint" and not all(isinstance(value, int) for value in values):
        raise UsageError(f"--space {text}: randint takes whole numbers")
    if not values[0] < values[1] or (kind == "loguniform" and values[0] <= 0):
        raise UsageError(f"--space {text}: LOW is below HIGH" + (", and above 0" if kind == "loguniform" else ""))
    return Dimension(name, kind, values)


def _literal(text: str) -> Any:
    word = text.strip()
    if word in ("true", "false"):  # as TOML has them
        return word == "true"
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return value if isinstance(value, (bool, int, float, str)) else word


def parse_space(rules: Sequence[str], config: TrainConfig) -> tuple[Dimension, ...]:
    """The dimensions of a sweep, both ends (or all choices) of each tried on `config`, so that none fails later."""
    space = tuple(parse_dimension(text) for text in rules)
    names = [dimension.name for dimension in space]
    for dimension in space:
        if names.count(dimension.name) > 1:
            raise UsageError(f"--space gives {dimension.name} twice")
        if dimension.name.split(".")[0] in ("algorithm", "target", "trial", "seed", "hparams_seed", "data"):
            raise UsageError(f"--space {dimension.name}: draws are compared on the same data, trials and seeds")
        for value in dimension.values:
            with_values(config, {dimension.name: value}, f"--space {dimension.name}")
    return space


def read_overrides(config: TrainConfig, space: Sequence[Dimension]) -> dict[str, Any]:
    """The values that `config` has of the options that a space varies."""
    values = plain_values(config)
    found = {}
    for dimension in space:
        value: Any = values
        for part in dimension.name.split("."):
            value = value[part]
        found[dimension.name] = value
    return found


@dataclasses.dataclass(frozen=True)
class RandomDraws:
    """Independent draws, seeded as DomainBed's: RandomState(seed_hash(seed_hash(hparams_seed, trial), name))."""

    space: tuple[Dimension, ...]

    def needed(self, hparams_seed: int) -> int:
        """No draw waits for another."""
        return 0

    def draw(self, place: Place, hparams_seed: int, earlier: Sequence[Observation]) -> Overrides:
        """The same values for every algorithm and target, so that they are compared on equal terms."""
        if hparams_seed == 0:
            return {}
        seed = seed_hash(hparams_seed, place.trial)
        return {item.name: item.sample(np.random.RandomState(seed_hash(seed, item.name))) for item in self.space}


@dataclasses.dataclass(frozen=True)
class TableDraws:
    """Draws of a table `[search]`, or of DomainBed's own space, as `benchmark --hparams-seeds` makes them."""

    config: TrainConfig
    search: Search

    def needed(self, hparams_seed: int) -> int:
        """No draw waits for another."""
        return 0

    def draw(self, place: Place, hparams_seed: int, earlier: Sequence[Observation]) -> Overrides:
        """What the draw changes in the options; the same for every target."""
        mine = dataclasses.replace(
            self.config, algorithm=place.algorithm, target=place.target, trial=place.trial, hparams_seed=hparams_seed
        )
        search = self.search
        drawn = draw_options(mine, place.data, table=search.table, origin=search.origin, given=search.given)
        before = flat_values(plain_values(mine))
        return {name: v for name, v in flat_values(plain_values(drawn)).items() if before.get(name) != v}
