"""A row of a table as runs: its options over the user's, and where its runs are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from domainfusion.config import TrainConfig
from domainfusion.experiments.hyperparameters import with_values
from domainfusion.experiments.paper_tables import Arm


def arm_config(config: TrainConfig, arm: Arm) -> TrainConfig:
    """The user's options with the arm's over them."""
    batch = config.batch_size
    if arm.all_images:
        batch = round(batch * (1 + config.synthetic_share))
    mine = dataclasses.replace(config, algorithm=arm.algorithm, batch_size=batch)
    return with_values(mine, arm.options, f"row {arm.title!r}")


def run_folder(folder: Path, data: str, key: str, target: str, trial: int) -> Path:
    """Where the run of an arm is, below the folder of a reproduction."""
    return folder / Path(data).name / key / target / f"trial-{trial}"
