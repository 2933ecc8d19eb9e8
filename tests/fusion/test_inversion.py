"""Translation by a source domain's LDM, against a loop over diffusers' DDIMScheduler, one image at a time."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from domainfusion.config import DataConfig, DSIConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_folder
from domainfusion.diffusion.finetuning import FineTuned
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import FileError
from domainfusion.files import write_json
from domainfusion.fusion import inversion
from domainfusion.fusion.inversion import Inverter, noise_of, translate

STEPS = 27  # 999 = 27 · 37: the engine's even steps are DDIM's own, 37 timesteps apart
STARTS = (1 / 27, 9 / 27, 14 / 27)


@pytest.fixture
def source(tiny_pipeline: Path, cache: Path) -> FineTuned:
    """The tiny LDM, as if it had been fine-tuned."""
    made = FineTuned("photo", "0123456789abcdef")
    shutil.copytree(tiny_pipeline, made.pipeline)
    write_json(made.folder / "done.json", {"images": 1, "seconds": 1.0})
    return made


def config_for(**values: object) -> TrainConfig:
    own = {"steps": 6, "starts": (0.3, 0.6), **values}
    return TrainConfig(precision="float32", device="cpu", data=DataConfig(size=16), dsi=DSIConfig(**own))


@torch.no_grad()
def literal(folder: Path, image: np.ndarray, start: float, seed: int) -> np.ndarray:
    """Encode, add noise, and diffusers' DDIM step by step with the empty prompt and η = 0."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    z = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    first = round(start * 999)
    z = scheduler.add_noise(z, noise_of(image, seed, start, (4, 8, 8))[None], torch.tensor([first]))
    empty = pipeline.encode_prompt("", "cpu", 1, False)[0]
    for timestep in range(first, 0, -37):
        step = scheduler.step(pipeline.unet(z, timestep, empty).sample, timestep, z, eta=0.0)
        z = step.prev_sample
    made = pipeline.vae.decode(step.pred_original_sample / pipeline.vae.config.scaling_factor).sample
    return ((made.clamp(-1, 1)[0].permute(1, 2, 0) + 1) * 127.5).numpy()


@pytest.mark.parametrize("start", STARTS)
def test_a_translation_is_diffusers_ddim_from_the_noised_image(
    tiny_pipeline: Path, ldm: LatentDiffusion, dataset: MultiDomainDataset, start: float
) -> None:
    images = dataset.images[[3, 50]]
    made = translate(ldm, images, start, DSIConfig(seed=2, steps=STEPS))
    for i in range(2):
        assert np.abs(made[i] - literal(tiny_pipeline, images[i], start, 2)).max() <= 0.52
    assert not np.array_equal(made, translate(ldm, images, start, DSIConfig(seed=3, steps=STEPS)))


def test_it_takes_as_many_passes_as_the_start_step_says(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    predict = ldm.predict_noise
    monkeypatch.setattr(ldm, "predict_noise", lambda z, t, c: passes.append(len(z)) or predict(z, t, c))
    for start, wanted in ((0.2, 10), (0.5, 25), (0.001, 1)):
        passes.clear()
        translate(ldm, dataset.images[[0, 1, 2]], start, DSIConfig(steps=50))
        assert passes == [3] * wanted


def test_noise_is_a_function_of_seed_start_step_and_pixels(dataset: MultiDomainDataset) -> None:
    first, second = dataset.images[0], dataset.images[1]
    shape = (4, 8, 8)
    made = [
        noise_of(image, seed, start, shape)
        for image, seed, start in [(first, 0, 0.2), (second, 0, 0.2), (first, 1, 0.2), (first, 0, 0.4)]
    ]
    assert torch.equal(noise_of(first.copy(), 0, 0.2, shape), made[0])
    for i, noise in enumerate(made):
        assert all((noise - other).abs().max() > 1 for other in made[:i])  # none is another's


def test_neither_batch_nor_place_matters(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    images = dataset.images[[0, 20, 40, 60, 80]]
    wanted = translate(ldm, images, 0.4, DSIConfig(steps=5)).astype(int)
    other = translate(ldm, images[::-1], 0.4, DSIConfig(steps=5, batch_size=2)).astype(int)
    assert np.abs(other[::-1] - wanted).max() <= 1  # sums in another order may turn a rounding


def test_other_sizes_are_resized_to_the_ldm_and_back(ldm: LatentDiffusion, image_folder: Path) -> None:
    large = load_folder(image_folder, DataConfig(size=40))
    assert translate(ldm, large.images[[0, 1]], 0.4, DSIConfig(steps=3)).shape == (2, 40, 40, 3)
    assert translate(ldm, large.images[[0, 1]], 0.4, DSIConfig(steps=3), image_size=24).shape == (2, 40, 40, 3)


def test_translations_of_rows_are_kept_for_all_runs(
    source: FineTuned, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, device = config_for(), torch.device("cpu")
    rows = np.array([70, 5, 40, 41, 107])  # of three domains, in no order
    first, seconds = Inverter([source], config, device, progress=False).rows(source, dataset, rows, 0.3)
    ldm = LatentDiffusion.load(str(source.pipeline), precision="float32")
    wanted = translate(ldm, dataset.images[rows], 0.3, config.dsi)
    assert np.abs(first.astype(int) - wanted.astype(int)).max() <= 1
    assert seconds > 0
    made: list[int] = []
    kept = inversion.translate

    def counting(ldm: LatentDiffusion, images: np.ndarray, *others: object) -> np.ndarray:
        made.append(len(images))
        return kept(ldm, images, *others)

    monkeypatch.setattr(inversion, "translate", counting)
    fresh = Inverter([source], dataclasses.replace(config, seed=7, lr=0.5), device, progress=False)
    again, same = fresh.rows(source, dataset, rows[::-1], 0.3)
    assert np.array_equal(again[::-1], first)
    assert same == pytest.approx(seconds)
    assert made == []
    fresh.rows(source, dataset, np.array([5, 6, 70]), 0.3)
    assert sum(made) == 1
    fresh.rows(source, dataset, rows, 0.6)
    assert sum(made) == 1 + len(rows)
    for changes in ({"steps": 5}, {"seed": 1}):
        made.clear()
        Inverter([source], config_for(**changes), device, progress=False).rows(source, dataset, rows, 0.3)
        assert sum(made) == len(rows), changes
    other = FineTuned("photo", "fedcba9876543210")  # of another trial, say: fine-tuned on other images
    shutil.copytree(source.folder, other.folder)
    made.clear()
    fresh.rows(other, dataset, rows, 0.3)
    assert sum(made) == len(rows)
    made.clear()
    fresh.rows(FineTuned("photo", source.key), dataclasses.replace(dataset, fingerprint="other"), rows, 0.3)
    assert sum(made) == len(rows)


def test_an_ldm_that_is_not_there_is_named(dataset: MultiDomainDataset, cache: Path) -> None:
    gone = FineTuned("photo", "feed")
    with pytest.raises(FileError, match=r"fine-tuned on photo is not in .*feed"):
        Inverter([gone], config_for(), torch.device("cpu"), progress=False).images(gone, dataset.images[[0]], 0.3)
