"""Methods that carry images over to other domains by an LDM."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import (
    STRICT,
    Count,
    CountOrAuto,
    DomainTemplate,
    DomainWords,
    Seed,
    Share,
    Strength,
    StrengthRange,
    Weight,
)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CDGAConfig:
    """CDGA: training images translated towards every source domain before training."""

    seed: Seed = 0
    """Seed of strengths and noise; the same for all runs, so that they share translations."""
    candidates: Count = 1
    """Translations of an image towards each source domain."""
    strength: StrengthRange = (0.5, 0.9)
    """Range of image-to-image strengths; each translation draws its own."""
    steps: Count = 4
    """Denoising steps of a translation, whatever its strength (the paper: 50)."""
    guidance: Weight = 3.0
    """Classifier-free guidance scale (1 or less: no unconditional pass)."""
    template: DomainTemplate = "{label}, {domain}"
    """Prompt; {label} is the class in words, {domain} the source domain in words."""
    domain_words: tuple[DomainWords, ...] = ()
    """What prompts call a domain, as DOMAIN=WORDS (default: its name, with spaces for underscores and hyphens)."""
    pictures: bool = True
    """Also keep translations as PNG files in the cache."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DSIConfig:
    """DSI: test images translated to the source domains by LDMs fine-tuned on each."""

    seed: Seed = 0
    """Seed of fine-tuning and of the noise; the same for all runs, so that they share LDMs and translations."""
    tune_steps: Count = 200
    """Optimizer steps of each source domain's LDM."""
    tune_batch_size: Count = 16
    """Images in a step of fine-tuning."""
    tune_lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of fine-tuning."""
    steps: Count = 20
    """Denoising steps from pure noise; from start step s there are s times as many (the paper: 50)."""
    starts: Annotated[tuple[Strength, ...], Field(min_length=1)] = (0.2, 0.4, 0.6)
    """Start steps tried one after another, as shares of the noise schedule."""
    threshold: Share = 0.9
    """A prediction whose largest softmax probability is above it is accepted (1: none is)."""
    unsure: Literal["original", "last"] = "original"
    """Prediction where no start step was accepted: that of the image itself, or the mean at the last start step."""
    held_out: bool = True
    """Also test the target's held-out images, which results.jsonl needs for domainfusion collect."""
    batch_size: CountOrAuto = 0
    """Images translated at once (0: 64 on a CPU, as many as fill it on a GPU)."""

    @model_validator(mode="after")
    def _starts_ascend(self) -> DSIConfig:
        if list(self.starts) != sorted(set(self.starts)):
            raise ValueError("starts must ascend")
        return self
