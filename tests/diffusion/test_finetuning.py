"""LDMs fine-tuned on a domain: what they are trained on, what stays, going on after a kill, sharing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler

from domainfusion.config import DSIConfig
from domainfusion.diffusion import denoiser_training, finetuning
from domainfusion.diffusion import ldm as ldm_module
from domainfusion.diffusion.corpus import Corpus
from domainfusion.diffusion.finetuning import FineTuned, load_source, plan_source, train_source, tuning_options
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.optimization import Averaged
from domainfusion.errors import Interrupted, UsageError
from domainfusion.json_lines import read_json_lines
from domainfusion.locks import exclusive

CONFIG = DSIConfig(tune_steps=4, tune_batch_size=4, tune_lr=1e-4)
SIZE = 16


@pytest.fixture
def images() -> np.ndarray:
    """Ten grey-scale images, which `pretrain` would recolour."""
    return np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 1), dtype=np.uint8).repeat(3, axis=3)


def train(images: np.ndarray, ldm: Path, config: DSIConfig = CONFIG, domain: str = "photo") -> FineTuned:
    source = plan_source(domain, images, "fingerprint", config, SIZE)
    train_source(source, images, str(ldm), config, SIZE)
    return source


def test_the_unet_learns_without_prompts_and_the_rest_stays(
    images: np.ndarray, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, drawn = [], []
    tokens, augment = denoiser_training._tokens, denoiser_training.augment
    monkeypatch.setattr(denoiser_training, "_tokens", lambda t, c: prompts.extend(c) or tokens(t, c))

    def seen(images: np.ndarray, rng: np.random.Generator, **options: float) -> tuple[torch.Tensor, list[str]]:
        batch, colours = augment(images, rng, **options)
        drawn.append((images, batch, colours))
        return batch, colours

    monkeypatch.setattr(denoiser_training, "augment", seen)
    source = train(images, tiny_pipeline)
    assert prompts
    assert set(prompts) == {""}
    held_out = Corpus(images, [""] * 10, [""] * 10, [""] * 10, np.ones(10)).held_out
    allowed = {image.tobytes() for image in images[~held_out]}
    for given, batch, colours in drawn:
        assert {image.tobytes() for image in given} <= allowed
        assert set(colours) == {""}
        assert torch.allclose(batch[:, 0], batch[:, 1])  # grey stays grey
    before, after = LatentDiffusion.load(str(tiny_pipeline), precision="float32"), load_source(
        source, precision="float32"
    )  # fmt: skip
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert after.scaling_factor == before.scaling_factor
    for part in ("vae", "text_encoder"):
        pairs = zip(getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True)
        for old, new in pairs:
            torch.testing.assert_close(new, old, atol=1e-6, rtol=1e-3)  # the vae is written in half precision
    assert all(map(torch.equal, before.text_encoder.parameters(), after.text_encoder.parameters()))
    moved = [
        (new - old.half().float()).abs().max().item()
        for old, new in zip(before.unet.parameters(), after.unet.parameters(), strict=True)
    ]
    assert 0 < max(moved) <= 4 * CONFIG.tune_lr * 1.1 + 2e-3
    losses = [r for r in read_json_lines(source.folder / "metrics.jsonl") if "loss" in r]
    assert [r["loss"] for r in losses] == pytest.approx([r["mse"] for r in losses])  # no min-SNR weights
    assert source.facts()["images"] == 10
    assert source.facts()["seconds"] > 0
    assert sorted(p.name for p in source.folder.iterdir() if p.name[0] != ".") == [
        "corpus.json", "done.json", "metrics.jsonl", "pipeline", "pretrain.toml", "samples-000004.png",
    ]  # fmt: skip
    assert "fine-tuning the LDM on 10 images of photo" in capsys.readouterr().err


@pytest.fixture
def odd_pipeline(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """An LDM whose noise schedule and latents are not Stable Diffusion v1's."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "odd"))
    changes = {
        "scheduler/scheduler_config.json": {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195},
        "vae/config.json": {"shift_factor": 0.5},
    }
    for name, values in changes.items():
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_the_noise_schedule_and_the_latents_are_the_ldms_own(
    images: np.ndarray, odd_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = LatentDiffusion.load(str(odd_pipeline), precision="float32")
    clean: list[torch.Tensor] = []
    schedules: list[torch.Tensor] = []
    add_noise = DDIMScheduler.add_noise

    def seen(scheduler: DDIMScheduler, latents: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        clean.append(latents)
        schedules.append(scheduler.alphas_cumprod)
        return add_noise(scheduler, latents, *rest)

    monkeypatch.setattr(DDIMScheduler, "add_noise", seen)
    after = load_source(train(images, odd_pipeline), precision="float32")
    assert torch.equal(after.alphas_cumprod, before.alphas_cumprod)
    assert after.shift == before.shift == 0.5
    assert schedules
    assert all(torch.equal(schedule, before.alphas_cumprod) for schedule in schedules)
    assert not torch.allclose(before.alphas_cumprod, denoiser_training.build_scheduler().alphas_cumprod, rtol=0.1)
    held_out = Corpus(images, [""] * 10, [""] * 10, [""] * 10, np.ones(10)).held_out
    pixels = torch.from_numpy(images[held_out].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    torch.testing.assert_close(clean[-1], before.encode(pixels), atol=1e-3, rtol=1e-3)  # of the last loss on held-out


def test_large_images_are_encoded_few_at_once(
    images: np.ndarray, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ldm_module, "PIXELS_AT_ONCE", 2 * SIZE * SIZE + 1)
    monkeypatch.setattr(denoiser_training, "LATENT_PIXELS_AT_ONCE", 1)
    encoded, validated = [], []
    encode, forward = AutoencoderKL.encode, denoiser_training.Denoiser.forward
    monkeypatch.setattr(AutoencoderKL, "encode", lambda vae, x: encoded.append(len(x)) or encode(vae, x))

    def seen(denoiser: torch.nn.Module, noisy: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            validated.append(len(noisy))
        return forward(denoiser, noisy, *rest)

    monkeypatch.setattr(denoiser_training.Denoiser, "forward", seen)
    train(np.concatenate([images] * 4), tiny_pipeline)
    assert max(encoded) == 2
    assert set(validated) == {1}


def test_the_learning_rate_is_constant_after_its_warm_up() -> None:
    options = tuning_options(CONFIG, "embedded", SIZE, 10)
    factors = [denoiser_training.learning_rate_factor(step, 1000, options.decay) for step in (99, 500, 999)]
    assert factors == [1, 1, 1]
    assert (options.unet_lr, options.unet_steps, options.unet_batch_size) == (1e-4, 4, 4)


class Killed(BaseException):
    """What a test raises in place of SIGKILL; nothing catches it."""


@pytest.mark.parametrize("politely", [False, True])
def test_resumed_equals_uninterrupted(
    images: np.ndarray, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, politely: bool
) -> None:
    options = finetuning.tuning_options
    monkeypatch.setattr(finetuning, "tuning_options", lambda *a: dataclasses.replace(options(*a), save_every=2))
    whole = train(images, tiny_pipeline)
    weights = dict(load_source(whole, precision="float32").unet.named_parameters())
    monkeypatch.setenv("DOMAINFUSION_CACHE", str(tmp_path / "other"))

    class Interrupting(Averaged):
        def update(self, trained: torch.nn.Module) -> None:
            super().update(trained)
            if self.updates == 3:
                if not politely:
                    raise Killed
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(denoiser_training, "Averaged", Interrupting)
        with pytest.raises(Interrupted if politely else Killed):
            train(images, tiny_pipeline)
    parts = plan_source("photo", images, "fingerprint", CONFIG, SIZE)
    assert (parts.key, parts.finished) == (whole.key, False)
    train(images, tiny_pipeline)
    for name, value in load_source(parts, precision="float32").unet.named_parameters():
        assert torch.equal(value, weights[name]), name


def test_one_that_is_there_is_not_trained_again(
    images: np.ndarray, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(images, tiny_pipeline)
    monkeypatch.setattr(finetuning, "train_pipeline", None)
    assert train(images, tiny_pipeline, domain="another name").finished


def test_the_key_is_of_images_ldm_and_options(images: np.ndarray) -> None:
    def key(images: np.ndarray = images, fingerprint: str = "a", size: int = SIZE, **changes: object) -> str:
        return plan_source("photo", images, fingerprint, dataclasses.replace(CONFIG, **changes), size).key

    others = [
        key(images[:9]), key(images[::-1]), key(fingerprint="b"), key(size=32), key(seed=1), key(tune_steps=5),
        key(tune_batch_size=5), key(tune_lr=2e-4),
    ]  # fmt: skip
    assert len({key(), *others}) == 1 + len(others)
    # How it is used at test time does not matter.
    assert key(threshold=0.5, starts=(0.1,), steps=9, unsure="last", batch_size=1, held_out=False) == key()


def test_another_process_that_trains_it_is_waited_for(
    images: np.ndarray, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetuning, "PAUSE", 0.02)
    source = plan_source("photo", images, "fingerprint", CONFIG, SIZE)
    held = threading.Event()

    def hold() -> None:
        with exclusive(source.folder):
            held.set()
            time.sleep(0.2)
            (source.folder / "done.json").write_text("{}")

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    monkeypatch.setattr(finetuning, "train_pipeline", None)
    train_source(source, images, str(tiny_pipeline), CONFIG, SIZE)
    other.join()
    assert capsys.readouterr().err.count("waiting for it") == 1


def test_too_few_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"domain photo has 1 training image"):
        plan_source("photo", images[:1], "fingerprint", CONFIG, SIZE)


def test_the_loss_is_the_plain_squared_error_without_prompts() -> None:
    options = tuning_options(CONFIG, "embedded", SIZE, 10)
    schedule = denoiser_training.build_scheduler().alphas_cumprod
    assert torch.equal(denoiser_training.min_snr_weight(schedule, options.min_snr), torch.ones(1000))
    assert (options.caption_dropout, options.recolour, options.hue, options.decay) == (1.0, 0.0, 0.0, 0.0)
    assert options.freeze_text
