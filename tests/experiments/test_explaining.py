"""`domainfusion explain`: labels chosen or refused, the page, its pictures and its figures."""

import base64
import dataclasses
import io
import json
import os
import re
import shutil
import signal
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import domainfusion
from domainfusion.cli import run
from domainfusion.config import DistillConfig, GenerateConfig
from domainfusion.data.images import read_image
from domainfusion.data.transforms import from_uint8
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.noise_pictures import noise_maps
from domainfusion.distillation.slopes import SlopeEstimator
from domainfusion.errors import Interrupted, UsageError
from domainfusion.experiments.explaining import (
    Classes,
    check_template,
    choose_labels,
    evolve_image,
    explain_image,
    literally,
)
from domainfusion.fusion.evolving import evolve
from domainfusion.interruption import requested, stoppable
from domainfusion.report.evolution_figure import border_share
from domainfusion.report.image_evolution import TILE
from domainfusion.report.label_evidence import slope_curves
from domainfusion.report.overlays import enlarge, noise_picture

CLASSES = Classes(
    {"cat": "cat", "Big_Dog": "big dog", "house": "house", "tree": "tree", "sun": "sun"},
    {"cat": 0.1, "Big_Dog": 0.5, "house": 0.25, "tree": 0.1, "sun": 0.05},
)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a <b>cat.png"
    pixels = np.full((20, 30, 3), 230, dtype=np.uint8)
    pixels[5:15, 8:20] = (200, 40, 30)
    Image.fromarray(pixels).save(path)
    return path


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def explain(picture, ldm, output, *words):
    draws = [] if "--draws" in words else ["--draws", "4"]
    return run(["explain", str(picture), "--ldm", str(ldm), "--output", str(output), *draws, "--device", "cpu",
                *words])  # fmt: skip


def test_the_page_stands_by_itself_and_tells_the_figures(picture, tiny_pipeline, tmp_path, capsys):
    output = tmp_path / "out"
    assert explain(picture, tiny_pipeline, output, "--label", "dog", "--labels", "cat", "dog", "house", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["label"] for entry in found["labels"]] == ["dog", "cat", "house"]  # the matched one first
    assert found["best"] == min(found["labels"], key=lambda entry: entry["error"])["label"]
    errors = sorted(entry["error"] for entry in found["labels"])
    assert found["lead"] == pytest.approx(errors[1] - errors[0], abs=1e-6)
    for entry in found["labels"]:
        assert entry["error_difference"] == pytest.approx(entry["error"] - found["labels"][0]["error"], abs=1e-6)
        assert "confidence" not in entry
    assert found["slopes"]["by_corruption"]["contrast"] == found["slopes"]["contrast_by_label"]["dog"]
    assert set(found["structure"]) == {"p", "contrast", "mask", "blur", "pepper"}
    assert {path.name for path in output.iterdir()} == {
        f"{name}.png" for name in ("heat", "ld_noise", "evolution", "slopes")
    } | {"explain.html"}
    for name in ("heat", "ld_noise", "evolution", "slopes"):
        with Image.open(output / f"{name}.png") as image:
            assert image.format == "PNG"
    source = (output / "explain.html").read_text(encoding="utf-8")
    page = Page(source)
    assert "a <b>cat.png" in "".join(page.words)
    assert "<b>cat" not in source
    assert not re.search(r"https?://|@import|url\(", source)
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.images)
    # The image; heat of each label twice; corruptions; the image and four generations, with noise.
    assert len(page.images) == 1 + 2 * 3 + 4 * 3 * 5 + 2 * 5


def pictures_of(page, words):
    """The pictures of a page whose texts begin with some words, in its order."""
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))))
        for image in page.images if image["alt"].startswith(words)
    ]  # fmt: skip


def test_the_page_shows_each_generation_above_its_own_noise(picture, tiny_pipeline, tmp_path, capsys):
    words = ["--labels", "dog", "cat", "--seed", "3", "--generations", "2", "--template", "animal {label}", "--json"]
    assert explain(picture, tiny_pipeline, tmp_path / "out", *words) == 0
    found = json.loads(capsys.readouterr().out)["evolution"]
    ldm = LatentDiffusion.load(str(tiny_pipeline))
    image = read_image(picture, 16)
    options = GenerateConfig(template="animal {label}, {style}", strength=(0.4, 0.7), seed=3)
    made = evolve(ldm, image, "dog", {"dog": "dog", "cat": "cat"}, options, generations=2, styles=ldm.styles)
    frames = [image, *(generation.images[0] for generation in made)]
    page = Page((tmp_path / "out" / "explain.html").read_text(encoding="utf-8"))
    shown = pictures_of(page, "the image itself") + pictures_of(page, "the image in generation")
    assert len(shown) == 3
    for tile, frame in zip(shown, frames, strict=True):
        np.testing.assert_allclose(tile.astype(int), enlarge(frame, TILE).astype(int), atol=3)
    maps = noise_maps(SlopeEstimator(ldm, DistillConfig()), from_uint8(np.stack(frames)), ["animal dog"] * 3, seed=3)
    noises = pictures_of(page, "LD noise of")
    assert [image["alt"] for image in page.images if image["alt"].startswith("LD noise of")] == [
        "LD noise of the image itself", "LD noise of the image in generation 0", "LD noise of the image in generation 1"
    ]  # fmt: skip
    expected = [noise_picture(level, TILE).astype(int) for level in maps]
    for k, tile in enumerate(noises):
        away = [np.abs(tile - other).mean() for other in expected]
        assert away[k] < 1
        assert all(distance > 5 for j, distance in enumerate(away) if j != k)
    assert [frame["generation"] for frame in found["frames"]] == ["raw", "0", "1"]
    assert [frame["border"] for frame in found["frames"]] == pytest.approx(list(map(border_share, maps)), abs=0.02)
    assert [found["sampled"], found["candidates"], found["noise_prompt"]] == [False, 1, "animal dog"]
    for frame, generation in zip(found["frames"][1:], made, strict=True):
        assert frame["content_prompt"] == generation.lineage[0]["content_prompt"]
        assert frame["strength"] == generation.lineage[0]["content_strength"]
        assert f"strength {frame['strength']:.2f}" in "".join(page.words)
    assert "Without a classifier's choice, the first candidate is taken." in "".join(page.words)


def test_a_classifier_chooses_and_its_target_is_not_named(exact_ldm):
    asked = []

    def judge(images, labels):
        asked.append(labels.tolist())
        return images.flatten(1), images.mean((1, 2, 3))

    ldm = LatentDiffusion(
        exact_ldm.vae, exact_ldm.unet, exact_ldm.text_encoder, exact_ldm.tokenizer, exact_ldm.scheduler,
        styles=("flat", "ink"), dtype=exact_ldm.dtype,
    )  # fmt: skip
    classes = dataclasses.replace(CLASSES, judge=judge, held_out=("Ink_Drawings",))
    image = from_uint8(np.full((16, 16, 3), 90, dtype=np.uint8))
    options = literally(GenerateConfig(steps=1, candidates=2, worker="on", recombination=True), 0)
    assert (options.updating, options.recombination, options.strength) == (True, False, (0.4, 0.7))
    found = evolve_image(ldm, image, {"tree": "tree", "cat": "cat"}, options, generations=3, classes=classes)
    assert asked == [[3], [3, 3]] * 3  # the number of "tree" among the classifier's classes
    assert found.sampled
    assert found.candidates == 2
    assert "2 candidates the sampling strategy chooses" in found.choice()
    assert {record[f"{kind}_prompt"] for record in found.lineage for kind in ("content", "style")} == {"tree, flat"}


def test_a_signal_leaves_nothing_behind(picture, tiny_pipeline, tmp_path):
    def judge(images, labels):
        if not requested():  # a second signal would end the tests
            os.kill(os.getpid(), signal.SIGTERM)
        return images.flatten(1), images.mean((1, 2, 3))

    ldm, classes = LatentDiffusion.load(str(tiny_pipeline)), dataclasses.replace(CLASSES, judge=judge)
    with pytest.raises(Interrupted), stoppable():
        explain_image(
            picture, {"cat": "cat", "tree": "tree"}, ldm, tmp_path / "out", generate=GenerateConfig(candidates=1),
            draws=2, classes=classes,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_run_gives_labels_prompts_and_confidences(picture, trained_run, tiny_pipeline, tmp_path, capsys):
    assert explain(picture, tiny_pipeline, tmp_path / "out", "--run", str(trained_run), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    labels, confidences = domainfusion.load(trained_run, device="cpu").predict([picture])
    assert found["classifier"] == found["labels"][0]["label"] == labels[0]
    assert found["labels"][0]["confidence"] == pytest.approx(float(confidences[0]))
    assert {entry["label"] for entry in found["labels"]} == {"cat", "dog", "house"}
    assert [found["evolution"]["sampled"], found["evolution"]["candidates"]] == [True, 3]
    assert f"The classifier says <strong>{labels[0]}</strong>" in (tmp_path / "out" / "explain.html").read_text()


def test_a_run_gives_its_size_of_images_and_what_its_slopes_are_of(
    picture, trained_run, tiny_pipeline, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    text = (run / "config.toml").read_text()
    for old, new in (("image_size = 0", "image_size = 24"), ('residual = "plain"', 'residual = "guided"')):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (run / "config.toml").write_text(text)
    words = ["--run", str(run), "--labels", "cat", "dog", "--label", "cat", "--generations", "1", "--json"]
    assert explain(picture, tiny_pipeline, tmp_path / "out", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["image_size"], found["residual"]) == (24, "guided")
    ldm, guided = LatentDiffusion.load(str(tiny_pipeline)), DistillConfig(residual="guided")
    image = from_uint8(read_image(picture, 24).copy())
    slopes = slope_curves(ldm, image, ["cat", "dog"], distill=guided, samples=2)[:, 0].mean(0)
    assert found["slopes"]["by_corruption"]["contrast"]["mean"] == pytest.approx(slopes.tolist(), rel=0.02, abs=1e-4)
    made = literally(GenerateConfig(image_size=24), 0)
    assert made.image_size == 24
    pictures = evolve_image(ldm, image, {"cat": "cat"}, made, generations=1, distill=guided).pictures
    maps = noise_maps(SlopeEstimator(ldm, guided), from_uint8(pictures.frames), ["cat"] * 2)
    torch.testing.assert_close(pictures.noise, maps)


def test_without_labels_the_most_probable_classes_are_compared():
    assert choose_labels(None, (), CLASSES) == {"Big_Dog": "big dog", "house": "house", "cat": "cat", "tree": "tree"}
    assert list(choose_labels("sun", (), CLASSES)) == ["sun", "Big_Dog", "house", "cat"]
    assert list(choose_labels("sun", ("cat",), CLASSES)) == ["sun", "cat"]
    assert choose_labels(None, ("Palm_Tree", "cat"), None) == {"Palm_Tree": "palm tree", "cat": "cat"}


@pytest.mark.parametrize(
    ("label", "labels", "classes", "message"),
    [
        (None, ("cat",), None, "name two or more"),
        (None, ("cat", "dog", "cat"), None, "names 'cat' twice"),
        ("dgo", ("cat", "dog"), None, "unknown label 'dgo'; did you mean 'dog'"),
        (None, ("big_dog", "cat"), CLASSES, "unknown label 'big_dog'; did you mean 'Big_Dog'"),
        ("cat", ("cat",), CLASSES, "name another one"),
    ],
)
def test_labels_that_make_no_comparison_are_refused(label, labels, classes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        choose_labels(label, labels, classes)


@pytest.mark.parametrize("template", ["a picture", "{label} {style}", "{", "{0}"])
def test_a_template_has_its_label_and_nothing_else(template):
    with pytest.raises(UsageError, match="must hold"):
        check_template(template)


def test_what_cannot_be_explained_is_said_in_one_line(picture, tiny_pipeline, tmp_path, capsys):
    labels = ["--labels", "cat", "dog"]
    assert explain(tmp_path / "none.png", tiny_pipeline, tmp_path / "out", *labels) == 2
    assert "there is no image" in capsys.readouterr().err
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert explain(broken, tiny_pipeline, tmp_path / "out", *labels) == 1
    assert "broken.png cannot be read as an image" in capsys.readouterr().err
    assert explain(picture, tiny_pipeline, tmp_path / "out", "--labels", "cat", "q w r t z p s d f g h j k") == 2
    assert "the LDM reads 12; use a shorter label" in capsys.readouterr().err
    assert explain(picture, tiny_pipeline, tmp_path / "out", *labels, "--draws", "1") == 2
    capsys.readouterr()
    assert explain(picture, tiny_pipeline, tmp_path / "out", *labels, "--generations", "0") == 2
    assert "--generations 0 makes nothing; give 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
