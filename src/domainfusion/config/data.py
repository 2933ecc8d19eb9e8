"""How images are read, split and augmented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import STRICT, Share


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DataConfig:
    """How images are read, split and augmented."""

    size: Annotated[int, Field(ge=8, le=2048)] = 64
    """Working size in pixels: images are decoded once to size x size."""
    protocol: Literal["auto", "strict", "domainbed"] = "auto"
    """Splits: strict (by folds), domainbed (20 % of each domain held out), auto (strict if there are folds)."""
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each domain held out by the domainbed splits."""
    bad_images: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be read: stop and name it, or leave it out and say so."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Smallest share of the area that a random resized crop keeps (1 switches cropping off)."""
    flip: bool = True
    """Mirror half of the images."""
    jitter: Share = 0.3
    """Strength of brightness, contrast, saturation and hue jitter (0 switches it off)."""
    grayscale: Share = 0.1
    """Probability of turning an image grey."""
    augment_validation: bool = False
    """Measure source validation on augmented images, as DomainBed does (off: on the images as they are)."""
