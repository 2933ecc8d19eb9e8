"""Pretraining on a device that is not the CPU; no GPU is needed for it (`meta_device`)."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.config import PretrainConfig
from domainfusion.diffusion import autoencoder_training, denoiser_training
from domainfusion.diffusion.autoencoder_training import build_autoencoder, train_autoencoder
from domainfusion.diffusion.corpus import Corpus
from domainfusion.diffusion.denoiser_training import build_scheduler, train_denoiser
from domainfusion.diffusion.optimization import Averaged
from domainfusion.diffusion.pretraining import build_denoiser, load_or_fit_tokenizer
from meta_device import answer_for_meta_tensors

CONFIG = PretrainConfig(
    size=32, latent_channels=4, vae_channels=(8, 16), vae_steps=2, vae_batch_size=4, unet_channels=(32,),
    unet_steps=2, unet_batch_size=4, vocabulary=256, text_length=8, text_width=32, text_layers=1, pool_size=8,
    pool_epochs=1, save_every=2, log_every=1, device="meta",
)  # fmt: skip


def corpus() -> Corpus:
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    return Corpus(images, [f"cat {i}" for i in range(24)], ["cat"] * 24, ["ink"] * 24, np.ones(24))


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_for_meta_tensors(monkeypatch)
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda module: module.to_empty(device="cpu"))
    for module in (autoencoder_training, denoiser_training):  # the fused optimizer knows no meta device
        monkeypatch.setattr(module, "build_optimizer", lambda p, lr, weight_decay: torch.optim.AdamW(p, lr))


@pytest.mark.usefixtures("meta")
def test_both_stages_keep_everything_on_the_device(tmp_path: Path) -> None:
    vae = train_autoencoder(corpus(), CONFIG, tmp_path)
    assert next(vae.parameters()).device.type == "cpu"  # handed back where the next stage expects it
    tuned = train_autoencoder(corpus(), dataclasses.replace(CONFIG, tune_vae_steps=3), tmp_path / "tuned", known=vae)
    assert next(tuned.parameters()).device.type == "cpu"
    tokenizer = load_or_fit_tokenizer(corpus(), CONFIG, tmp_path)
    untrained, schedule = build_denoiser(tokenizer, CONFIG), build_scheduler()
    denoiser = train_denoiser(corpus(), vae, tokenizer, untrained, CONFIG, tmp_path, [], schedule)
    assert {value.device.type for value in denoiser.parameters()} == {"cpu"}


@pytest.mark.usefixtures("meta")
def test_a_tensor_left_on_the_cpu_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail."""
    weight = denoiser_training.min_snr_weight

    class Forgotten(torch.Tensor):
        def to(self, *_: object, **__: object) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    monkeypatch.setattr(denoiser_training, "min_snr_weight", lambda *a: weight(*a).as_subclass(Forgotten))
    tokenizer = load_or_fit_tokenizer(corpus(), CONFIG, tmp_path)
    denoiser, vae = build_denoiser(tokenizer, CONFIG), build_autoencoder(CONFIG).eval()
    with pytest.raises((RuntimeError, ValueError), match="device"):
        train_denoiser(corpus(), vae, tokenizer, denoiser, CONFIG, tmp_path, [], build_scheduler())


def test_a_saved_average_goes_on_where_it_was() -> None:
    averaged = Averaged(torch.nn.Linear(2, 2), 0.9)  # as it is read from disk, on the CPU
    elsewhere = Averaged(torch.nn.Linear(2, 2, device="meta"), 0.9)
    elsewhere.load_state_dict(averaged.state_dict())
    assert {value.device.type for value in elsewhere.values.values()} == {"meta"}
