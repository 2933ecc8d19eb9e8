"""An LDM fine-tuned on the images of one domain, without prompts, kept for all runs that ask for the same.

The trainer is that of `domainfusion pretrain`: ε-prediction with the plain squared error, AdamW at a learning rate that
is constant after 100 steps of warm-up, weights averaged; autoencoder and text encoder stay. It depends on the images,
the LDM and the options:

    cache/finetuned/KEY/
        pipeline/      the LDM, a diffusers folder
        samples-*.png  what it draws without a prompt
        metrics.jsonl  losses
        done.json      what it was made of; written last, so that without it the training goes on
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.config import DSIConfig, PretrainConfig
from domainfusion.config_files import plain_values
from domainfusion.data.transforms import from_uint8, resize, to_uint8
from domainfusion.diffusion.corpus import Corpus
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.pretraining import train_pipeline
from domainfusion.errors import Busy, FileError, UsageError, show_note
from domainfusion.files import cache_folder, hash_of, read_json, write_json
from domainfusion.interruption import check, stoppable
from domainfusion.locks import exclusive

FORMAT = 2  # raised when the computation changes, so that LDMs of an older one are not taken for its own
PAUSE = 5.0  # seconds between two looks at what another process is training
# So large that min(SNR, γ)/SNR is 1 at every timestep.
PLAIN_LOSS = 1e9


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """The LDM of a domain: where it is, or will be when `train_source` has made it."""

    domain: str
    key: str

    @property
    def folder(self) -> Path:
        """Its folder in the cache."""
        return cache_folder() / "finetuned" / self.key

    @property
    def pipeline(self) -> Path:
        """The diffusers folder."""
        return self.folder / "pipeline"

    @property
    def finished(self) -> bool:
        """Whether it is there."""
        return (self.folder / "done.json").exists()

    def facts(self) -> dict[str, Any]:
        """{"domain", "images", "steps", "seconds", "ldm"} of a finished one."""
        return read_json(self.folder / "done.json")


def tuning_options(config: DSIConfig, ldm: str, size: int, images: int, device: str = "auto") -> PretrainConfig:
    """The options of `pretrain` that fine-tune the LDM `ldm` on `images` images at `size` pixels, on `device`."""
    drawn = config.tune_steps * config.tune_batch_size
    return PretrainConfig(
        init=ldm, device=device, size=size, seed=config.seed, unet_steps=config.tune_steps,
        unet_batch_size=config.tune_batch_size, unet_lr=config.tune_lr, min_snr=PLAIN_LOSS, caption_dropout=1.0,
        recolour=0.0, hue=0.0, freeze_text=True, decay=0.0, save_every=100,
        pool_size=max(config.tune_batch_size, min(drawn, max(1024, 4 * images))),
    )  # fmt: skip


def plan_source(domain: str, images: np.ndarray, fingerprint: str, config: DSIConfig, size: int) -> FineTuned:
    """Where the LDM of a domain with these training images (n, S, S, 3) is kept.

    Args:
        fingerprint: of the LDM it starts from.

    Raises `UsageError` where the images are too few: one of them is held out to measure the loss on.
    """
    if len(images) < 2:
        raise UsageError(f"domain {domain} has {len(images)} training image(s): an LDM is fine-tuned on two at least")
    options = plain_values(tuning_options(config, "", size, len(images)))
    del options["device"]  # decides how fast, not what
    return FineTuned(domain, hash_of([FORMAT, _hash_of_images(images), fingerprint, options]))


def _hash_of_images(images: np.ndarray) -> str:
    digest = hashlib.sha256(str(images.shape).encode())
    for start in range(0, len(images), 1024):
        digest.update(np.ascontiguousarray(images[start : start + 1024]).data)
    return digest.hexdigest()


def train_source(
    source: FineTuned, images: np.ndarray, ldm: str, config: DSIConfig, size: int, device: str = "auto"
) -> None:
    """Train the LDM of a domain where it is not there yet; one begun before goes on.

    Waits where another process is training it. Raises `Interrupted` where a signal asks to stop, when that is saved.
    """
    said = False
    while not source.finished:
        try:
            with exclusive(source.folder), stoppable():
                if not source.finished:
                    _train(source, images, ldm, config, size, device)
        except Busy as error:
            if not said:
                show_note(f"{error.args[0].split(':')[0]}; waiting for it")
                said = True
            check()
            time.sleep(PAUSE)


def _train(source: FineTuned, images: np.ndarray, ldm: str, config: DSIConfig, size: int, device: str) -> None:
    """Train in a folder that is ours alone, then leave the pipeline and what people look at."""
    folder = source.folder
    show_note(f"fine-tuning the LDM on {len(images)} images of {source.domain}, in {folder}")
    none = [""] * len(images)
    pixels = np.concatenate([to_uint8(resize(from_uint8(part), size)) for part in np.array_split(
        images, -(-len(images) // 256))])  # fmt: skip
    corpus = Corpus(pixels, none, none, none, np.ones(len(images)))
    started = time.monotonic()
    before = read_json(folder / "seconds.json") if (folder / "seconds.json").exists() else 0.0
    try:
        train_pipeline(corpus, tuning_options(config, ldm, size, len(images), device), folder)
    finally:
        seconds = before + time.monotonic() - started
        write_json(folder / "seconds.json", seconds)
    write_json(
        folder / "done.json",
        {"domain": source.domain, "images": len(images), "steps": config.tune_steps, "seconds": seconds, "ldm": ldm},
    )
    for path in [*folder.glob("pool-*.safetensors"), folder / "denoiser-state.safetensors", folder / "seconds.json"]:
        path.unlink(missing_ok=True)
    for name in ("vae", "tokenizer", "scheduler"):  # the pipeline has them
        shutil.rmtree(folder / name, ignore_errors=True)


def check_trainable(ldm: LatentDiffusion) -> None:
    """Raise `UsageError` where an LDM does not predict noise, which is what the trainer trains."""
    if ldm.prediction_type != "epsilon":
        raise UsageError(
            f"--ldm {ldm.name}: it predicts {ldm.prediction_type}; only an LDM that predicts noise is fine-tuned"
        )


def load_source(source: FineTuned, **options: Any) -> LatentDiffusion:
    """A finished LDM. Raises `FileError` where it is not there."""
    if not source.finished:
        raise FileError(
            f"the LDM fine-tuned on {source.domain} is not in {source.folder}; `domainfusion evaluate` with the run's "
            "folder makes it again"
        )
    return LatentDiffusion.load(str(source.pipeline), **options)
