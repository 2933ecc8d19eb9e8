"""Online lightweight augmentation (Algorithm 1, lines 5 to 13)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.kinds import STRICT, Count, CountOrAuto, Interval, Seed, Share, StrengthRange, Template, Weight


@dataclass(frozen=True, config=STRICT, kw_only=True)
class GenerateConfig:
    """Online lightweight augmentation (Algorithm 1, lines 5 to 13)."""

    seed: Seed = 0
    """Seed of prompts, strengths and noise; the same for all runs, so that they share candidates of raw images."""
    candidates: Count = 3
    """N: images the LDM makes for one image."""
    interval: Count = 5
    """Epochs from one generation to the next."""
    generations: Annotated[int, Field(ge=0)] = 0
    """Most generations in a run (0: no limit)."""
    until: Share = 0.9
    """Share of the run's steps after which no generation is begun: it would hardly be used (1: Algorithm 1's way)."""
    strength: StrengthRange = (0.5, 0.9)
    """Range of image-to-image strengths; each image draws one, anew in each generation, for all its candidates."""
    steps: Count = 4
    """Denoising steps of every candidate, whatever its strength."""
    guidance: Weight = 3.0
    """Classifier-free guidance scale (1 or less: no unconditional pass)."""
    guidance_interval: Interval = (0.0, 1.0)
    """Shares of the noise schedule between which guidance is applied; steps outside cost one pass instead of two."""
    solver: Literal["ddim", "dpm", "unipc"] = "unipc"
    """ddim; dpm: DPM-Solver++ 2M; unipc: UniPC-2. The last two come nearer to the limit of many steps in few."""
    spacing: Literal["karras", "uniform"] = "karras"
    """How a candidate's steps lie: evenly in sigma^(1/3), down to 2 % of the noise schedule, or evenly in time."""
    style_words: bool = True
    """Name one of the LDM's own styles at random in the prompt, where the LDM tells its styles."""
    template: Template = "{label}, {style}"
    """Prompt with style words; {label} is the class in words."""
    plain_template: Template = "{label}"
    """Prompt without style words."""
    sampling: bool = True
    """Choose content and style among the candidates (off: only the first is made). With recombination the choice is
    kept and shown, and training draws from all that was made."""
    updating: bool = False
    """Each generation starts from the last one's images, as in Algorithm 1 (off: from the raw images)."""
    recombination: bool = True
    """Each step draws an image's content and its style anew, each from any candidate of any generation so far (off, and
    with updating: the newest generation's image as it is, as in Algorithm 1)."""
    content_weight: Share = 0.4
    """Lambda_s: weight of feature similarity against confidence in the choice of content."""
    style_divergence: Literal["softmax", "gaussian"] = "softmax"
    """KL between channel statistics: as distributions through softmax (Algorithm 1), or per-channel Gaussians."""
    image_size: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    """Size of images at the LDM in pixels, for candidates and distillation alike (0: the size it was trained at)."""
    batch_size: CountOrAuto = 0
    """Candidates denoised at once (0: 64 on a CPU, as many as fill it on a GPU)."""
    worker: Literal["auto", "on", "off"] = "auto"
    """A process that makes candidates of coming generations while the classifier trains: auto (where there is a second
    GPU, or two threads of the CPU), on, off. It changes no candidate by more than a rounding step."""
    worker_device: str = "auto"
    """The worker's device: auto (a GPU that training does not use; training on the CPU: the CPU), cpu, cuda:1, ..."""

    @model_validator(mode="after")
    def _a_worker_knows_what_to_start_from(self) -> GenerateConfig:
        if self.worker == "on" and self.updating:
            raise ValueError(
                "worker on needs no-updating: with updating a generation starts from what training chose of the last"
            )
        return self

    @property
    def recombines(self) -> bool:
        """Whether steps draw from all candidates: those of a run's own images (`updating`) are not kept."""
        return self.recombination and not self.updating

    def needed(self) -> GenerateConfig:
        """The same options with no more candidates than are looked at: without sampling the first alone."""
        return self if self.sampling or self.candidates == 1 else dataclasses.replace(self, candidates=1)
