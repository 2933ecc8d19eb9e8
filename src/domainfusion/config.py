"""Every option, typed, frozen and checked. No torch here, so that `--help` is instant.

The command line and TOML files hold the same names: `[distill] samples = 4` is `--distill.samples 4`. What a run was
made with is written to its folder as `config.toml`, every option resolved.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the range goes from low to high, not from {value[0]:g} to {value[1]:g}")
    return value


def _template_of(*names: str) -> AfterValidator:
    """A validator of templates that may hold `names` in braces, and nothing else there."""

    def check(value: str) -> str:
        try:
            value.format(**dict.fromkeys(names, "cat"))
        except (KeyError, IndexError, ValueError) as error:
            known = " and ".join(f"{{{name}}}" for name in names)
            raise ValueError(f"a template may hold {known} only ({type(error).__name__}: {error})") from None
        return value

    return AfterValidator(check)


def _domain_words(value: str) -> str:
    if not value.partition("=")[0] or "=" not in value:
        raise ValueError("words for a domain are given as DOMAIN=WORDS")
    return value


Confidence = Annotated[float, Field(ge=0.02, le=1)]
Strength = Annotated[float, Field(gt=0, le=1)]
StrengthRange = Annotated[tuple[Strength, Strength], AfterValidator(_ascending)]
Interval = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
Template = Annotated[str, _template_of("label", "style")]
DomainTemplate = Annotated[str, _template_of("label", "domain")]
DomainWords = Annotated[str, AfterValidator(_domain_words)]
Corruption = Literal["contrast", "blur", "pepper", "mask"]
Residual = Literal["plain", "guided", "contrast"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


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


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DistillConfig:
    """Latent distillation (Algorithm 2)."""

    estimator: Literal["auto", "score", "autograd", "curve"] = "auto"
    """score: U-Net Jacobian dropped, forward passes only; autograd: the literal Algorithm 2 (slow, much memory);
    curve: slopes tabulated once for every image and label (domainfusion distill), read while training;
    auto: curve where its table comes with the package or takes fewer passes of the U-Net than training would."""
    curve_of: Literal["score", "autograd"] = "score"
    """What curve tabulates, and auto computes."""
    curve_samples: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Draws of (timestep, noise) in a round of the table, in antithetic pairs, shared by all its confidences."""
    curve_rounds: Annotated[int, Field(ge=2)] = 2
    """Most rounds an image gets."""
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
    """Choose content and style among the candidates (off: the first candidate is taken as it is)."""
    updating: bool = False
    """Each generation starts from the last one's images, as in Algorithm 1 (off: from the raw images)."""
    content_weight: Share = 0.4
    """Lambda_s: weight of feature similarity against confidence in the choice of content."""
    style_divergence: Literal["softmax", "gaussian"] = "softmax"
    """KL between channel statistics: as distributions through softmax (Algorithm 1), or per-channel Gaussians."""
    image_size: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    """Size of images at the LDM in pixels, for candidates and distillation alike (0: the size it was trained at)."""
    batch_size: Count = 64
    """Candidates denoised at once."""
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

    def needed(self) -> GenerateConfig:
        """The same options with no more candidates than are looked at: without sampling the first alone."""
        return self if self.sampling or self.candidates == 1 else dataclasses.replace(self, candidates=1)


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
    batch_size: Count = 64
    """Images translated at once."""

    @model_validator(mode="after")
    def _starts_ascend(self) -> DSIConfig:
        if list(self.starts) != sorted(set(self.starts)):
            raise ValueError("starts must ascend")
        return self


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
    dropout: Share = 0.0
    """Dropout before the head."""
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
    """Latent diffusion model: embedded, a diffusers folder, or a hub id."""
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
    batch_size: Count = 64
    """Passes of the U-Net at once."""
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


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PretrainConfig:
    """Options of `domainfusion pretrain`: the autoencoder first, then the denoiser on its latents."""

    size: Annotated[int, Field(ge=8)] = 64
    """Image size in pixels."""
    init: str = ""
    """LDM to go on from (embedded, a folder, a hub id): its tokenizer stays, its denoiser trains."""
    device: str = "auto"
    """Where to compute: auto (the first GPU, or the CPU), cpu, cuda, cuda:1, ..."""
    tune_vae_steps: Annotated[int, Field(ge=0)] = 0
    """With init: optimizer steps of its autoencoder, held to the latents that it gave (0: it stays as it is)."""
    seed: Seed = 0
    """Seed of weights, batches and noise."""
    latent_channels: Count = 16
    """Channels of the latent; its side is size / 2^(levels - 1)."""
    vae_channels: tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...] = (16, 48, 96, 160)
    """Widths of the autoencoder's levels."""
    vae_steps: Count = 6000
    """Optimizer steps of the autoencoder."""
    vae_batch_size: Count = 16
    """Images in a step of the autoencoder."""
    vae_lr: Annotated[float, Field(gt=0)] = 1.5e-3
    """Learning rate of the autoencoder."""
    fade: Share = 0.5
    """Share of a step's images that the autoencoder also sees with less contrast, as latent distillation shows them."""
    kl_weight: Weight = 1e-4
    """Weight of the KL term."""
    unet_channels: tuple[Annotated[int, Field(ge=32, multiple_of=32)], ...] = (128, 256)
    """Widths of the U-Net's levels."""
    unet_steps: Annotated[int, Field(ge=0)] = 20_000
    """Optimizer steps of the denoiser (0: it stays as it is)."""
    unet_batch_size: Count = 64
    """Latents in a step of the denoiser."""
    unet_lr: Annotated[float, Field(gt=0)] = 6e-4
    """Learning rate of the denoiser."""
    weight_decay: Weight = 0.01
    """Weight decay of the denoiser."""
    min_snr: Annotated[float, Field(gt=0)] = 5.0
    """Gamma of the min-SNR loss weight (arXiv 2303.09556)."""
    caption_dropout: Share = 0.1
    """Share of captions emptied for classifier-free guidance."""
    recolour: Share = 0.5
    """Share of monochrome drawings recoloured for the denoiser, their captions naming the colours."""
    hue: Share = 0.1
    """Share of coloured drawings whose channels are permuted for the denoiser."""
    freeze_text: bool = False
    """Keep the text encoder as it is (with init)."""
    vocabulary: Annotated[int, Field(ge=256)] = 4096
    """Size of the tokenizer's vocabulary."""
    text_length: Annotated[int, Field(ge=4)] = 20
    """Tokens in a prompt."""
    text_width: Annotated[int, Field(ge=32, multiple_of=32)] = 160
    """Width of the text encoder."""
    text_layers: Count = 3
    """Layers of the text encoder."""
    pool_size: Count = 65_536
    """Augmented images encoded ahead at a time."""
    pool_epochs: Count = 4
    """Epochs over a pool before the next is encoded."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the exponential moving average."""
    decay: Share = 0.25
    """Share of the steps, at the end, over which the learning rate falls to 0."""
    log_every: Count = 20
    """Steps from one line in metrics.jsonl to the next."""
    save_every: Count = 500
    """Steps from one saved state, validation and sample sheet to the next."""
