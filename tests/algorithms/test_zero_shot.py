"""Zero-shot classifiers on a real tiny LDM in double precision, against the papers' algorithms one pass at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from counting import run_out_above
from domainfusion.algorithms.diffusion_classifier import DiffusionClassifier
from domainfusion.algorithms.diffusion_net import DiffusionNet
from domainfusion.algorithms.zero_shot import BATCHES_READY, Scores, ZeroShot
from domainfusion.config import ZeroShotConfig
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.errors import LDMError, UsageError
from domainfusion.seeding import seed_hash

PROMPTS = ["cat", "dog", "house", "animal cat", "building house, ink", "a dog, flat"]
ROWS = [4, 17, 9]
# samples (2, 4, 8): which of the eight timesteps each stage adds, written out.
STAGES = [[2, 6], [1, 5], [0, 3, 4, 7]]
STAGED = ZeroShotConfig(samples=(2, 4, 8), keep=(4, 2, 1), seed=3, batch_size=16)
# Errors of an untrained U-Net hardly differ between prompts: a loose cutoff makes the test prune.
PAIRED = ZeroShotConfig(min_scores=4, max_scores=24, cutoff=0.2, seed=3, batch_size=16)


def load_exact(folder: Path, prediction_type: str = "epsilon") -> LatentDiffusion:
    loaded = LatentDiffusion.load(str(folder), precision="float32")
    loaded.scheduler.register_to_config(prediction_type=prediction_type)
    return LatentDiffusion(
        loaded.vae.double(), loaded.unet, loaded.text_encoder.double(), loaded.tokenizer, loaded.scheduler,
        dtype=torch.float64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ldm(tiny_pipeline: Path) -> LatentDiffusion:
    return load_exact(tiny_pipeline)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(len(ROWS), 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


class Literal:
    """One image under the papers' formulae: one draw and one class at a time, straight from the LDM's parts."""

    def __init__(self, ldm: LatentDiffusion, image: torch.Tensor, row: int, seed: int) -> None:
        self.ldm, self.row, self.seed = ldm, row, seed
        with torch.no_grad():
            self.latents = ldm.vae.encode(image[None].double()).latent_dist.mean * 0.9
            self.embeds = []
            for prompt in PROMPTS:
                tokens = ldm.tokenizer(prompt, padding="max_length", max_length=12, return_tensors="pt").input_ids
                self.embeds.append(ldm.text_encoder(tokens)[0])

    def generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_hash("zero-shot", self.seed, self.row, number))

    @torch.no_grad()
    def predict(self, noise: torch.Tensor, timestep: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted noise and predicted clean latents."""
        alpha = self.ldm.scheduler.alphas_cumprod[timestep].double()
        noisy = alpha.sqrt() * self.latents + (1 - alpha).sqrt() * noise
        output = self.ldm.unet(noisy, torch.tensor([timestep]), self.embeds[c]).sample
        kind = self.ldm.scheduler.config.prediction_type
        if kind == "epsilon":
            return output, (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()
        clean = output if kind == "sample" else alpha.sqrt() * noisy - (1 - alpha).sqrt() * output
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt(), clean

    def diffusion_classifier(self, config: ZeroShotConfig) -> tuple[int, list[list[float]]]:
        errors: list[list[float]] = [[] for _ in PROMPTS]
        remaining = list(range(len(PROMPTS)))
        for numbers, kept in zip(STAGES, config.keep, strict=True):
            for number in numbers:
                noise = torch.randn(1, 4, 8, 8, generator=self.generator(number))
                for c in remaining:
                    predicted, _ = self.predict(noise.double(), (2 * number + 1) * 1000 // 16, c)
                    errors[c].append(float(((predicted - noise) ** 2).sum()))
            remaining = sorted(remaining, key=lambda c: np.mean(errors[c]))[:kept]
        return remaining[0], errors

    def diffusion_net(self, config: ZeroShotConfig) -> tuple[int, list[list[float]]]:
        scores: list[list[float]] = [[] for _ in PROMPTS]
        remaining, n = list(range(len(PROMPTS))), 0
        while len(remaining) > 1 and n < config.max_scores:
            generator = self.generator(n)
            n += 1
            t = float(torch.rand(1, generator=generator, dtype=torch.float64))
            noise = torch.randn(1, 4, 8, 8, generator=generator).double()
            for c in remaining:
                _, clean = self.predict(noise, int(1000 * t), c)
                scores[c].append(float(np.exp(-7 * t) * ((clean - self.latents) ** 2).sum()))
            best = min(remaining, key=lambda c: np.mean(scores[c]))
            if n >= config.min_scores:
                for c in list(remaining):
                    if c != best and stats.ttest_rel(scores[best], scores[c]).pvalue < config.cutoff:
                        remaining.remove(c)
        return best, scores


METHODS: list[tuple[type[ZeroShot], ZeroShotConfig, str]] = [
    (DiffusionClassifier, STAGED, "diffusion_classifier"), (DiffusionNet, PAIRED, "diffusion_net"),
]  # fmt: skip
both = pytest.mark.parametrize(("kind", "config", "name"), METHODS, ids=["staged", "paired"])


def assert_same(found: Scores, wanted: Scores) -> None:
    np.testing.assert_array_equal(found.draws, wanted.draws)
    np.testing.assert_allclose(found.errors, wanted.errors, rtol=1e-9)
    assert (found.prediction, found.passes) == (wanted.prediction, wanted.passes)


@both
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_scores_are_those_of_the_papers_loops(
    tiny_pipeline: Path, images: torch.Tensor, kind: type[ZeroShot], config: ZeroShotConfig, name: str,
    prediction_type: str,
) -> None:  # fmt: skip
    ldm = load_exact(tiny_pipeline, prediction_type)
    found = kind(ldm, PROMPTS, config).classify(images, ROWS)
    ruled_out = 0
    for image, row, scores in zip(images, ROWS, found, strict=True):
        prediction, errors = getattr(Literal(ldm, image, row, config.seed), name)(config)
        assert scores.prediction == prediction
        assert scores.draws.tolist() == [len(values) for values in errors]
        np.testing.assert_allclose(scores.errors, [np.mean(values) for values in errors], rtol=2e-6)
        ruled_out += sum(len(values) < max(map(len, errors)) for values in errors)
    assert ruled_out > 0


@both
@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_neither_batch_size_nor_company_matters(
    ldm: LatentDiffusion, images: torch.Tensor, kind: type[ZeroShot], config: ZeroShotConfig, name: str, batch_size: int
) -> None:
    wanted = kind(ldm, PROMPTS, config).classify(images, ROWS)
    other = kind(ldm, PROMPTS, dataclasses.replace(config, batch_size=batch_size))
    for found, one in zip(other.classify(images.flip(0), ROWS[::-1])[::-1], wanted, strict=True):
        assert_same(found, one)
    assert_same(other.classify(images[1:2], ROWS[1:2])[0], wanted[1])


def test_it_goes_on_in_halves_where_memory_runs_out(
    ldm: LatentDiffusion, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = ZeroShotConfig(samples=(2, 4), keep=(2, 1), batch_size=8)
    expected = DiffusionClassifier(ldm, PROMPTS, config).classify(images)
    run_out_above(ldm, 3, monkeypatch)
    found = DiffusionClassifier(ldm, PROMPTS, config).classify(images)
    assert capsys.readouterr().err.count("out of memory in classifying (--zero-shot.batch-size): 2 at once") == 1
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


@both
def test_draws_are_the_images_own_and_the_seeds(
    ldm: LatentDiffusion, images: torch.Tensor, kind: type[ZeroShot], config: ZeroShotConfig, name: str
) -> None:
    twice = images[:1].repeat(2, 1, 1, 1)
    first, second = kind(ldm, PROMPTS, config).classify(twice, [1, 2])
    assert not np.allclose(first.errors, second.errors, rtol=1e-4)
    reseeded = kind(ldm, PROMPTS, dataclasses.replace(config, seed=4)).classify(images[:1], [1])[0]
    assert not np.allclose(first.errors, reseeded.errors, rtol=1e-4)


def test_an_image_is_encoded_once_and_batches_are_full(
    ldm: LatentDiffusion, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, sizes = [], []
    encode, predict = ldm.encode, ldm.predict_noise
    monkeypatch.setattr(ldm, "encode", lambda batch: encoded.append(len(batch)) or encode(batch))
    monkeypatch.setattr(ldm, "predict_noise", lambda z, t, c: sizes.append(len(z)) or predict(z, t, c))
    config = dataclasses.replace(STAGED, batch_size=6)
    found = DiffusionClassifier(ldm, PROMPTS, config).classify(images, ROWS)
    assert sum(encoded) == len(images)
    assert sum(sizes) == sum(scores.passes for scores in found) == len(images) * (2 * 6 + 2 * 4 + 4 * 2)
    assert max(sizes) == 6
    # Rounds are of BATCHES_READY batches and more while images last; each may end in one that is not full.
    assert len(sizes) <= sum(sizes) / 6 * (1 + 1 / BATCHES_READY) + 3


def test_few_passes_are_made_in_vain(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    config = dataclasses.replace(PAIRED, max_scores=100, cutoff=0.01)
    for scores in DiffusionNet(ldm, PROMPTS, config).classify(images[:2], ROWS[:2]):
        assert scores.draws.sum() <= scores.passes <= scores.draws.sum() * (1 + 2 / 16)


def test_probabilities_rank_what_was_tried_to_the_end() -> None:
    scores = Scores(np.array([3.0, 2.0, 0.5, 2.5]), np.array([8, 8, 2, 8]), 26, 0.1)
    weights = np.exp([-3.0, -2.0, -2.5])
    np.testing.assert_allclose(scores.probabilities()[[0, 1, 3]], weights / weights.sum())
    assert scores.probabilities()[2] == 0  # smaller, but from other draws than those that decided
    assert scores.prediction == 1
    far = Scores(np.array([9e5, 8e5]), np.array([1, 1]), 2, 0.1)
    assert far.probabilities().tolist() == [0, 1]


def test_equal_prompts_are_never_told_apart(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    config = dataclasses.replace(PAIRED, max_scores=12)
    scores = DiffusionNet(ldm, ["cat", "cat"], config).classify(images[:1], [0])[0]
    assert scores.draws.tolist() == [12, 12]


def test_images_of_another_size_are_resized(ldm: LatentDiffusion) -> None:
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bicubic").clamp(0, 1) * 2 - 1
    large = torch.nn.functional.interpolate(smooth, size=(32, 32), mode="bicubic").clamp(-1, 1)
    method = DiffusionClassifier(ldm, PROMPTS, dataclasses.replace(STAGED, samples=(4,), keep=(1,)))
    small, resized = method.classify(smooth)[0], method.classify(large)[0]
    np.testing.assert_allclose(resized.errors, small.errors, rtol=0.05)


def test_one_class_and_numbers_that_are_none_are_refused(
    ldm: LatentDiffusion, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="fewer than two"):
        DiffusionClassifier(ldm, ["cat"], STAGED)
    monkeypatch.setattr(ldm, "predict_noise", lambda z, t, c: torch.full_like(z, torch.nan))
    with pytest.raises(LDMError, match="image 9 is not finite; use --precision float32"):
        DiffusionClassifier(ldm, PROMPTS, STAGED).classify(images[2:], [9])


def test_one_number_that_is_none_is_refused(
    ldm: LatentDiffusion, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One class in one draw: its mean would be NaN, and the order of the others by chance."""
    predict = ldm.predict_noise

    def once(z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        found = predict(z, t, c)
        found[-1, 0, 0, 0] = torch.nan
        return found

    monkeypatch.setattr(ldm, "predict_noise", once)
    with pytest.raises(LDMError, match="image 9 is not finite"):
        DiffusionClassifier(ldm, PROMPTS, STAGED).classify(images[2:], [9])


@pytest.mark.parametrize(
    ("classes", "samples", "keep"),
    [
        (7, (25, 250), (5, 1)), (16, (25, 250), (5, 1)), (37, (25, 250), (5, 1)), (39, (25, 250), (5, 1)),
        (40, (20, 50, 100, 500), (20, 10, 5, 1)), (65, (20, 50, 100, 500), (20, 10, 5, 1)),
        (345, (20, 50, 100, 500), (20, 10, 5, 1)), (5, (250,), (1,)), (2, (250,), (1,)),
    ],
)  # fmt: skip
def test_stages_follow_the_number_of_classes(classes: int, samples: tuple[int, ...], keep: tuple[int, ...]) -> None:
    found = ZeroShotConfig(seed=3).for_classes(classes)
    assert (found.samples, found.keep, found.seed) == (samples, keep, 3)
    assert found.for_classes(classes) == found


def test_given_stages_stay_but_for_those_that_keep_all_classes(ldm: LatentDiffusion, images: torch.Tensor) -> None:
    assert STAGED.for_classes(65) == STAGED
    wide = ZeroShotConfig(samples=(2, 4, 8), keep=(20, 10, 1), seed=3, batch_size=16)
    method = DiffusionClassifier(ldm, PROMPTS, wide)
    assert (method.config.samples, method.config.keep) == ((8,), (1,))
    found = method.classify(images, ROWS)
    assert all(scores.draws.tolist() == [8] * len(PROMPTS) for scores in found)
    assert DiffusionClassifier(ldm, PROMPTS, ZeroShotConfig()).config.samples == (25, 250)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": (5,), "keep": (2, 1)}, "samples has 1 stages and keep has 2"),
        ({"samples": (50, 25), "keep": (5, 1)}, "ascend"),
        ({"samples": (25, 25), "keep": (5, 1)}, "ascend"),
        ({"samples": (25, 250), "keep": (5, 2)}, "descend to 1"),
        ({"samples": (25, 250), "keep": (1, 1)}, "descend to 1"),
        ({"samples": (25, 250)}, "together, or neither"),
        ({"keep": (5, 1)}, "together, or neither"),
        ({"min_scores": 30, "max_scores": 20}, "min_scores 30 is above max_scores 20"),
        ({"min_scores": 1}, "greater than or equal to 2"),
    ],
)
def test_options_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroShotConfig(**values)
