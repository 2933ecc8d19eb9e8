"""The embedded LDM: small, loadable by diffusers alone, and able to draw what it is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.data.domains import PICTOGRAM_WORDS
from domainfusion.data.pictograms import load_pictograms
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_folder import embedded_folder


@pytest.fixture(scope="module")
def ldm() -> LatentDiffusion:
    return LatentDiffusion.load("embedded", precision="float32")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """24 images of the benchmark, (24, 3, 64, 64) in [-1, 1]."""
    chosen = load_pictograms().images[::150][:24]
    return torch.from_numpy(chosen.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def test_it_is_small_and_holds_no_pickle():
    files = [path for path in embedded_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".png", ".toml", ".txt"}


def test_diffusers_loads_it_with_no_code_of_ours():
    from diffusers import StableDiffusionImg2ImgPipeline
    from PIL import Image

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(str(embedded_folder()))
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.fromarray(load_pictograms().images[0])
    made = pipeline("animal bird, noto color", image=picture, strength=0.5, num_inference_steps=4).images[0]
    assert made.size == (64, 64)
    assert np.asarray(made).std() > 5


def test_it_reconstructs_the_benchmark_in_colour(ldm, images):
    with torch.no_grad():
        back = ldm.decode(ldm.encode(images)).clamp(-1, 1)
    psnr = -10 * ((back - images) / 2).square().mean((1, 2, 3)).log10()
    assert psnr.mean() > 20

    def saturation(x):
        return (x.amax(1) - x.amin(1)).mean((1, 2))

    coloured = saturation(images) > 0.2
    assert coloured.any()
    assert (saturation(back)[coloured] / saturation(images)[coloured]).median() > 0.7


def test_candidates_follow_the_image_and_stray_with_strength(ldm, images):
    prompts = ["animal mammal, noto color"] * len(images)

    def moved(strength: float) -> float:
        made = image_to_image(
            ldm, images, prompts, torch.full((len(images), 1), strength), steps=6, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
        )[:, 0]  # fmt: skip
        return float((made - images).square().mean())

    shuffled = float((images.roll(1, 0) - images).square().mean())
    assert moved(0.3) < moved(0.8)
    assert moved(0.5) < 0.7 * shuffled  # nearer to its own image than to another


def test_it_tells_its_styles_and_knows_the_words_of_the_benchmark(ldm):
    assert "noto color" in ldm.styles
    for words in PICTOGRAM_WORDS.values():
        for word in words.split():
            assert len(ldm.tokenizer.tokenize(word)) == 1, word


def test_its_card_has_the_measured_figures():
    card = (embedded_folder() / "README.md").read_text(encoding="utf-8")
    for needed in ("PSNR", "candidates, strength 0.4", "contrast", "Limits", "CC BY 4.0", "training.png"):
        assert needed in card
    assert set(json.loads((Path(embedded_folder()) / "styles.json").read_text())) >= {"noto mono", "emojione bw"}


def test_the_weights_tell_no_path_of_the_machine_they_were_made_on() -> None:
    for path in embedded_folder().rglob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text(encoding="utf-8")), path
