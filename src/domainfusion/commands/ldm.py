"""pretrain, generate, distill, judge: the latent diffusion model, and what is made with it ahead of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from domainfusion.commands.fields import flags_without
from domainfusion.commands.layers import base_options, drawn
from domainfusion.commands.parsing import Flat, parse, show
from domainfusion.config import DataConfig, GenerateConfig, PretrainConfig, TrainConfig

# What of a run's options the two commands read that work ahead of runs. A draw of hyperparameters goes by the trial.
READ = {"preset", "hparams_seed", "trial", "ldm", "device", "precision", "data.size", "data.bad_images"}
READ_TO_GENERATE = READ | {"target", "second_target"} | {
    f"generate.{name}"
    for name in (
        "seed", "candidates", "strength", "steps", "guidance", "guidance_interval", "solver", "spacing", "style_words",
        "template", "plain_template", "sampling", "updating", "image_size", "batch_size",
    )
}  # fmt: skip
READ_TO_DISTILL = READ | {"target", "second_target", "generate.plain_template", "generate.image_size"} | {
    f"distill.{name}"
    for name in (
        "curve_of", "curve_samples", "curve_rounds", "curve_detail", "curve_tolerance", "residual", "guidance",
        "corruption", "weighting", "min_timestep", "max_timestep",
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PretrainCommand:
    """Train a small latent diffusion model in Stable Diffusion's layout from captioned images, or from a data set.

    Of a data set, captions name class and domain. --target leaves a domain out, so that the LDM may serve runs that
    hold it out; runs refuse an LDM that has seen theirs.
    """

    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """A folder with images and metadata.csv (file_name, text), an .npz file, or a data set as train takes it."""
    options: Annotated[PretrainConfig, Flat]
    target: str | None = None
    """Of a data set: domain that the LDM must not see."""
    trial: int | None = None
    """Of a data set: take only the images that this trial trains on (default: all images of the source domains)."""
    output: Path = Path("runs/ldm")
    """Folder of states, losses, samples, and the finished pipeline."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""


@dataclasses.dataclass(frozen=True)
class GenerateCommand:
    """Make the candidates of all images of DATA, and keep them for every run that asks for the same.

    The same command again makes what is missing. Runs share them where the LDM, the --generate options and the styles
    that --target leaves are equal; the target's own images are left out. Other options of a run are taken too, and
    change nothing.
    """

    hidden: ClassVar[Collection[str]] = flags_without(TrainConfig, READ_TO_GENERATE)

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """pictograms (embedded), a folder DOMAIN/CLASS/IMAGE or with metadata.csv, or hf://OWNER/NAME."""
    options: Annotated[TrainConfig, Flat]
    generations: int = 1
    """Generations made from the stored images (more than one with --generate.no-updating only)."""
    shard: tuple[int, int] = (0, 1)
    """I N: only every N-th image from the I-th, so that N processes share the work."""
    output: Path | None = None
    """Folder for the candidates as DOMAIN/CLASS/NAME-gG-cC.png (NAME of the source image, generation, candidate), with
    metadata.csv: source, prompt, strength and seed of each. It can be given as DATA."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print what was made as JSON."""


@dataclasses.dataclass(frozen=True)
class DistillCommand:
    """Tabulate the slopes of latent distillation for every image of DATA; the same command again goes on.

    Started several times at once, on one cache, it shares out the work; so do runs that tabulate what they miss.
    Training with the same --ldm, --distill and --generate options reads the table when it is whole.
    --target fills {target} in --ldm, no more; other options of a run are taken too, and change nothing.
    """

    hidden: ClassVar[Collection[str]] = flags_without(TrainConfig, READ_TO_DISTILL)

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """pictograms (embedded), a folder DOMAIN/CLASS/IMAGE or with metadata.csv, or hf://OWNER/NAME."""
    options: Annotated[TrainConfig, Flat]
    shard: tuple[int, int] = (0, 1)
    """I N: only every N-th file of 64 images from the I-th, so that N processes share the work."""
    export: Path | None = None
    """Also write the table as one file."""
    csv: Path | None = None
    """Also write a CSV file with a line for each image, the most informative (the largest slopes) first: row, image,
    domain, class, size of its slopes (root mean square over the confidences), standard error, rounds, and the mean
    slope below and above a confidence of a half; negative where fading the image in lowers the LDM's loss."""
    config: Path | None = None
    """TOML file with options; the command line has the last word."""
    json: bool = False
    """Print what the table came to as JSON."""


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """Options of `domainfusion judge` in groups."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)


@dataclasses.dataclass(frozen=True)
class JudgeCommand:
    """Measure an LDM for DomainFusion: candidates still recognised, style moved, slopes that know labels."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """pictograms (embedded), a folder DOMAIN/CLASS/IMAGE or with metadata.csv, or hf://OWNER/NAME."""
    ldm: str = "embedded"
    """Latent diffusion model: embedded, a diffusers folder, or a hub id."""
    images: int = 400
    """Images measured on."""
    output: Path = Path("runs/judge")
    """Folder for the figures (judge.json) and a sheet of candidates (candidates.png)."""
    options: Annotated[JudgeOptions, Flat] = dataclasses.field(default_factory=JudgeOptions)
    json: bool = False
    """Print the figures as JSON."""


def pretrain(words: list[str]) -> None:
    """`domainfusion pretrain`."""
    command = parse(PretrainCommand, words, "domainfusion pretrain", base_options(PretrainConfig, words))
    from domainfusion.diffusion.pretraining import pretrain as run_pretraining

    print(run_pretraining(command.corpus, command.options, command.output, target=command.target, trial=command.trial))


def generate(words: list[str]) -> None:
    """`domainfusion generate`."""
    options = base_options(TrainConfig, words)
    command = parse(GenerateCommand, words, "domainfusion generate", options)
    from domainfusion.experiments.generating import generate_candidates, generation_text

    found = generate_candidates(
        command.data,
        drawn(command.options, command.data, words),
        generations=command.generations,
        shard=command.shard,
        output=command.output,
    )
    show(found, generation_text(found), command.json)


def distill(words: list[str]) -> None:
    """`domainfusion distill`."""
    options = base_options(TrainConfig, words)
    command = parse(DistillCommand, words, "domainfusion distill", options)
    from domainfusion.experiments.tabulating import tabulate_curves, tabulation_text

    options = drawn(command.options, command.data, words)
    found = tabulate_curves(command.data, options, shard=command.shard, export=command.export, csv=command.csv)
    show(found, tabulation_text(found), command.json)


def judge(words: list[str]) -> None:
    """`domainfusion judge`."""
    command = parse(JudgeCommand, words, "domainfusion judge")
    from domainfusion.experiments.judging import judge_ldm, judgement_text

    options = command.options
    found = judge_ldm(
        command.data, command.ldm, command.images, command.output, reading=options.data, generate=options.generate
    )
    where = f"the figures, and a sheet of candidates, are in {command.output} (judge.json, candidates.png)"
    show(found, f"{judgement_text(found)}\n\n{where}", command.json)
