"""Pretraining a very small LDM end to end: what it writes, goes on from, and refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from domainfusion.diffusion import autoencoder_training, denoiser_training
from domainfusion.diffusion.corpus import load_corpus
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.optimization import Averaged
from domainfusion.diffusion.pretraining import pretrain
from domainfusion.errors import Interrupted, UsageError
from domainfusion.tensors import load_state
from small_corpus import SIZE, TINY, square_image


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


def test_a_signal_while_a_pool_is_encoded_loses_no_step(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps to a pool; none of them is saved for another reason when the second is encoded."""
    config = dataclasses.replace(TINY, save_every=100)
    whole = pretrain(corpus_folder, config, tmp_path / "whole")
    encode_pool, augment = denoiser_training.encode_pool, denoiser_training.augment

    def encode_second_with_a_signal(vae, corpus, config, number, folder):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(denoiser_training, "augment", None)  # it stops before the next images
        return encode_pool(vae, corpus, config, number, folder)

    monkeypatch.setattr(denoiser_training, "encode_pool", encode_second_with_a_signal)
    with pytest.raises(Interrupted):
        pretrain(corpus_folder, config, tmp_path / "run")
    assert int(load_state(tmp_path / "run" / "denoiser-state.safetensors")["step"]) == 4
    monkeypatch.setattr(denoiser_training, "encode_pool", encode_pool)
    monkeypatch.setattr(denoiser_training, "augment", augment)
    resumed = pretrain(corpus_folder, config, tmp_path / "run")
    for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


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


def test_more_steps_of_a_finished_autoencoder_are_refused(corpus_folder: Path, tmp_path: Path) -> None:
    """They would not be made, and `pretrain.toml` would say that they were."""
    short = dataclasses.replace(TINY, vae_steps=1, unet_steps=1)
    pretrain(corpus_folder, short, tmp_path / "ldm")
    before = (tmp_path / "ldm" / "pretrain.toml").read_text()
    with pytest.raises(UsageError, match="the autoencoder is finished, with vae_steps = 1, not 5"):
        pretrain(corpus_folder, dataclasses.replace(short, vae_steps=5), tmp_path / "ldm")
    assert (tmp_path / "ldm" / "pretrain.toml").read_text() == before
    pretrain(corpus_folder, dataclasses.replace(short, unet_steps=2), tmp_path / "ldm")  # the denoiser goes further
