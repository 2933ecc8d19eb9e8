"""Which images train, validate and test: DomainBed's splits, and the strict ones of a data set with folds."""

from __future__ import annotations

import dataclasses

import numpy as np

from domainfusion.config import DataConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.errors import DataError, UsageError
from domainfusion.seeding import seed_hash

STRICT_TRIALS = 5


@dataclasses.dataclass(frozen=True)
class Split:
    """Row numbers of a data set: training and validation by source domain, and the target's test images."""

    protocol: str  # "strict" or "domainbed"
    trial: int
    target: str | None
    sources: tuple[str, ...]
    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    test: np.ndarray  # (n,) rows of the target; empty without a target
    oracle: (
        np.ndarray
    )  # (n,) the target's held-out rows, for records that compare with oracle selection; never used here
    second_target: str | None = None
    second: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # {"in", "out"} of the second target

    @property
    def held_out(self) -> dict[str, dict[str, np.ndarray]]:
        """{held-out domain: {"in": rows, "out": rows}} as records name them: `in` is what is reported.

        A run with two of them serves to select for either, by its accuracy on the other. So in strict splits both are
        measured on fold t+1: fold t's codepoints are those that are tested in the other domain.
        """
        if self.target is None:
            return {}
        first = {"in": self.test, "out": self.oracle}
        if self.second_target is None:
            return {self.target: first}
        if self.protocol == "strict":
            first["in"] = self.oracle
        return {self.target: first, self.second_target: self.second}


def domainbed_order(count: int, trial: int, domain: int) -> np.ndarray:
    """The `count` images of domain number `domain` in DomainBed's order: the first 20 % are held out.

    >>> domainbed_order(10, 0, 0).tolist()
    [2, 3, 8, 1, 4, 5, 0, 9, 6, 7]
    """
    keys = list(range(count))
    np.random.RandomState(seed_hash(trial, domain)).shuffle(keys)
    return np.array(keys, dtype=np.int64)


def domainbed_split(
    dataset: MultiDomainDataset, trial: int, holdout_fraction: float
) -> dict[str, dict[str, np.ndarray]]:
    """{domain: {"in": rows, "out": rows}}: DomainBed's split of every domain, `out` being the held-out share."""
    parts = {}
    for number, domain in enumerate(dataset.domains):
        rows = dataset.rows(number)
        order = rows[domainbed_order(len(rows), trial, number)]
        held = int(holdout_fraction * len(rows))
        parts[domain] = {"in": order[held:], "out": order[:held]}
    return parts


def strict_split(dataset: MultiDomainDataset, trial: int) -> dict[str, dict[str, np.ndarray]]:
    """{domain: {"in", "out", "test"}} by the data set's folds: `test` is fold t, `out` fold t+1, `in` the other three.

    What is tested as a target (fold t) is drawn from codepoints that no source's `in` or `out` has in any style.
    """
    if dataset.folds is None:
        raise UsageError(f"{dataset.name} has no folds of its own; use --data.protocol domainbed")
    if not 0 <= trial < STRICT_TRIALS:
        raise UsageError(f"trial {trial}: the strict protocol has the trials 0 to {STRICT_TRIALS - 1}")
    parts = {}
    for number, domain in enumerate(dataset.domains):
        rows = dataset.rows(number)
        folds = dataset.folds[rows]
        test, out = folds == trial, folds == (trial + 1) % STRICT_TRIALS
        parts[domain] = {"in": rows[~test & ~out], "out": rows[out], "test": rows[test]}
    return parts


def parts_of(
    dataset: MultiDomainDataset, config: DataConfig, trial: int
) -> tuple[str, dict[str, dict[str, np.ndarray]]]:
    """("strict" or "domainbed", {domain: {part: rows}}), as the options say: `auto` is strict where there are folds."""
    if config.protocol == "strict" or (config.protocol == "auto" and dataset.folds is not None):
        return "strict", strict_split(dataset, trial)
    return "domainbed", domainbed_split(dataset, trial, config.holdout_fraction)


def build_split(
    dataset: MultiDomainDataset, config: DataConfig, target: str | None, trial: int, second_target: str | None = None
) -> Split:
    """The split of a run. Without a target every domain trains, and nothing is tested.

    A `second_target` is held out too; how a run does on it is what leave-one-domain-out selection goes by. In strict
    splits that is measured on fold t+1 (see `Split.held_out`), whose codepoints were neither trained on nor are tested
    in the target.
    """
    for domain in (target, second_target):
        if domain is not None:
            dataset.index_of(domain)
    protocol, parts = parts_of(dataset, config, trial)
    strict = protocol == "strict"
    held = parts[target]["out"] if target is not None else np.empty(0, dtype=np.int64)
    sources = tuple(domain for domain in dataset.domains if domain not in (target, second_target))
    if second_target is not None and not sources:
        raise UsageError(f"{dataset.name} has no domain left to train on beside {target} and {second_target}")
    if len(dataset.domains) < 2:
        raise DataError(
            "; ".join(
                [f"{dataset.name} holds one domain ({dataset.domains[0]}); at least two are needed to generalize",
                 *dataset.notes]
            )
        )  # fmt: skip
    # DomainBed reports the accuracy on the target's `in` part; strict splits test on fold t alone.
    test = parts[target]["test" if strict else "in"] if target is not None else np.empty(0, dtype=np.int64)
    second: dict[str, np.ndarray] = {}
    if second_target is not None:
        other = parts[second_target]
        second = {"in": other["out"] if strict else other["in"], "out": other["out"]}
    for domain in sources:
        count = len(dataset.rows(dataset.index_of(domain)))
        if not len(parts[domain]["in"]) or not len(parts[domain]["out"]):
            empty = "train" if not len(parts[domain]["in"]) else "validate"
            raise UsageError(
                f"domain {domain} has too few images ({count}): the split leaves none to {empty} on; "
                "change --data.holdout-fraction or add images"
            )
    if len(dataset.classes) < 2:
        raise DataError(
            f"{dataset.name} holds one class ({dataset.classes[0]}); at least two are needed to tell them apart"
        )
    return Split(
        protocol=protocol,
        trial=trial,
        target=target,
        sources=sources,
        train={domain: parts[domain]["in"] for domain in sources},
        validation={domain: parts[domain]["out"] for domain in sources},
        test=test,
        oracle=held,
        second_target=second_target,
        second=second,
    )
