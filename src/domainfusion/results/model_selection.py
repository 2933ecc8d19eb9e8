"""Model selection as a pass over records (Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization", 2021).

A method sees the records of one (data set, algorithm, target, trial) and says which accuracy on the target to report:
that of the hyperparameter draw and step with the best validation. The reported figure is the target's `in` accuracy.
Where several are best, the choice is that of DomainBed's scripts: of steps the first, of draws the last. Its means are
NumPy's, and so are these: another order of summation would break such ties by rounding.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Selected:
    """What a method chose: validation and target accuracy (shares), and where."""

    validation: float
    test: float
    step: int
    hparams_seed: Any = None


def domain_count(record: Record) -> int:
    """How many domains a record speaks of."""
    count = 0
    while f"env{count}_out_acc" in record:
        count += 1
    return count


def _held_out(records: Iterable[Record], number: int) -> list[Record]:
    return [record for record in records if len(record["args"]["test_envs"]) == number]


def training_domain_validation(records: list[Record]) -> Selected | None:
    """Of one draw: the step whose mean `out` accuracy over the source domains is best."""
    choices = []
    for record in _held_out(records, 1):
        (target,) = record["args"]["test_envs"]
        sources = [i for i in range(domain_count(record)) if i != target]
        validation = float(np.mean([record[f"env{i}_out_acc"] for i in sources]))
        choices.append(Selected(validation, record[f"env{target}_in_acc"], record["step"]))
    return max(choices, key=lambda choice: choice.validation, default=None)


def oracle(records: list[Record]) -> Selected | None:
    """Of one draw: its last step, judged by the target's own `out` accuracy (no early stopping); None without one."""
    single = _held_out(records, 1)
    if not single:
        return None
    last = sorted(single, key=lambda record: record["step"])[-1]  # of a run made twice in one folder the later one
    (target,) = last["args"]["test_envs"]
    if last[f"env{target}_out_acc"] is None:  # too few images for a held-out part
        return None
    return Selected(last[f"env{target}_out_acc"], last[f"env{target}_in_acc"], last["step"])


def leave_one_domain_out(records: list[Record]) -> Selected | None:
    """Of one draw: the step at which runs that held out one more domain each did best on that domain.

    `records` are those of the run on the target and of all runs that held out the target and another domain; None where
    one of them is missing at every step.
    """
    choices = []
    by_step: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_step[record["step"]].append(record)
    for step, found in sorted(by_step.items()):
        single = _held_out(found, 1)
        if len(single) != 1:
            continue
        (target,) = single[0]["args"]["test_envs"]
        others = {i for i in range(domain_count(single[0])) if i != target}
        left: dict[int, float] = {}
        for record in _held_out(found, 2):
            (also,) = set(record["args"]["test_envs"]) - {target}
            left[also] = record[f"env{also}_in_acc"]
        if others <= set(left):
            validation = float(np.sum([left[i] for i in sorted(others)])) / len(others)
            choices.append(Selected(validation, single[0][f"env{target}_in_acc"], step))
    return max(choices, key=lambda choice: choice.validation, default=None)


METHODS: dict[str, Callable[[list[Record]], Selected | None]] = {
    "training-domain": training_domain_validation,
    "leave-one-domain-out": leave_one_domain_out,
    "oracle": oracle,
}


def group_records(records: Iterable[Record]) -> dict[tuple[str, str, int, int], list[Record]]:
    """{(data set, algorithm, target, trial): records}; a record that held out two domains is in two groups."""
    groups: dict[tuple[str, str, int, int], list[Record]] = defaultdict(list)
    for record in records:
        args = record["args"]
        for target in args["test_envs"]:
            groups[args["dataset"], args["algorithm"], target, args["trial_seed"]].append(record)
    return dict(groups)


def select(records: list[Record], method: str) -> Selected | None:
    """What a method (a key of `METHODS`) chooses over all hyperparameter draws of a group; None where it cannot."""
    draws: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        draws[record["args"]["hparams_seed"]].append(record)
    best: Selected | None = None
    for seed in sorted(draws, key=draw_order):
        chosen = METHODS[method](draws[seed])
        if chosen is not None and (best is None or chosen.validation >= best.validation):
            best = dataclasses.replace(chosen, hparams_seed=seed)
    return best


def draw_order(seed: int | str) -> tuple[bool, int | str]:
    """The place of a hyperparameter draw among others: by its seed, and last the draws that have none (text)."""
    return isinstance(seed, str), seed
