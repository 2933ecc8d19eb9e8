"""Classification by the LDM itself."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import STRICT, Count, CountOrAuto, Seed

# Stages (samples, keep) of Diffusion Classifier. Its authors take FEW up to the 37 classes of Oxford-IIIT Pets, and
# MANY for the 100 of Aircraft, Food101 and Flowers102: between them, from the number on of which MANY's first stage,
# which keeps 20, rules out half.
FEW: tuple[tuple[int, ...], tuple[int, ...]] = (25, 250), (5, 1)
MANY: tuple[tuple[int, ...], tuple[int, ...]] = (20, 50, 100, 500), (20, 10, 5, 1)
MANY_CLASSES = 40


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ZeroShotConfig:
    """Classification by the LDM itself, without training (diffusion_classifier, diffusion_net)."""

    seed: Seed = 0
    """Seed of timesteps and noise; the same for all runs, so that they share an image's scores."""
    samples: tuple[Count, ...] = ()
    """diffusion_classifier: draws of (timestep, noise) that a class has had by the end of each stage; given with keep
    (default: 25 250, and from 40 classes on 20 50 100 500)."""
    keep: tuple[Count, ...] = ()
    """diffusion_classifier: classes that stay after each stage, the last being 1; given with samples (default: 5 1, and
    from 40 classes on 20 10 5 1). A stage that would keep all classes is left out."""
    min_scores: Annotated[int, Field(ge=2)] = 20
    """diffusion_net: draws before the first test of the classes."""
    max_scores: Annotated[int, Field(ge=2)] = 2000
    """diffusion_net: most draws for an image."""
    cutoff: Annotated[float, Field(ge=0, lt=1)] = 2e-3
    """diffusion_net: a class is ruled out when its paired t-test against the best has a smaller p-value."""
    batch_size: CountOrAuto = 0
    """Passes of the U-Net at once, across images, draws and classes (0: 64 on a CPU, as many as fill it on a GPU)."""
    images: Annotated[int, Field(ge=0)] = 0
    """Classify only so many images of each part, drawn at random by the seed (0: all)."""
    validation: bool = False
    """Also classify the sources' validation images and the target's held-out ones, as trained runs do."""

    @model_validator(mode="after")
    def _stages_agree(self) -> ZeroShotConfig:
        if bool(self.samples) != bool(self.keep):
            raise ValueError("samples and keep are given together, or neither of them")
        if len(self.samples) != len(self.keep):
            raise ValueError(f"samples has {len(self.samples)} stages and keep has {len(self.keep)}")
        if list(self.samples) != sorted(set(self.samples)):
            raise ValueError("samples must ascend: they count all draws up to the end of a stage")
        if (self.keep and self.keep[-1] != 1) or list(self.keep) != sorted(set(self.keep), reverse=True):
            raise ValueError("keep must descend to 1")
        if self.min_scores > self.max_scores:
            raise ValueError(f"min_scores {self.min_scores} is above max_scores {self.max_scores}")
        return self

    def for_classes(self, classes: int) -> ZeroShotConfig:
        """The options with the stages that they come to for so many classes: chosen where none are given, and without
        those that would keep all classes.

        >>> ZeroShotConfig().for_classes(7).samples, ZeroShotConfig().for_classes(65).keep
        ((25, 250), (20, 10, 5, 1))
        >>> ZeroShotConfig().for_classes(5).samples
        (250,)
        """
        default = MANY if classes >= MANY_CLASSES else FEW
        samples, keep = (self.samples, self.keep) if self.samples else default
        stages = [(count, kept) for count, kept in zip(samples, keep, strict=True) if kept < classes]
        return dataclasses.replace(
            self, samples=tuple(count for count, _ in stages), keep=tuple(kept for _, kept in stages)
        )


def without_old_stages(options: dict[str, Any], algorithm: str, classes: int) -> dict[str, Any]:
    """Flat options of a run as they would be given now, the stages having been 25 250 and 5 1 whatever the classes.

    Other algorithms than Diffusion Classifier have no stages, and so no option of that name.
    """
    names = ("zero_shot.samples", "zero_shot.keep")
    if algorithm != "diffusion_classifier":
        return {name: value for name, value in options.items() if name not in names}
    if classes < MANY_CLASSES and [options.get(name) for name in names] == list(map(list, FEW)):
        return options | {name: [] for name in names}
    return options
