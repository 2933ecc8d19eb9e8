"""`domainfusion explain`: labels chosen or refused, the page, its pictures and its figures."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import domainfusion
from domainfusion.cli import run
from domainfusion.errors import UsageError
from domainfusion.experiments.explaining import Classes, check_template, choose_labels

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
    return run(["explain", str(picture), "--ldm", str(ldm), "--output", str(output), "--draws", "4", "--device", "cpu",
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
    assert {path.name for path in output.iterdir()} == {"explain.html", "heat.png", "ld_noise.png", "slopes.png"}
    for name in ("heat", "ld_noise", "slopes"):
        with Image.open(output / f"{name}.png") as image:
            assert image.format == "PNG"
    source = (output / "explain.html").read_text(encoding="utf-8")
    page = Page(source)
    assert "a <b>cat.png" in "".join(page.words)
    assert "<b>cat" not in source
    assert not re.search(r"https?://|@import|url\(", source)
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert len(page.images) == 1 + 2 * 3 + 4 * 3 * 5  # image; heat of each label twice; corruptions


def test_a_run_gives_labels_prompts_and_confidences(picture, trained_run, tiny_pipeline, tmp_path, capsys):
    assert explain(picture, tiny_pipeline, tmp_path / "out", "--run", str(trained_run), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    labels, confidences = domainfusion.load(trained_run, device="cpu").predict([picture])
    assert found["classifier"] == found["labels"][0]["label"] == labels[0]
    assert found["labels"][0]["confidence"] == pytest.approx(float(confidences[0]))
    assert {entry["label"] for entry in found["labels"]} == {"cat", "dog", "house"}
    assert f"The classifier says <strong>{labels[0]}</strong>" in (tmp_path / "out" / "explain.html").read_text()


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
    assert not (tmp_path / "out").exists()
