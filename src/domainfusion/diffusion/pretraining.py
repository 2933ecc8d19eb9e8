"""`domainfusion pretrain`: a small latent diffusion model in Stable Diffusion's layout, from captioned images.

Two stages (autoencoder, then denoiser on cached latents), each resumable; the result is a diffusers folder with fp16
safetensors that `StableDiffusionImg2ImgPipeline.from_pretrained` loads with no code of ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPTokenizer

from domainfusion.config import PretrainConfig
from domainfusion.config_files import build_config, load_toml, plain_values, to_toml
from domainfusion.diffusion.autoencoder_training import train_autoencoder
from domainfusion.diffusion.corpus import Corpus, load_corpus
from domainfusion.diffusion.denoiser_training import (
    Denoiser,
    build_pipeline,
    build_scheduler,
    build_unet,
    train_denoiser,
)
from domainfusion.diffusion.labelled_corpus import (
    SEEN,
    Seen,
    is_captioned,
    labelled_corpus,
    merge_seen,
    read_seen,
)
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.text_encoder import build_text_encoder, fit_tokenizer
from domainfusion.errors import FileError, UsageError
from domainfusion.files import hash_of, make_folder, read_json, write_json, write_text
from domainfusion.interruption import stoppable
from domainfusion.locks import exclusive
from domainfusion.tensors import disk_errors


def pretrain(
    source: str | Path, config: PretrainConfig, folder: Path, *, target: str | None = None, trial: int | None = None
) -> Path:
    """Train autoencoder, tokenizer and denoiser on a corpus; returns `folder/pipeline`. The same call again resumes.

    Args:
        source: a captioned corpus (`load_corpus`), or a labelled data set, of which captions are made
            (`labelled_corpus`).
        target: of a data set, the domain that the LDM must not see.
        trial: of a data set, take only what this trial trains on.

    A signal saves the step at hand and raises `Interrupted`; `FileError` where another process is at work in `folder`.

    Beside the pipeline, `folder` holds `metrics.jsonl` (losses, held-out PSNR and noise error), sample sheets, and the
    states that training resumes from.
    """
    if Path(source).exists() and is_captioned(Path(source)):
        if target is not None or trial is not None:
            raise UsageError(f"{source} has captions and no domains: --target and --trial are for labelled data sets")
        corpus, seen = load_corpus(Path(source), config.size), Seen()
    else:
        corpus, seen = labelled_corpus(str(source), config.size, target, trial)
    with exclusive(folder), stoppable(), disk_errors(folder):
        if config.init:
            seen = merge_seen(seen, read_seen(Path(config.init)))
        return train_pipeline(corpus, config, folder, seen)


def train_pipeline(corpus: Corpus, config: PretrainConfig, folder: Path, seen: Seen | None = None) -> Path:
    """`pretrain` of a corpus in memory, in a folder that the caller keeps other processes out of.

    Args:
        seen: the domains of labelled data sets that the corpus, and what training goes on from, are of.
    """
    refuse_other_options(corpus, config, folder)
    write_text(folder / "pretrain.toml", to_toml(config))
    if config.init:
        take_over(config, folder)
    vae = load_or_train_autoencoder(corpus, config, folder)
    tokenizer = load_or_fit_tokenizer(corpus, config, folder)
    denoiser = build_denoiser(tokenizer, config)
    scheduler = load_or_build_scheduler(folder)
    denoiser = train_denoiser(corpus, vae, tokenizer, denoiser, config, folder, sample_prompts(corpus), scheduler)
    # Before the weights: a pipeline that is cut short here does not pass for one that has seen nothing.
    if seen is not None and seen.domains:
        make_folder(folder / "pipeline")
        write_json(folder / "pipeline" / SEEN, dataclasses.asdict(seen))
    return save_pipeline(vae, tokenizer, denoiser, scheduler, corpus.versatile_styles, folder / "pipeline")


KNOWN = "vae-before"  # folder of the autoencoder that training goes on from
# What may change when a training is resumed: how long and how fast, not what.
MAY_CHANGE = ("vae_steps", "tune_vae_steps", "unet_steps", "vae_lr", "unet_lr", "unet_batch_size", "vae_batch_size",
              "decay", "device", "log_every", "save_every")  # fmt: skip


def refuse_other_options(corpus: Corpus, config: PretrainConfig, folder: Path) -> None:
    """Raise `UsageError` where `folder` holds a training of another corpus, or one with other options."""
    columns = [corpus.text, corpus.category, corpus.style, corpus.weight.tolist()]
    now = hash_of([hashlib.sha256(corpus.images.tobytes()).hexdigest(), columns])
    if (folder / "corpus.json").exists() and read_json(folder / "corpus.json")["hash"] != now:
        raise UsageError(f"{folder} holds a training on another corpus; choose another --output")
    if (folder / "pretrain.toml").exists():
        kept = plain_values(build_config(PretrainConfig, load_toml(folder / "pretrain.toml"), "pretrain.toml"))
        finished = (folder / "vae" / "config.json").exists()
        may_change = set(MAY_CHANGE) - ({"vae_steps", "tune_vae_steps"} if finished else set())
        for name, value in plain_values(config).items():
            if name not in may_change and kept.get(name) != value:
                held = kept.get(name)
                if name in MAY_CHANGE:
                    raise UsageError(
                        f"{folder}: the autoencoder is finished, with {name} = {held!r}, not {value!r}; choose another "
                        "--output, or give the former value to go on"
                    )
                raise UsageError(
                    f"{folder} holds a training with {name} = {held!r}, not {value!r}; choose another --output"
                )
    write_json(folder / "corpus.json", {"hash": now, "images": len(corpus)})


def take_over(config: PretrainConfig, folder: Path) -> None:
    """Copy autoencoder, tokenizer and noise schedule of the LDM `config.init` to `folder`, where that has none yet.

    Raises `UsageError` where the LDM does not predict noise, which is what the denoiser is trained to do.
    """
    name = KNOWN if config.tune_vae_steps else "vae"
    if (folder / name / "config.json").exists():
        return
    ldm = LatentDiffusion.load(config.init, precision="float32")
    if ldm.prediction_type != "epsilon":
        raise UsageError(f"--init {config.init}: it predicts {ldm.prediction_type}; only noise prediction is trained")
    work = folder / ".tokenizer.tmp"
    shutil.rmtree(work, ignore_errors=True)
    ldm.tokenizer.save_pretrained(work)
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    work.rename(folder / "tokenizer")
    ldm.scheduler.save_pretrained(folder / "scheduler")
    work = folder / ".vae.tmp"  # the last one: where it is, all are
    shutil.rmtree(work, ignore_errors=True)
    ldm.vae.save_pretrained(work)
    work.rename(folder / name)


def build_denoiser(tokenizer: CLIPTokenizer, config: PretrainConfig) -> Denoiser:
    """The denoiser that training starts from: an untrained one, or that of the LDM `config.init`."""
    torch.manual_seed(config.seed)
    if not config.init:
        return Denoiser(build_unet(config), build_text_encoder(tokenizer, config))
    ldm = LatentDiffusion.load(config.init, precision="float32")
    ldm.unet.register_to_config(sample_size=config.size // ldm.latent_factor)
    denoiser = Denoiser(ldm.unet, ldm.text_encoder).requires_grad_(True).train()
    denoiser.text_encoder.requires_grad_(not config.freeze_text)
    return denoiser


def load_or_train_autoencoder(corpus: Corpus, config: PretrainConfig, folder: Path) -> AutoencoderKL:
    """The finished autoencoder of `folder`, or one trained now: anew, or on from that of `config.init`."""
    target = folder / "vae"
    if not (target / "config.json").exists():
        work = folder / ".vae.tmp"  # under its own name only when it is complete
        known = None
        if config.init:
            known = AutoencoderKL.from_pretrained(folder / KNOWN).eval().requires_grad_(False)
        train_autoencoder(corpus, config, folder, known).save_pretrained(work)
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    vae = AutoencoderKL.from_pretrained(target).eval().requires_grad_(False)
    vae = vae.to(memory_format=torch.channels_last)
    if (folder / "scaling.json").exists():
        vae.register_to_config(scaling_factor=read_scaling(folder / "scaling.json"))
    return vae


def read_scaling(path: Path) -> float:
    """The scaling factor in `path`. Raises `FileError` where it is none."""
    value = read_json(path)
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        raise FileError(f"{path}: the scaling factor is a number above 0, not {value!r}; delete it to measure it again")
    return value


def load_or_build_scheduler(folder: Path) -> DDIMScheduler:
    """The noise schedule of the LDM that training goes on from, where `folder` has one, or Stable Diffusion v1's."""
    if (folder / "scheduler" / "scheduler_config.json").exists():
        # What diffusers' pipelines ask of every scheduler, with a warning where they have to change it.
        return DDIMScheduler.from_pretrained(folder / "scheduler", steps_offset=1, clip_sample=False)
    return build_scheduler()


def load_or_fit_tokenizer(corpus: Corpus, config: PretrainConfig, folder: Path) -> CLIPTokenizer:
    """The tokenizer of `folder`, or one fitted to the captions."""
    target = folder / "tokenizer"
    if (target / "tokenizer_config.json").exists():  # not vocab.json, which transformers does not always write
        return CLIPTokenizer.from_pretrained(target)
    parts = zip(corpus.text, corpus.category, corpus.style, strict=True)
    captions = [", ".join(part for part in caption if part) for caption in parts]
    work = folder / ".tokenizer.tmp"  # under its own name only when it is complete
    shutil.rmtree(work, ignore_errors=True)
    fit_tokenizer(captions, work, config.vocabulary, config.text_length)
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    return CLIPTokenizer.from_pretrained(target)


def sample_prompts(corpus: Corpus, count: int = 16) -> list[str]:
    """Prompts for the sample sheets: the most frequent categories, each in another style."""
    names = [name for name in corpus.category if name] or corpus.text
    often = Counter(names)
    frequent = sorted(often, key=lambda name: (-often[name], name))[:count]
    styles = corpus.styles or [""]
    return [", ".join(p for p in (name, styles[i % len(styles)]) if p) for i, name in enumerate(frequent)]


def save_pipeline(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, denoiser: Denoiser, scheduler: DDIMScheduler, styles: list[str],
    target: Path,
) -> Path:  # fmt: skip
    """Write the pipeline, and the style words that prompts may name (`styles.json`).

    U-Net and autoencoder are written in half precision. The text encoder, few of the bytes, stays in single:
    transformers loads a file in the type it was written in, diffusers in float32, and a pipeline of both types does
    not run.
    """
    pipeline = build_pipeline(vae, tokenizer, denoiser, scheduler)
    vae.half()
    denoiser.unet.half()
    pipeline.save_pretrained(target, safe_serialization=True)
    vae.float()
    denoiser.unet.float()
    write_json(target / "styles.json", styles)
    return target
