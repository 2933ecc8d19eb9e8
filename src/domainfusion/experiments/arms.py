"""A row of a table as runs: its options over the user's, and where its runs are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from domainfusion.config import TrainConfig
from domainfusion.config_files import flat_values, plain_values
from domainfusion.data.batches import with_steps
from domainfusion.data.splits import Split
from domainfusion.experiments.hyperparameters import with_values
from domainfusion.experiments.paper_tables import OURS, Arm


def resolve_arm(config: TrainConfig, arm: Arm) -> Arm:
    """The arm, with what else it comes to by the user's options, or a preset's, among its own."""
    given, default = (flat_values(plain_values(values)) for values in (config, TrainConfig()))
    options = {**arm.options, **{name: value for name, value in arm.defaults.items() if given[name] == default[name]}}
    if arm.in_step and config.distill.estimator == "auto":
        options["distill.estimator"] = config.distill.method
    return dataclasses.replace(arm, options=options, defaults={}, in_step=False)


def arm_config(config: TrainConfig, arm: Arm) -> TrainConfig:
    """The user's options with the arm's over them."""
    batch = config.batch_size
    if arm.all_images:
        batch = round(batch * (1 + config.synthetic_share))
    mine = dataclasses.replace(config, algorithm=arm.algorithm, batch_size=batch)
    return with_values(mine, resolve_arm(config, arm).options, f"row {arm.title!r}")


def as_many_steps(options: TrainConfig, config: TrainConfig, split: Split) -> TrainConfig:
    """`options` in as many steps as `config` takes on a split: the same epochs of larger batches would be fewer."""
    return dataclasses.replace(options, epochs=0, steps=with_steps(config, split).steps)


def run_key(config: TrainConfig, arm: Arm) -> str:
    """The key that an arm's runs lie under: DomainFusion's where its options come to no others than the user's."""
    return OURS.key if arm_config(config, arm) == arm_config(config, OURS) else arm.key


def run_folder(folder: Path, data: str, key: str, target: str, trial: int) -> Path:
    """Where the run of an arm is, below the folder of a reproduction."""
    return folder / Path(data).name / key / target / f"trial-{trial}"
