"""Scores, slopes and priors against literal loops; the figures that are made of them."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from domainfusion.algorithms.diffusion_classifier import DiffusionClassifier
from domainfusion.config import DistillConfig, ZeroShotConfig
from domainfusion.data.transforms import from_uint8
from domainfusion.distillation.noise_pictures import noise_figure, prior_pictures
from domainfusion.distillation.slopes import Draws, SlopeEstimator, draw
from domainfusion.picture_grid import Row, picture_grid, save_figure
from domainfusion.report import heat_figure as heat_figure_module
from domainfusion.report.corruption_figure import corruption_figure, outlines_of
from domainfusion.report.heat_figure import heat_figure, label_pictures
from domainfusion.report.label_evidence import GRID, ROUNDS, LabelScores, label_scores, slope_curves
from domainfusion.report.overlays import difference_picture, overlay
from domainfusion.seeding import seed_hash

PROMPTS = ["cat", "dog", "house"]


@pytest.fixture
def image():
    ramp = np.linspace(0, 255, 16)
    pixels = np.stack([np.tile(ramp, (16, 1)), np.tile(ramp[:, None], (1, 16)), np.full((16, 16), 90.0)], -1)
    pixels[4:9, 5:12] = (250, 20, 30)
    return from_uint8(pixels.astype(np.uint8))


def test_scores_are_mean_squared_errors_on_shared_draws(exact_ldm, image):
    found = label_scores(exact_ldm, image.double(), PROMPTS, draws=5, seed=3)
    alphas = exact_ldm.scheduler.alphas_cumprod.double()
    latents = exact_ldm.encode(image[None].double())
    for number in range(5):
        t = int((number + 0.5) / 5 * 1000)
        generator = torch.Generator().manual_seed(seed_hash("zero-shot", 3, 0, number))
        noise = torch.randn(4, 8, 8, generator=generator).double()
        noisy = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * noise
        for k, prompt in enumerate(PROMPTS):
            with torch.no_grad():
                predicted = exact_ldm.predict_noise(noisy, torch.tensor([t]), exact_ldm.prompt_embeds([prompt]))
            assert found.errors[number, k] == pytest.approx(float((predicted - noise).square().mean()), rel=1e-5)


def test_paired_errors_are_what_the_classifier_takes_means_of(exact_ldm, image):
    classifier = DiffusionClassifier(exact_ldm, PROMPTS, ZeroShotConfig(samples=(6,), keep=(1,)))
    errors = classifier.paired_errors(image.double(), range(6), number=4)
    assert errors.shape == (6, 3)
    np.testing.assert_allclose(errors.mean(0), classifier.classify(image[None].double(), [4])[0].errors, rtol=1e-6)


def test_differences_are_paired():
    errors = np.array([[1.0, 1.5], [3.0, 3.3], [2.0, 2.7]])
    means, standard = LabelScores(errors).differences(0)
    paired = [0.5, 0.3, 0.7]
    assert means[1] == pytest.approx(0.5)
    assert standard[1] == pytest.approx(np.std(paired, ddof=1) / 3**0.5)
    assert (means[0], standard[0]) == (0, 0)
    assert LabelScores(errors).best == 0


@pytest.mark.parametrize("distill", [None, DistillConfig(residual="guided", guidance=2.0, weighting="sigma")])
def test_curves_are_the_slopes_of_each_label_and_confidence(exact_ldm, image, distill):
    config = dataclasses.replace(distill or DistillConfig(), samples=2, corruption="mask")
    found = slope_curves(exact_ldm, image.double(), PROMPTS[:2], corruption="mask", distill=distill, samples=2, seed=5)
    assert found.shape == (ROUNDS, 2, len(GRID))
    generator = torch.Generator().manual_seed(5)
    hidden = (torch.rand(1, 1, 8, 8, generator=generator) < 0.5).double()
    degraded = image[None].double() * (1 - hidden.repeat_interleave(2, -1).repeat_interleave(2, -2))
    estimator = SlopeEstimator(exact_ldm, config)
    draws = [draw(exact_ldm, 1, 16, config, generator) for _ in range(ROUNDS)]
    for k, g in ((0, 3), (1, 5)):
        for number, one in enumerate(draws):
            shared = Draws(one.timesteps, one.noise.double(), 0)
            p = torch.tensor([GRID[g]], dtype=torch.float64)
            slope = estimator.slopes(image[None].double(), [PROMPTS[k]], p, shared, degraded=degraded)
            assert found[number, k, g] == pytest.approx(float(slope), rel=1e-3, abs=1e-6)


def test_the_prior_is_what_the_predicted_noise_leaves(exact_ldm, image):
    found = prior_pictures(exact_ldm, image[None].double(), ["cat"], time=0.4, samples=2, seed=9)
    t = round(0.4 * 999)
    alpha = exact_ldm.scheduler.alphas_cumprod[t].double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        latents, clean = exact_ldm.encode(image[None].double()), []
        for _ in range(2):
            noise = torch.randn(4, 8, 8, generator=generator).double()
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            predicted = exact_ldm.predict_noise(noisy, torch.tensor([t]), exact_ldm.prompt_embeds(["cat"]))
            clean.append((noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt())
        expected = exact_ldm.vae.decode((clean[0] + clean[1]) / 2 / 0.9).sample.clamp(-1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_outlines_are_where_lightness_changes():
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, 4:] = 200
    assert outlines_of(pixels)[:, [0, 1, 6, 7]].max() == 0
    np.testing.assert_allclose(outlines_of(pixels)[:, 3:5], 100)


def test_overlays_keep_dark_and_bright_apart():
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    heat = torch.zeros(8, 8)
    heat[:, 4:] = 2.0
    picture = overlay(grey, heat, 0.0, 2.0, side=32).astype(int).sum(-1)
    assert picture[:, :8].max() < picture[:, -8:].min()
    signed = difference_picture(grey, heat - 1, 1.0, side=32).astype(int)
    assert (signed[:, 2, 2] > signed[:, 2, 0]).all()  # violet at the left
    assert (signed[:, -3, 0] > signed[:, -3, 2]).all()  # orange at the right


def test_the_picture_has_the_signs_of_the_facts(exact_ldm, image, monkeypatch):
    found = label_pictures(exact_ldm, image.double(), ["cat", "dog", "house"], draws=4)
    rows = []
    monkeypatch.setattr(heat_figure_module, "picture_grid", lambda given, **_: rows.extend(given))
    heat_figure_module.draw_heat([found])
    said = rows[1].captions[1:]
    assert said[0] == "error 0 (matched)"
    for text, facts in zip(said[1:], found.facts()[1:], strict=True):
        assert text.startswith(f"error {1000 * facts['error_difference']:+z.2f} ±")


def test_figures_tell_their_facts(exact_ldm, image, tmp_path):
    images = torch.stack([image, -image]).double()
    labels = [["cat", "dog"], ["house", "cat"]]
    facts = heat_figure(exact_ldm, images, labels, tmp_path / "five.png", draws=4)
    alone = label_pictures(exact_ldm, images[1], labels[1], draws=4)
    assert facts["images"][1] == alone.facts()
    assert facts["images"][0][0]["error_difference"] == 0
    assert facts["images"][0][0]["heat_likeness_to_first"] == pytest.approx(1)
    assert facts["matched_first"] == sum(entries[1]["error_difference"] >= 0 for entries in facts["images"])
    low, high = alone.span
    assert low < 1 < high
    torch.testing.assert_close(sum(alone.particular()), torch.zeros_like(alone.particular()[0]), rtol=0, atol=1e-6)

    facts = corruption_figure(
        exact_ldm, images, ["cat", "house"], tmp_path / "two.png", kinds=("contrast", "pepper"), confidences=(1.0, 0.1),
        noise=True,
    )  # fmt: skip
    assert facts["structure"]["contrast"][0] == pytest.approx(facts["structure"]["pepper"][0])  # p = 1: uncorrupted
    assert all(-1 <= value <= 1 for values in facts["structure"].values() for value in values)
    for name in ("five", "two"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300


def test_ld_noise_has_a_name_below_each_image():
    images, maps = torch.zeros(8, 3, 8, 8), torch.rand(8, 8, 8)
    names = [f"class {k}\nfrom ink" for k in range(8)]
    figure = noise_figure(images, maps, names, "a note")
    words = [text.get_text() for text in figure.texts]
    assert [text for text in words if text in names] == names
    assert words.count("image") == words.count("LD noise") == 2  # six beside each other, and the rest
    assert "a note" in words
    grey = figure.axes[0].get_images()[0].get_array()
    assert (np.asarray(grey) == 128).all()
    below = {text.get_text(): text.get_position() for text in figure.texts}
    assert below["class 0\nfrom ink"][0] == below["class 6\nfrom ink"][0]
    assert below["class 0\nfrom ink"][1] > below["class 6\nfrom ink"][1]


def test_a_figure_has_room_for_its_title_and_rows(tmp_path):
    square = np.zeros((8, 8, 3), dtype=np.uint8)
    small = picture_grid([Row("a", [square])])
    large = picture_grid([Row("a", [square, None, square], ["x\ny"], apart=True)] * 2, title="t" * 90, notes="n\nn")
    assert large.get_figwidth() > 6
    assert large.get_figheight() > 2 * small.get_figheight()
    assert save_figure(small, tmp_path / "new" / "small.png").stat().st_size > 0
