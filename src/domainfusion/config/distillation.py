"""Latent distillation (Algorithm 2)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import STRICT, Corruption, Count, Residual, Share, Weight


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DistillConfig:
    """Latent distillation (Algorithm 2)."""

    estimator: Literal["auto", "score", "autograd", "curve"] = "auto"
    """score: U-Net Jacobian dropped, forward passes only; autograd: the literal Algorithm 2 (slow, much memory);
    curve: slopes tabulated once for every image and label (domainfusion distill), read while training;
    auto: curve where its table comes with the package, was made before, or takes fewer passes of the U-Net than
    training would."""
    curve_of: Literal["score", "autograd"] = "score"
    """What curve tabulates, and auto computes."""
    curve_samples: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Draws of (timestep, noise) in a round of the table, in antithetic pairs, shared by all its confidences."""
    curve_rounds: Annotated[int, Field(ge=2)] = 4
    """Most rounds an image gets; two at least."""
    curve_detail: Annotated[int, Field(ge=1, le=8)] = 1
    """Parts of each interval between the table's confidences. Between them a table errs by 9 % of the slopes' size with
    1, by 3 with 2, by 1 with 3 (embedded LDM, draws apart), for once, twice and three times the passes."""
    curve_tolerance: Weight = 0.1
    """An image needs no further round when its curve's standard error is below this share of the curve's size."""
    residual: Residual = "plain"
    """plain: e(c) - noise, the paper's; guided: with classifier-free guidance; contrast: e(c) - e(empty prompt)."""
    guidance: Weight = 4.0
    """Guidance scale of the guided residual."""
    corruption: Corruption = "contrast"
    """How low confidence corrupts the image: contrast reduction (the paper's), blur, pepper noise or random mask."""
    samples: Count = 1
    """Draws of (timestep, noise) per image and step (T in Algorithm 2)."""
    images_per_step: Annotated[int, Field(ge=0)] = 8
    """Images of the batch that the loss is estimated on each step (0: all of them)."""
    weighting: Literal["uniform", "sigma"] = "uniform"
    """w(t): 1, or 1 - alpha_bar (DreamFusion's)."""
    min_timestep: Share = 0.02
    """Smallest timestep drawn, as a share of the schedule."""
    max_timestep: Share = 0.98
    """Largest timestep drawn, as a share of the schedule."""
    confidence_floor: Share = 0.02
    """Smallest confidence at which the slope is taken: below it nothing of the image is left."""

    @property
    def method(self) -> Literal["score", "autograd"]:
        """How a slope is computed, in training or for a table."""
        if self.estimator == "auto" or self.estimator == "curve":
            return self.curve_of
        return self.estimator

    @model_validator(mode="after")
    def _timesteps_ascend(self) -> DistillConfig:
        if self.min_timestep > self.max_timestep:
            raise ValueError(f"min_timestep {self.min_timestep:g} is above max_timestep {self.max_timestep:g}")
        return self
