"""Averaging of weights over training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import STRICT, Count


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AverageConfig:
    """Averaging of weights over training, with any algorithm."""

    method: Literal["none", "ema", "swad"] = "none"
    """none; ema: exponential moving average; swad: mean over a valley of the source-validation loss. swad looks for its
    valley at the evaluations: give it 30 or more (--evaluations)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """ema: decay in a step, lower in the first steps: (1 + n) / (10 + n) after n of them."""
    optimum_patience: Count = 3
    """swad, N_s: the average starts at an evaluation whose loss is the least of this many, itself the first of them."""
    overfit_patience: Count = 6
    """swad, N_e: the average ends before this many evaluations in a row with a loss above the threshold."""
    tolerance_rate: Annotated[float, Field(ge=1)] = 1.3
    """swad, r: the threshold, as a multiple of the mean loss of the first N_s evaluations (the paper: 1.2 for VLCS)."""
    bn_batches: Count = 100
    """swad: training batches that BatchNorm statistics of the averaged weights are measured on."""

    @model_validator(mode="after")
    def _end_is_found_after_the_start(self) -> AverageConfig:
        if self.overfit_patience < self.optimum_patience:
            raise ValueError(
                f"overfit_patience {self.overfit_patience} is below optimum_patience {self.optimum_patience}"
            )
        return self
