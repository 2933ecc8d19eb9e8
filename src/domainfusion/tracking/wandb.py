"""Weights & Biases. Its own variables say where to and how (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, ...)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainfusion.tracking.base import Beginning


class WeightsAndBiases:
    """One W&B run for a run, gone on with under the same id when the run goes on."""

    def begin(self, beginning: Beginning) -> str:
        """Start or resume the W&B run; its group is the data set, its job type the algorithm."""
        import wandb

        identity = beginning.identity or secrets.token_hex(8)
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "domainfusion"), id=identity, name=beginning.name,
            group=beginning.group, job_type=str(beginning.options["algorithm"]), config=dict(beginning.options),
            dir=str(beginning.folder), resume="allow",
        )  # fmt: skip
        return identity

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures at their step."""
        self.run.log(dict(values), step=step)

    def picture(self, name: str, step: int, path: Path) -> None:
        """Log the picture at a step that is not over yet: W&B goes back to none."""
        import wandb

        self.run.log({name: wandb.Image(str(path))}, step=step)

    def finish(self, step: int, result: Mapping[str, float]) -> None:
        """The result is the run's summary."""
        self.run.summary.update({f"result/{name}": value for name, value in result.items()})

    def close(self, finished: bool) -> None:
        """Finish the W&B run; one that is to go on is marked as failed until then."""
        self.run.finish(exit_code=0 if finished else 1)
