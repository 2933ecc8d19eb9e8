"""The audit of labels."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.data import DataConfig
from domainfusion.config.kinds import STRICT, Confidence, Count, CountOrAuto, Precision, Seed, Share, Template


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AuditConfig:
    """Options of `domainfusion audit`."""

    images: Annotated[int, Field(ge=0)] = 0
    """Audit only so many images, drawn at random by the seed (0: all)."""
    seed: Seed = 0
    """Seed of timesteps and noise, of the images drawn, and of planted labels."""
    ranking: Literal["both", "slopes", "losses"] = "both"
    """slopes: of latent distillation below p = 1; losses: of the noise prediction, as Diffusion Classifier compares
    them; both: their sum, each in units of its spread between labels."""
    confidences: Annotated[tuple[Confidence, ...], Field(min_length=1)] = (0.5, 1.0)
    """Confidences at which images are shown to the LDM: slopes are taken below 1, the loss at the largest."""
    pairs: Count = 4
    """Pairs of opposite noises in a round, each in its own part of the timesteps."""
    rounds: Annotated[int, Field(ge=2)] = 2
    """Rounds for the given label and its best rivals (the others get one)."""
    keep: Count = 4
    """Rivals of the given label that get all rounds."""
    min_timestep: Share = 0.4
    """Smallest timestep drawn, as a share of the schedule."""
    max_timestep: Share = 0.85
    """Largest timestep drawn, as a share of the schedule."""
    template: Template = "{label}"
    """Prompt of a label, in words."""
    image_size: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    """Size of images at the LDM in pixels (0: the size it was trained at)."""
    batch_size: CountOrAuto = 0
    """Passes of the U-Net at once (0: 64 on a CPU, as many as fill it on a GPU)."""
    ldm: str = "embedded"
    """Latent diffusion model: embedded, a diffusers folder, or a hub id."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "auto"
    """Type the LDM computes in: auto takes bfloat16 where the hardware has it."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)

    @model_validator(mode="after")
    def _timesteps_ascend(self) -> AuditConfig:
        if self.min_timestep > self.max_timestep:
            raise ValueError(f"min_timestep {self.min_timestep:g} is above max_timestep {self.max_timestep:g}")
        return self
