"""Stable Diffusion v1-4's true architecture with random weights, written to disk, loaded back and used (`-m slow`).

860 M parameters in the U-Net, 84 M in the autoencoder, 77 tokens of CLIP text, 320 pixels: a candidate and a slope by
the code that the embedded LDM runs through. It takes about 6 GB of memory, 2 GB of disk and a minute.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
import torch

from domainfusion.config import DistillConfig
from domainfusion.devices import choose_device
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.text_encoder import fit_tokenizer
from domainfusion.distillation.slopes import SlopeEstimator, draw
from domainfusion.experiments.costs import stable_diffusion_parts

SIZE = 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline on disk, in half precision as it is published."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    target = tmp_path_factory.mktemp("stable-diffusion")
    torch.manual_seed(0)
    vae, unet, text_encoder = (part.to_empty(device="cpu").half() for part in stable_diffusion_parts())
    for part in (vae, unet, text_encoder):
        for name, value in [*part.named_parameters(), *part.named_buffers()]:
            if not value.is_floating_point():
                value.data = torch.arange(value.numel()).view_as(value)  # positions of tokens
            elif "norm" in name and name.endswith("weight"):
                value.data.fill_(1)
            elif value.ndim > 1:
                value.data.normal_(0, value[0].numel() ** -0.5)
            else:
                value.data.zero_()
    tokenizer = fit_tokenizer(["a dog", "a house", "a guitar"], target / "words", vocabulary=512, length=77)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(target)  # fmt: skip
    return target


@pytest.mark.slow
def test_a_candidate_and_a_slope_at_the_size_of_stable_diffusion(folder: Path) -> None:
    started = time.monotonic()
    ldm = LatentDiffusion.load(str(folder), device=choose_device("auto"), precision="auto")
    loaded = time.monotonic() - started
    assert 855e6 < sum(value.numel() for value in ldm.unet.parameters()) < 865e6
    assert 80e6 < sum(value.numel() for value in ldm.vae.parameters()) < 86e6
    assert ldm.tokenizer.model_max_length == 77
    assert ldm.latent_factor == 8
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    started = time.monotonic()
    made = image_to_image(
        ldm, image, ["dog"], torch.full((1, 1), 0.6), generator=torch.Generator().manual_seed(2), steps=4
    )  # fmt: skip
    candidate = time.monotonic() - started
    assert made.shape == (1, 1, 3, SIZE, SIZE)
    assert torch.isfinite(made).all()
    assert made.std() > 0
    config = DistillConfig(estimator="score")
    started = time.monotonic()
    draws = draw(ldm, 1, SIZE, config, torch.Generator().manual_seed(3))
    slope = SlopeEstimator(ldm, config).slopes(image, ["dog"], torch.tensor([0.5]), draws)
    slopes = time.monotonic() - started
    assert slope.shape == (1,)
    assert torch.isfinite(slope).all()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\nloaded in {loaded:.0f} s, a candidate {candidate:.0f} s, a slope {slopes:.0f} s, {memory:.1f} GB at most")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "regnety_160"])
def test_the_papers_backbones_take_a_training_step(name: str) -> None:
    """ResNet-50 and RegNetY-16GF at 224 pixels: forward, backward and an optimizer step, weights random."""
    from domainfusion.algorithms.classifier import build_classifier
    from domainfusion.config import TrainConfig

    torch.manual_seed(0)
    device = choose_device("auto")
    classifier = build_classifier(TrainConfig(backbone=name, data={"size": 224}), 7).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-4, weight_decay=5e-4)
    images, labels = torch.rand(6, 3, 224, 224, device=device), torch.arange(6, device=device) % 7
    before = classifier.head.weight.detach().clone()
    started = time.monotonic()
    with torch.autocast(device.type, torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(classifier(images), labels)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert not torch.equal(before, classifier.head.weight)
    print(
        f"\n{name}: {sum(p.numel() for p in classifier.parameters()) / 1e6:.0f} M, {time.monotonic() - started:.1f} s"
    )
