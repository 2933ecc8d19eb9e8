"""One image over the generations: each is made from the last, by the recipes and the choice of training."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from domainfusion.config import GenerateConfig
from domainfusion.data.transforms import from_uint8, to_uint8
from domainfusion.diffusion.image_to_image import image_to_image
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import Interrupted
from domainfusion.fusion.evolving import evolve
from domainfusion.fusion.style import fuse, split_style
from domainfusion.interruption import stoppable

WORDS = {"cat": "animal cat", "dog": "animal dog", "house": "building house"}
CONFIG = GenerateConfig(candidates=3, steps=2, guidance=2.0, strength=(0.3, 0.5), style_divergence="gaussian", seed=4)


@pytest.fixture
def image() -> np.ndarray:
    picture = np.full((16, 16, 3), 230, dtype=np.uint8)
    picture[4:12, 3:9] = (200, 40, 30)
    return picture


def literal_candidates(
    ldm: LatentDiffusion, image: np.ndarray, record: dict[str, object], prompts: list[str]
) -> torch.Tensor:
    """(N, 3, 16, 16): candidates of a generation, from what its lineage tells and nothing else."""
    noise = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(int(str(record["seed"]))))
    strengths = torch.full((1, len(prompts)), float(str(record["content_strength"])))
    return image_to_image(
        ldm, from_uint8(image)[None], prompts, strengths, noise=noise, candidates=len(prompts), steps=CONFIG.steps,
        guidance_scale=CONFIG.guidance,
    )[0]  # fmt: skip


def far(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


def test_each_generation_is_made_from_the_last(ldm: LatentDiffusion, image: np.ndarray, cache: Path) -> None:
    made = evolve(ldm, image, "dog", WORDS, CONFIG, generations=3, styles=("flat", "ink"))
    assert [generation.number for generation in made] == [0, 1, 2]
    before = image
    for generation in made:
        record = generation.lineage[0]
        assert record["class"] == "dog"
        assert record["content_candidate"] == record["style_candidate"] == 0  # nobody chose
        assert record["content_prompt"] in ("animal dog, flat", "animal dog, ink")
        assert 0.3 <= record["content_strength"] <= 0.5
        prompts = [str(record["content_prompt"])]
        (expected,) = to_uint8(literal_candidates(ldm, before, record, prompts))
        assert far(generation.images[0], expected) < 0.1
        if generation.number > 0:  # from the image itself it would be another
            (fresh,) = to_uint8(literal_candidates(ldm, image, record, prompts))
            assert far(generation.images[0], fresh) > 1
        before = generation.images[0]
    assert len({generation.lineage[0]["seed"] for generation in made}) == 3
    assert not cache.exists()


def test_the_classifier_chooses_the_content(ldm: LatentDiffusion, image: np.ndarray) -> None:
    asked: list[torch.Tensor] = []

    def judge(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sure of the last image it is shown."""
        assert labels.tolist() == [1] * len(images)
        asked.append(images)
        return torch.ones(len(images), 2), (torch.arange(len(images)) == len(images) - 1).float()

    plain = dataclasses.replace(CONFIG, style_words=False)
    first, second = evolve(ldm, image, "dog", WORDS, plain, generations=2, judge=judge, styles=("ink",))
    assert [len(images) for images in asked] == [1, 3, 1, 3]  # the image, then its candidates
    assert far(to_uint8(asked[2] * 2 - 1)[0], first.images[0]) == 0
    for generation, before in ((first, image), (second, first.images[0])):
        record = generation.lineage[0]
        assert record["content_candidate"] == 2
        candidates = to_uint8(literal_candidates(ldm, before, record, ["animal dog"] * 3))
        content, mean, std = split_style(from_uint8(candidates))  # they are kept as pictures before they are fused
        style = record["style_candidate"]
        assert far(generation.images[0], to_uint8(fuse(content[2], mean[style], std[style]))) < 0.1


def test_the_seed_is_all_that_is_random(ldm: LatentDiffusion, image: np.ndarray) -> None:
    def last(seed: int) -> np.ndarray:
        config = dataclasses.replace(CONFIG, seed=seed)
        return evolve(ldm, image, "cat", WORDS, config, generations=2, styles=("flat", "ink"))[-1].images[0]

    torch.manual_seed(0)
    first = last(0)
    torch.manual_seed(1)
    assert np.array_equal(first, last(0))
    assert far(first, last(1)) > 1


def test_a_signal_ends_it_between_two_steps(ldm: LatentDiffusion, image: np.ndarray) -> None:
    def stopped() -> None:
        with stoppable():
            os.kill(os.getpid(), signal.SIGINT)
            evolve(ldm, image, "cat", WORDS, CONFIG, generations=1)
            pytest.fail("it went on")

    with pytest.raises(Interrupted):
        stopped()
