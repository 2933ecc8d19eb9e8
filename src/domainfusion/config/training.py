"""A run of `train`, with the options of all that takes part in it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from domainfusion.config.averaging import AverageConfig
from domainfusion.config.baselines import CoralConfig, GroupDROConfig, MixStyleConfig, MixupConfig, RSCConfig
from domainfusion.config.data import DataConfig
from domainfusion.config.distillation import DistillConfig
from domainfusion.config.generation import GenerateConfig
from domainfusion.config.kinds import STRICT, Count, Precision, Seed, Weight
from domainfusion.config.translation import CDGAConfig, DSIConfig
from domainfusion.config.zero_shot import ZeroShotConfig


def ldm_without(ldm: str, *held_out: str | None, trial: int = 0) -> str:
    """The option `ldm` with {target} filled in, the held-out domains' names or all where there are none, and {trial}.

    >>> ldm_without("ldm-{target}", "sketch", None), ldm_without("ldm-{target}", "sketch", "photo")
    ('ldm-sketch', 'ldm-sketch+photo')
    >>> ldm_without("ldm-{target}", None), ldm_without("embedded", "sketch")
    ('ldm-all', 'embedded')
    >>> ldm_without("ldm-{target}-{trial}", "sketch", trial=2)
    'ldm-sketch-2'
    """
    target = "+".join(domain for domain in held_out if domain is not None) or "all"
    return ldm.replace("{target}", target).replace("{trial}", str(trial))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class TrainConfig:
    """Options of `domainfusion train`."""

    preset: str = ""
    """Named options to begin with (domainfusion list presets); --config and the command line go before them."""
    hparams_seed: Annotated[int, Field(ge=0)] = 0
    """Draw of the hyperparameters not given otherwise, from DomainBed's search or a table [search] (0: none)."""
    algorithm: str = "domainfusion"
    """Name of the algorithm (domainfusion list algorithms)."""
    target: str | None = None
    """Domain held out; none trains on all domains."""
    second_target: str | None = None
    """Another domain held out, for leave-one-domain-out selection (benchmark --selection sets it itself)."""
    trial: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Which split of the data (strict: fold 0 to 4)."""
    seed: Seed = 0
    """Seed of initial weights, batches and augmentation (candidates have their own: generate.seed)."""
    steps: Count = 800
    """Optimizer steps."""
    epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the source domains' training images, instead of steps (0: steps counts)."""
    batch_size: Count = 16
    """Images of every source domain in a step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of Adam."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: the learning rate falls to 0 along a cosine; constant: it stays."""
    weight_decay: Weight = 5e-4
    """L2 penalty of Adam."""
    backbone: str = "resnet10t"
    """A timm model, or torchvision:NAME (domainfusion list backbones)."""
    pretrained: bool = False
    """Start from the backbone's published weights (from the hub or its cache; efficientnet_lite0: from its package)."""
    weights: str = ""
    """File with the backbone's weights to start from, instead of published ones: safetensors, or a .pth of tensors."""
    normalization: Literal["auto", "imagenet", "inception", "lite"] = "auto"
    """Channel means and deviations of the backbone's input: auto (those of the published weights, imagenet without),
    imagenet, inception (1/2 and 1/2), lite (127/255 and 128/255)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the head (of 1 nothing would be left to train on)."""
    freeze_bn: bool = False
    """Keep BatchNorm in evaluation mode while training (DomainBed's habit with pretrained backbones)."""
    evaluations: Count = 8
    """How often in a run source validation is measured; the best checkpoint is kept."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps from one evaluation to the next, instead of evaluations: as DomainBed, after the first step, then every so
    many steps, and after the last one (0: evaluations counts)."""
    evaluate_training: bool = False
    """Measure accuracy on the images trained on too, so that results.jsonl has every field of DomainBed's."""
    raw_weight: Weight = 1.0
    """Lambda_1: cross-entropy on raw images."""
    distill_weight: Weight = 0.5
    """Lambda_2: latent distillation; 0 removes its cost too."""
    synthetic_weight: Weight = 0.5
    """Lambda_3: cross-entropy on synthetic images; 0 removes their cost too."""
    synthetic_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Synthetic images used in a step, as a share of the raw ones (the paper uses one in three)."""
    ldm: str = "embedded"
    """Latent diffusion model: embedded, a diffusers folder, or a hub id; {target} in it stands for the domain held out
    (all where none is), so that runs take each their own."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "auto"
    """Autocast type: auto takes bfloat16 where the hardware has it; float16 is for the LDM alone."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    zero_shot: ZeroShotConfig = dataclasses.field(default_factory=ZeroShotConfig)
    mixup: MixupConfig = dataclasses.field(default_factory=MixupConfig)
    mixstyle: MixStyleConfig = dataclasses.field(default_factory=MixStyleConfig)
    coral: CoralConfig = dataclasses.field(default_factory=CoralConfig)
    groupdro: GroupDROConfig = dataclasses.field(default_factory=GroupDROConfig)
    rsc: RSCConfig = dataclasses.field(default_factory=RSCConfig)
    cdga: CDGAConfig = dataclasses.field(default_factory=CDGAConfig)
    dsi: DSIConfig = dataclasses.field(default_factory=DSIConfig)
    average: AverageConfig = dataclasses.field(default_factory=AverageConfig)

    @property
    def ldm_source(self) -> str:
        """The LDM of this run: `ldm` with {target} filled in."""
        return ldm_without(self.ldm, self.target, self.second_target, trial=self.trial)

    @model_validator(mode="after")
    def _something_to_learn(self) -> TrainConfig:
        if self.raw_weight == self.distill_weight == self.synthetic_weight == 0:
            raise ValueError("raw_weight, distill_weight and synthetic_weight are all 0: nothing would be learnt")
        return self

    @model_validator(mode="after")
    def _held_out_domains_differ(self) -> TrainConfig:
        if self.second_target is not None and self.target in (None, self.second_target):
            raise ValueError("second_target is held out beside target, and is another domain")
        return self
