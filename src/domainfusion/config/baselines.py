"""Methods without an LDM."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import STRICT, Count, Part, Share, Weight


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MixupConfig:
    """Inter-domain mixup."""

    alpha: Annotated[float, Field(gt=0)] = 0.2
    """Both parameters of the Beta distribution that mixing weights are drawn from."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MixStyleConfig:
    """MixStyle: feature statistics mixed after early stages of the backbone."""

    probability: Share = 0.5
    """Probability that a stage mixes in a step."""
    alpha: Annotated[float, Field(gt=0)] = 0.1
    """Both parameters of the Beta distribution that mixing weights are drawn from."""
    stages: Count = 3
    """How many stages mix, from the first (the paper: 3 for classification, 2 for retrieval)."""
    partner: Literal["any", "other_domain"] = "any"
    """Whose statistics an image is mixed with: any image's of the batch, or an image's of another domain."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CoralConfig:
    """Deep CORAL: domains' feature means and covariances drawn together."""

    weight: Weight = 1.0
    """Gamma: weight of the mean distance of two domains against cross-entropy."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GroupDROConfig:
    """Group DRO: domains weighted by how badly they are doing."""

    eta: Weight = 1e-2
    """Step size of the domains' weights (0 keeps them equal)."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RSCConfig:
    """Representation self-challenging."""

    feature_drop: Part = 1 / 3
    """Share of an image's features muted: those with the largest gradients."""
    batch_drop: Part = 1 / 3
    """Share of the batch whose features are muted: the images whose confidence that hurts most."""
