"""Hyperparameter draws proposed by Optuna from the source validation of earlier ones.

Every (algorithm, data set, target, trial) is a study of its own. One study over several targets would choose options
for a target by the validation of runs that trained on it. A proposal is a function of the study's place, its number and
what was observed; no state of a sampler is kept, so a sweep that is restored proposes the same again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import optuna

from domainfusion.seeding import seed_hash
from domainfusion.sweep.spaces import Dimension, Observation, Overrides, Place, RandomDraws


@dataclasses.dataclass(frozen=True)
class OptunaDraws:
    """Random draws first, `startup` of them, then proposals of a tree-structured Parzen estimator, one by one."""

    space: tuple[Dimension, ...]
    startup: int

    def needed(self, hparams_seed: int) -> int:
        """A proposal waits for all draws before it."""
        return 0 if hparams_seed < self.startup else hparams_seed

    def draw(self, place: Place, hparams_seed: int, earlier: Sequence[Observation]) -> Overrides:
        """The options of a draw; observations without a value are left out."""
        if hparams_seed < self.startup:
            return RandomDraws(self.space).draw(place, hparams_seed, ())
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seed = seed_hash("optuna", place.algorithm, place.target, place.trial, hparams_seed)
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(n_startup_trials=1, seed=seed)
        )
        distributions = {dimension.name: distribution(dimension) for dimension in self.space}
        for overrides, value in earlier:
            # The first draw is the options as they are given, which may lie outside the space.
            if value is not None and all(overrides[item.name] in item for item in self.space):
                study.add_trial(
                    optuna.trial.create_trial(params=dict(overrides), distributions=distributions, value=value)
                )
        return dict(study.ask(distributions).params)


def distribution(dimension: Dimension) -> Any:
    """Optuna's form of a dimension."""
    if dimension.kind == "choice":
        return optuna.distributions.CategoricalDistribution(dimension.values)
    low, high = dimension.values
    if dimension.kind == "randint":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=dimension.kind == "loguniform")
