"""Losses, schedules and averages of pretraining, against formulas and literal loops."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.config import PretrainConfig
from domainfusion.diffusion.autoencoder_training import (
    autoencoder_loss,
    build_autoencoder,
    fade_images,
    reconstruction_psnr,
)
from domainfusion.diffusion.denoiser_training import build_scheduler, min_snr_weight, pool_images
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.optimization import Averaged, WorkingCopy, learning_rate_factor
from domainfusion.diffusion.pretraining import pretrain
from small_corpus import SIZE, TINY, square_image


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weight_is_its_formula(gamma: float) -> None:
    found = min_snr_weight(build_scheduler().alphas_cumprod, gamma)
    product = 1.0
    for t in range(1000):
        beta = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999) ** 2
        product *= 1 - beta
        snr = product / (1 - product)
        assert float(found[t]) == pytest.approx(min(snr, gamma) / snr, rel=2e-3)


def test_learning_rate_factor_rises_stays_and_falls() -> None:
    factors = [learning_rate_factor(step, 1000, 0.25, warmup=50) for step in range(1000)]
    assert factors[:50] == pytest.approx([(step + 1) / 50 for step in range(50)])
    assert set(factors[50:750]) == {1.0}
    assert factors[750:] == pytest.approx([(1000 - step) / 250 for step in range(750, 1000)])
    assert [learning_rate_factor(step, 1000, 0.0, warmup=50) for step in (500, 999)] == [1.0, 1.0]
    assert factors[:750] == [learning_rate_factor(step, 3000, 0.25, warmup=50) for step in range(750)]


def test_averaged_is_the_literal_moving_average() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)).double()
    averaged = Averaged(module, decay=0.6)
    literal = [parameter.detach().clone() for parameter in module.parameters()]
    for n in range(1, 12):
        for parameter in module.parameters():
            parameter.data.add_(torch.randn(parameter.shape, dtype=torch.float64))
        averaged.update(module)
        decay = min(0.6, (1 + n) / (10 + n))
        literal = [
            decay * old + (1 - decay) * new.detach() for old, new in zip(literal, module.parameters(), strict=True)
        ]
    present = [parameter.detach().clone() for parameter in module.parameters()]
    with averaged.applied_to(module):
        for parameter, expected in zip(module.parameters(), literal, strict=True):
            torch.testing.assert_close(parameter.detach(), expected)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), present, strict=True))
    with pytest.raises(KeyError), averaged.applied_to(module):
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), present, strict=True))
    restored = Averaged(module, decay=0.6)
    restored.load_state_dict(averaged.state_dict())
    restored.copy_to(module)
    for parameter, expected in zip(module.parameters(), literal, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


def test_working_copy_gives_the_gradients_and_takes_the_values() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.SiLU(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 3)
    )
    unused = torch.nn.Linear(2, 2)
    both = torch.nn.ModuleList([module, unused])
    x, y = torch.randn(32, 6), torch.randn(32, 3)
    expected = torch.autograd.grad((module(x) - y).square().mean(), list(module.parameters()))
    working = WorkingCopy(both)
    for _ in range(2):  # gradients do not pile up from step to step
        (working.module[0](x.bfloat16()).float() - y).square().mean().backward()
        working.give_gradients()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, gradient, atol=0.02 * float(gradient.abs().max()), rtol=0.05)
    assert all(parameter.grad is None for parameter in unused.parameters())
    with torch.no_grad():
        module[0].weight.add_(1.0)
    working.take_values()
    assert torch.equal(working.module[0][0].weight, module[0].weight.bfloat16())


def test_autoencoder_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    model = build_autoencoder(TINY)
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    loss, squared = autoencoder_loss(model, images, torch.Generator().manual_seed(4), kl_weight=0.3)
    posterior = model.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(4))
    x_hat = model.decode(posterior.mean + posterior.std * noise).sample
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    d = x_hat - images
    expected = (
        d.abs().mean() + (d**2).mean() + 0.3 * kl
        + (d[..., :, 1:] - d[..., :, :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    )  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(squared, torch.nn.functional.mse_loss(x_hat, images), rtol=1e-5, atol=0)


def test_latents_that_are_held_pull_on_the_unfaded_images_alone() -> None:
    torch.manual_seed(0)
    model, images = build_autoencoder(TINY), torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    held = torch.randn(2, 4, SIZE // 2, SIZE // 2)
    free, _ = autoencoder_loss(model, images, torch.Generator().manual_seed(4), 0.3)
    bound, _ = autoencoder_loss(model, images, torch.Generator().manual_seed(4), 0.3, held)
    mean = model.encode(images).latent_dist.mean[:2]
    torch.testing.assert_close(bound - free, 0.5 * ((mean - held) ** 2).mean() / held.var(), rtol=1e-4, atol=1e-6)


def test_faded_images_keep_their_form_and_lose_contrast() -> None:
    images = torch.rand(8, 3, 4, 4) * 2 - 1
    faded = fade_images(images, np.random.default_rng(0), 0.5)
    ratio = (faded / images[:4]).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert ((ratio > 0) & (ratio < 1)).all()
    assert len(ratio[:, 0].unique()) == 4
    assert len(fade_images(images, np.random.default_rng(0), 0.0)) == 0


def test_a_known_autoencoder_is_trained_on_and_its_denoiser_stays(corpus_folder: Path, tmp_path: Path) -> None:
    first = pretrain(corpus_folder, dataclasses.replace(TINY, vae_steps=60, vae_lr=3e-3, ema=0.0), tmp_path / "first")
    options = {"init": str(first), "tune_vae_steps": 40, "unet_steps": 0, "vae_lr": 1e-3, "ema": 0.0}
    second = pretrain(corpus_folder, dataclasses.replace(TINY, **options), tmp_path / "second")
    old, new = (LatentDiffusion.load(str(folder), precision="float32") for folder in (first, second))
    for part in ("unet", "text_encoder"):
        for name, value in getattr(old, part).state_dict().items():
            assert torch.equal(value, getattr(new, part).state_dict()[name]), name
    assert new.scaling_factor == old.scaling_factor
    images = torch.from_numpy(np.stack([square_image(k) for k in range(24)])).permute(0, 3, 1, 2) / 127.5 - 1
    drift = (new.encode(images) - old.encode(images)).square().mean().sqrt() / old.encode(images).std()
    assert 0 < drift < 0.25
    records = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records} == {"autoencoder"}
    assert records[-1]["step"] == 40


def test_a_small_corpus_has_a_small_pool() -> None:
    config = PretrainConfig(pool_size=65_536)
    assert [pool_images(config, images) for images in (10, 64, 100, 4096, 50_000)] == [1024, 1024, 1600, 65_536, 65_536]
    assert pool_images(PretrainConfig(pool_size=16), 10) == 16


def test_psnr_of_known_errors() -> None:
    class Brighter(torch.nn.Module):
        """Stands for an autoencoder whose reconstruction is 0.2 too bright in [-1, 1], 0.1 of the range."""

        device = torch.device("cpu")

        def encode(self, x: torch.Tensor) -> object:
            self.mean, self.latent_dist = x, self
            return self

        def decode(self, z: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (z + 0.2,)

    images = np.full((3, 8, 8, 3), 100, dtype=np.uint8)
    assert reconstruction_psnr(Brighter(), images, batch=2) == pytest.approx(20.0, abs=1e-3)
