"""Classification by the LDM itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import STRICT, Count, Seed


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ZeroShotConfig:
    """Classification by the LDM itself, without training (diffusion_classifier, diffusion_net)."""

    seed: Seed = 0
    """Seed of timesteps and noise; the same for all runs, so that they share an image's scores."""
    samples: Annotated[tuple[Count, ...], Field(min_length=1)] = (25, 250)
    """diffusion_classifier: draws of (timestep, noise) that a class has had by the end of each stage."""
    keep: Annotated[tuple[Count, ...], Field(min_length=1)] = (5, 1)
    """diffusion_classifier: classes that stay after each stage; the last is 1."""
    min_scores: Annotated[int, Field(ge=2)] = 20
    """diffusion_net: draws before the first test of the classes."""
    max_scores: Annotated[int, Field(ge=2)] = 2000
    """diffusion_net: most draws for an image."""
    cutoff: Annotated[float, Field(ge=0, lt=1)] = 2e-3
    """diffusion_net: a class is ruled out when its paired t-test against the best has a smaller p-value."""
    batch_size: Count = 64
    """Passes of the U-Net at once, across images, draws and classes."""
    images: Annotated[int, Field(ge=0)] = 0
    """Classify only so many images of each part, drawn at random by the seed (0: all)."""
    validation: bool = False
    """Also classify the sources' validation images and the target's held-out ones, as trained runs do."""

    @model_validator(mode="after")
    def _stages_agree(self) -> ZeroShotConfig:
        if len(self.samples) != len(self.keep):
            raise ValueError(f"samples has {len(self.samples)} stages and keep has {len(self.keep)}")
        if list(self.samples) != sorted(set(self.samples)):
            raise ValueError("samples must ascend: they count all draws up to the end of a stage")
        if self.keep[-1] != 1 or list(self.keep) != sorted(set(self.keep), reverse=True):
            raise ValueError("keep must descend to 1")
        if self.min_scores > self.max_scores:
            raise ValueError(f"min_scores {self.min_scores} is above max_scores {self.max_scores}")
        return self
