"""Pretraining a very small LDM end to end, and its parts against formulas and literal loops."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTokenizer

from domainfusion.config import PretrainConfig
from domainfusion.diffusion import autoencoder_training, denoiser_training
from domainfusion.diffusion.autoencoder_training import (
    autoencoder_loss,
    build_autoencoder,
    fade_images,
    reconstruction_psnr,
)
from domainfusion.diffusion.corpus import BACKGROUNDS, FOREGROUNDS, Corpus, augment, compose_caption, load_corpus
from domainfusion.diffusion.denoiser_training import build_scheduler, min_snr_weight
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.optimization import Averaged, WorkingCopy, learning_rate_factor
from domainfusion.diffusion.pretraining import pretrain, sample_prompts
from domainfusion.diffusion.text_encoder import build_text_encoder, fit_tokenizer
from domainfusion.errors import DataError, Interrupted, UsageError
from domainfusion.tensors import load_state

SIZE = 32
COLOURS = {"red": (200, 30, 30), "green": (20, 160, 40), "blue": (30, 60, 210), "grey": (130, 130, 130)}
TINY = PretrainConfig(
    size=SIZE, latent_channels=4, vae_channels=(8, 16), vae_steps=6, vae_batch_size=4, unet_channels=(32,),
    unet_steps=6, unet_batch_size=4, vocabulary=256, text_length=8, text_width=32, text_layers=1, pool_size=16,
    pool_epochs=1, save_every=2, log_every=1,
)  # fmt: skip


def square_image(number: int) -> np.ndarray:
    image = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    left = number // 4 * 3
    image[left : left + 12, 4:20] = list(COLOURS.values())[number % 4]
    return image


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """24 coloured 32x32 images with `metadata.csv`."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "category", "style", "weight"])
        for number in range(24):
            Image.fromarray(square_image(number)).save(folder / f"{number:02d}.png")
            colour = list(COLOURS)[number % 4]
            writer.writerow(
                [f"{number:02d}.png", f"{colour} square", "shape", ["flat", "ink"][number % 2], 1 + number % 3]
            )
    return folder


def make_corpus(images: np.ndarray, text: str = "text", category: str = "category", style: str = "style") -> Corpus:
    count = len(images)
    return Corpus(images, [text] * count, [category] * count, [style] * count, np.ones(count))


# End to end


def test_pretrain_writes_a_pipeline_that_diffusers_runs(corpus_folder: Path, tmp_path: Path) -> None:
    folder = pretrain(corpus_folder, TINY, tmp_path / "run")
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = Image.fromarray(square_image(0))
    made = pipeline("red square", image=image, strength=0.5, num_inference_steps=4, guidance_scale=3.0).images[0]
    assert made.size == (SIZE, SIZE)
    assert np.asarray(made).std() > 1
    ldm = LatentDiffusion.load(str(folder), precision="float32")
    assert ldm.styles == ("flat", "ink")
    assert ldm.image_size == SIZE
    # What is trained on: latents of about unit variance.
    images = torch.from_numpy(load_corpus(corpus_folder, SIZE).images).permute(0, 3, 1, 2) / 127.5 - 1
    assert ldm.encode(images).std() == pytest.approx(1, abs=0.25)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for stage in ("autoencoder", "denoiser"):
        assert [r["step"] for r in records if r["stage"] == stage and "loss" in r] == [1, 2, 3, 4, 5, 6]
        held = [value for r in records if r["stage"] == stage for key, value in r.items() if key.startswith("held_out")]
        assert len(held) == {"autoencoder": 6, "denoiser": 3}[stage]  # the autoencoder's also faded
        assert np.isfinite(held).all()


def test_init_goes_on_from_an_ldm_and_keeps_its_autoencoder_and_tokenizer(corpus_folder: Path, tmp_path: Path) -> None:
    first = pretrain(corpus_folder, TINY, tmp_path / "first")
    options = {"init": str(first), "unet_steps": 1, "unet_lr": 1e-5, "vae_steps": 1}
    second = pretrain(corpus_folder, dataclasses.replace(TINY, **options), tmp_path / "second")
    old, new = (LatentDiffusion.load(str(folder), precision="float32") for folder in (first, second))
    assert new.scaling_factor == old.scaling_factor
    assert new.tokenizer.get_vocab() == old.tokenizer.get_vocab()
    for (name, before), after in zip(old.vae.state_dict().items(), new.vae.state_dict().values(), strict=True):
        assert torch.equal(before, after), name
    moved = 0
    for part in ("unet", "text_encoder"):
        pairs = zip(getattr(old, part).parameters(), getattr(new, part).parameters(), strict=True)
        for before, after in pairs:
            # Adam's first step is at most lr a weight; half precision on disk rounds to one part in 2,000.
            torch.testing.assert_close(after, before, atol=3e-5, rtol=1e-3)
            moved += int(not torch.equal(before, after))
    assert moved > 0
    stages = [json.loads(line)["stage"] for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert set(stages) == {"denoiser"}


def test_init_leaves_latents_as_they_are_where_their_scale_is_1(corpus_folder: Path, tmp_path: Path) -> None:
    """A scaling factor of 1 is the LDM's own then, not one that is still to be measured."""
    short = dataclasses.replace(TINY, vae_steps=1, unet_steps=1)
    first = pretrain(corpus_folder, short, tmp_path / "first")
    described = json.loads((first / "vae" / "config.json").read_text())
    assert described["scaling_factor"] != 1
    (first / "vae" / "config.json").write_text(json.dumps(described | {"scaling_factor": 1.0}))
    second = pretrain(corpus_folder, dataclasses.replace(short, init=str(first)), tmp_path / "second")
    assert LatentDiffusion.load(str(second), precision="float32").scaling_factor == 1


def test_init_refuses_an_ldm_that_predicts_no_noise(corpus_folder: Path, tmp_path: Path) -> None:
    first = pretrain(corpus_folder, TINY, tmp_path / "first")
    path = first / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"epsilon"', '"v_prediction"'))
    with pytest.raises(UsageError, match="predicts v_prediction"):
        pretrain(corpus_folder, dataclasses.replace(TINY, init=str(first)), tmp_path / "second")


class Killed(BaseException):
    """What a test raises in place of SIGKILL; nothing catches it."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, module: object, steps: int, politely: bool) -> None:
    """Stop the stage of `module` in its step after `steps`: by a signal that lets it save, or dead on the spot."""

    class Interrupting(Averaged):
        def update(self, trained: torch.nn.Module) -> None:
            super().update(trained)
            if self.updates == steps + 1:
                if not politely:
                    raise Killed
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "Averaged", Interrupting)


@pytest.mark.parametrize("politely", [False, True])
def test_resumed_equals_uninterrupted_bit_by_bit(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, politely: bool
) -> None:
    pretrain(corpus_folder, TINY, tmp_path / "whole")
    for module in (autoencoder_training, denoiser_training):
        with monkeypatch.context() as patch:
            interrupt_after(patch, module, 3 - politely, politely)  # a state is kept every 2 steps
            with pytest.raises(Interrupted if politely else Killed):
                pretrain(corpus_folder, TINY, tmp_path / "parts")
        if politely:
            stage = module.__name__.rpartition(".")[2].removesuffix("_training")
            assert load_state(tmp_path / "parts" / f"{stage}-state.safetensors")["step"] == 3
    torch.manual_seed(12345)  # nothing may hang on the process's own generator
    pretrain(corpus_folder, TINY, tmp_path / "parts")
    for stage in ("autoencoder", "denoiser"):
        whole, parts = (load_state(tmp_path / run / f"{stage}-state.safetensors") for run in ("whole", "parts"))
        assert_same(whole, parts)
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.name.endswith(("-state.safetensors", "-previous.safetensors")):
            continue
        if path.name.startswith("pool-"):  # its header's order is not fixed, its content is
            assert_same(load_state(path), load_state(tmp_path / "parts" / path.name))
            continue
        if path.suffix in (".safetensors", ".png") or path.name in ("scaling.json", "vocab.json"):
            other = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
            assert path.read_bytes() == other.read_bytes(), path.name


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_of_a_damaged_state_the_one_before_is_used(
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    short = dataclasses.replace(TINY, vae_steps=4, unet_steps=4)
    pretrain(corpus_folder, short, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, denoiser_training, 3, politely=True)
        with pytest.raises(Interrupted):
            pretrain(corpus_folder, short, tmp_path / "parts")
    for name in ("denoiser-state", "pool-000"):
        path = tmp_path / "parts" / f"{name}.safetensors"
        content = bytearray(path.read_bytes())
        content[-40] ^= 1
        path.write_bytes(content[:-30] if damage == "truncated" else content)
    capsys.readouterr()
    pretrain(corpus_folder, short, tmp_path / "parts")
    said = capsys.readouterr().err
    assert re.search(r"denoiser-state\.safetensors (is truncated|was altered).*the one before it is used", said)
    assert re.search(r"pool-000\.safetensors (is truncated|was altered).*it is computed again", said)
    whole, parts = (load_state(tmp_path / run / "denoiser-state.safetensors") for run in ("whole", "parts"))
    assert_same(whole, parts)


def assert_same(first: object, second: object, path: str = "state") -> None:
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{path}/{index}")
    else:
        assert first == second, path


# Losses, schedules, averages


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


# The corpus


def test_augment_keeps_range_shape_and_input() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    images[:20] = images[:20, :, :, :1]  # monochrome
    kept = images.copy()
    batch, colours = augment(images, np.random.default_rng(1), recolour=0.5, hue=0.5)
    assert batch.shape == (40, 3, 16, 16)
    assert batch.dtype == torch.float32
    assert batch.min() >= -1
    assert batch.max() <= 1
    assert np.array_equal(images, kept)
    assert any(colours[:20])
    assert not all(colours[:20])
    assert not any(colours[20:])
    again, _ = augment(images, np.random.default_rng(1), recolour=0.5, hue=0.5)
    assert torch.equal(batch, again)


def test_augment_mirrors_half_and_moves_a_little() -> None:
    images = np.zeros((600, 32, 32, 3), dtype=np.uint8)
    images[:, :, 16:] = 255
    batch, _ = augment(images, np.random.default_rng(0), recolour=0.0, hue=0.0)
    left, right = batch[:, :, :, :8].mean((1, 2, 3)), batch[:, :, :, 24:].mean((1, 2, 3))
    assert torch.allclose(left.abs(), torch.ones(600))  # the border has moved by less than 8 pixels
    assert torch.equal(left, -right)
    assert (left > 0).float().mean() == pytest.approx(0.5, abs=0.08)  # 4 standard deviations


def test_augment_zooms_between_its_bounds() -> None:
    images = np.full((300, 64, 64, 3), 255, dtype=np.uint8)
    images[:, 22:42, 22:42] = 0  # side 20
    batch, _ = augment(images, np.random.default_rng(0), recolour=0.0, hue=0.0)
    side = ((1 - batch[:, 0]) / 2).sum((1, 2)).sqrt()
    assert side.min() > 20 * 0.8 * 0.98
    assert side.max() < 20 * 1.15 * 1.02
    assert side.max() - side.min() > 4


def test_recoloured_drawings_have_the_colours_that_their_words_say() -> None:
    images = np.zeros((60, 8, 8, 3), dtype=np.uint8)
    images[30:] = 255  # ink only, then paper only
    batch, colours = augment(images, np.random.default_rng(0), recolour=1.0, hue=1.0)
    grounds = set()
    for i, words in enumerate(colours):
        front, back = words.split(" on ")
        expected = torch.tensor(FOREGROUNDS[front] if i < 30 else BACKGROUNDS[back]) / 127.5 - 1
        torch.testing.assert_close(batch[i], expected.view(3, 1, 1).expand(3, 8, 8), rtol=0, atol=1e-5)
        grounds.add(back)
    assert "white" in grounds
    assert len(grounds) > 2


def test_hue_augmentation_permutes_channels() -> None:
    images = np.tile(np.array([200, 100, 0], dtype=np.uint8), (40, 8, 8, 1))
    batch, _ = augment(images, np.random.default_rng(0), recolour=1.0, hue=1.0)
    pixels = ((batch[:, :, 4, 4] + 1) * 127.5).round().int()
    assert all(sorted(pixel.tolist()) == [0, 100, 200] for pixel in pixels)
    assert len({tuple(pixel.tolist()) for pixel in pixels}) == 6
    unchanged, _ = augment(images, np.random.default_rng(0), recolour=1.0, hue=0.0)
    assert torch.allclose((unchanged[:, :, 4, 4] + 1) * 127.5, torch.tensor([200.0, 100.0, 0.0]), atol=1e-3)


def test_captions_drop_their_parts_at_the_stated_rates() -> None:
    corpus = make_corpus(np.zeros((1, 4, 4, 3), dtype=np.uint8))
    rng = np.random.default_rng(0)
    captions = [compose_caption(corpus, 0, "red on white", rng, 0.1).split(", ") for _ in range(8000)]
    order = ["text", "category", "style", "red on white"]
    for parts in captions:
        assert parts == [""] or parts == [part for part in order if part in parts]
    for part, rate in zip(order, (0.5, 0.85, 0.85, 0.7), strict=True):
        share = sum(part in parts for parts in captions) / 8000
        assert share == pytest.approx(0.9 * rate, abs=4 * math.sqrt(0.25 / 8000))
    empty = sum(parts == [""] for parts in captions) / 8000
    assert empty == pytest.approx(0.1 + 0.9 * 0.5 * 0.15 * 0.15 * 0.3, abs=4 * math.sqrt(0.1 / 8000))


def test_captions_always_or_never_empty() -> None:
    corpus = make_corpus(np.zeros((1, 4, 4, 3), dtype=np.uint8), category="", style="")
    rng = np.random.default_rng(0)
    assert {compose_caption(corpus, 0, "", rng, 1.0) for _ in range(50)} == {""}
    assert {compose_caption(corpus, 0, "", rng, 0.0) for _ in range(50)} == {"", "text"}


def test_held_out_images_are_few_fixed_and_never_trained_on() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4000, 4, 4, 3), dtype=np.uint8)
    images[2000:2100] = images[:100]  # copies
    corpus = make_corpus(images)
    held = corpus.held_out
    assert 0.01 < held.mean() < 0.03
    assert np.array_equal(held[2000:2100], held[:100])
    training, validation = corpus.select(~held), corpus.select(held)
    assert len(training) + len(validation) == 4000
    assert not {i.tobytes() for i in training.images} & {i.tobytes() for i in validation.images}
    assert np.array_equal(corpus.select(np.arange(4000) % 2 == 0).held_out, held[::2])  # a matter of the image alone


@pytest.mark.parametrize("count", [2, 5, 24])
def test_small_corpora_hold_something_out_and_keep_something(count: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    held = make_corpus(images).held_out
    assert 0 < held.sum() < count


def test_select_keeps_rows_together() -> None:
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    corpus = Corpus(images, list("abcde"), list("ABCDE"), list("vwxyz"), np.arange(5.0))
    chosen = corpus.select(np.array([False, True, False, False, True]))
    assert np.array_equal(chosen.images, images[[1, 4]])
    assert (chosen.text, chosen.category, chosen.style) == (["b", "e"], ["B", "E"], ["w", "z"])
    assert chosen.weight.tolist() == [1.0, 4.0]


def test_versatile_styles_know_half_of_the_categories() -> None:
    images = np.zeros((8, 2, 2, 3), dtype=np.uint8)
    category = ["cat", "dog", "", "cat", "cat", "cow", "hen", ""]
    style = ["oil", "oil", "wax", "wax", "pen", "pen", "pen", "ink"]
    corpus = Corpus(images, ["x"] * 8, category, style, np.ones(8))
    assert corpus.versatile_styles == ["oil", "pen"]  # two and three of four; wax knows one, ink none
    assert Corpus(images, ["x"] * 8, [""] * 8, style, np.ones(8)).versatile_styles == ["ink", "oil", "pen", "wax"]


def test_load_corpus_reads_folder_and_npz_alike(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = load_corpus(corpus_folder, SIZE)
    assert np.array_equal(corpus.images[7], square_image(7))
    assert (corpus.text[7], corpus.category[7], corpus.style[7], corpus.weight[7]) == (
        "grey square",
        "shape",
        "ink",
        2.0,
    )
    assert corpus.styles == ["flat", "ink"]
    np.savez(tmp_path / "c.npz", images=corpus.images, text=np.array(corpus.text))
    packed = load_corpus(tmp_path / "c.npz", SIZE)
    assert np.array_equal(packed.images, corpus.images)
    assert packed.text == corpus.text
    assert (set(packed.category), set(packed.style), set(packed.weight)) == ({""}, {""}, {1.0})
    assert load_corpus(tmp_path / "c.npz", 16).images.shape == (24, 16, 16, 3)


def test_transparent_images_are_laid_on_white(corpus_folder: Path) -> None:
    rgba = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
    rgba[:16, :, 3] = 255
    Image.fromarray(rgba).save(corpus_folder / "00.png")
    image = load_corpus(corpus_folder, SIZE).images[0]
    assert (image[:16] == 0).all()
    assert (image[16:] == 255).all()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing", "bad chunk"])
def test_a_corrupt_image_is_named(corpus_folder: Path, damage: str) -> None:
    path = corpus_folder / "11.png"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "bad chunk":
        start = whole.index(b"IDAT")
        path.write_bytes(whole[:start] + b"\x00\xff\x01\x02" + whole[start + 4 :])
    else:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"11\.png cannot be read as an image"):
        load_corpus(corpus_folder, SIZE)


@pytest.mark.parametrize("weight", ["", "many", "-1", "nan"])
def test_bad_weights_are_refused(corpus_folder: Path, weight: str) -> None:
    path = corpus_folder / "metadata.csv"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + f",{weight}"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="weight"):
        load_corpus(corpus_folder, SIZE)


def test_what_is_no_corpus_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no corpus"):
        load_corpus(tmp_path, SIZE)
    (corpus_folder / "metadata.csv").write_text("name,text\n0.png,x\n")
    with pytest.raises(DataError, match="file_name and text"):
        load_corpus(corpus_folder, SIZE)
    (corpus_folder / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(DataError, match="file_name and text"):
        load_corpus(corpus_folder, SIZE)
    np.savez(tmp_path / "c.npz", text=np.array(["x"]))
    with pytest.raises(DataError, match="'images' and 'text'"):
        load_corpus(tmp_path / "c.npz", SIZE)


def test_sample_prompts_are_the_most_frequent_categories() -> None:
    corpus = Corpus(
        np.zeros((5, 2, 2, 3), np.uint8), list("abcde"), ["dog", "cat", "dog", "", "ant"], ["ink", "", "oil", "", ""],
        np.ones(5),
    )  # fmt: skip
    assert sample_prompts(corpus) == ["dog, ink", "ant, oil", "cat, ink"]
    bare = Corpus(np.zeros((2, 2, 2, 3), np.uint8), ["a", "b"], ["", ""], ["", ""], np.ones(2))
    assert sample_prompts(bare, count=1) == ["a"]


# The tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    captions = ["red square, flat", "green square, ink", "a noto color drawing"] * 5
    return fit_tokenizer(captions, tmp_path_factory.mktemp("tokenizer"), vocabulary=280, length=8)


@pytest.mark.parametrize("text", ["red square, flat", "GREEN Square", "zebra", "a-z_0 9!", "qx"])
def test_text_of_known_letters_comes_back(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]  # no letter is unknown
    back = tokenizer.decode(ids, skip_special_tokens=True)
    assert back.replace(" ", "") == text.lower().replace(" ", "")


def test_words_that_are_frequent_are_one_token(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer("red square flat").input_ids) == 5
    assert len(tokenizer("zebra").input_ids) > 4


def test_reloaded_tokenizer_is_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    reloaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(reloaded) == len(tokenizer)
    assert reloaded.model_max_length == 8
    for text in ("red square, flat", "zebra!", "日本 🦓", ""):
        assert reloaded(text).input_ids == tokenizer(text).input_ids


def test_fitting_again_gives_the_same_tokenizer(tmp_path: Path) -> None:
    captions = ["red square, flat", "green circle, ink", "naïve – 日本 café"]
    for run in ("a", "b"):
        fit_tokenizer(captions, tmp_path / run, vocabulary=260, length=8)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_more_letters_than_vocabulary(tmp_path: Path) -> None:
    letters = "".join(chr(code) for code in range(0x21, 0x3000, 3) if chr(code).isprintable())
    fitted = fit_tokenizer([letters], tmp_path, vocabulary=256, length=8)
    assert fitted.eos_token_id not in fitted("aé").input_ids[1:-1]
    assert CLIPTokenizer.from_pretrained(tmp_path)("aé").input_ids == fitted("aé").input_ids


def test_captions_beyond_ascii_are_understood(tmp_path: Path) -> None:
    fitted = fit_tokenizer(["café", "日本"] * 9, tmp_path, vocabulary=256, length=20)
    for text in ("café", "日本"):
        ids = fitted(text).input_ids
        assert len(ids) == 3  # start, the word, end
        assert fitted.decode(ids, skip_special_tokens=True) == text


@given(text=st.text(max_size=40))
def test_any_text_has_tokens_that_the_encoder_knows(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, 8)
    assert ids.min() >= 0
    assert ids.max() < len(tokenizer)


def test_encoder_takes_every_token(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    encoder = build_text_encoder(tokenizer, TINY).eval()
    ids = torch.arange(len(tokenizer))
    padded = torch.cat([ids, ids[: -len(ids) % 8]]).view(-1, 8)
    with torch.no_grad():
        embeds = encoder(padded)[0]
    assert embeds.shape == (len(padded), 8, 32)
    assert embeds.isfinite().all()
