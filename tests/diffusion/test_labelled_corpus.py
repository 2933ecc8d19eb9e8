"""An LDM from a labelled data set: what it sees, what it says of that, and which runs refuse it."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import CLASSES, IMAGES_PER_CLASS, write_image_folder
from domainfusion.config import DataConfig
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.diffusion import pretraining
from domainfusion.diffusion.labelled_corpus import (
    SEEN,
    Seen,
    is_captioned,
    labelled_corpus,
    merge_seen,
    read_seen,
    refuse_seen_target,
)
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.pretraining import pretrain
from domainfusion.errors import UsageError
from domainfusion.files import write_json
from short_runs import run
from small_corpus import SIZE, TINY

VERY_SHORT = dataclasses.replace(TINY, vae_steps=1, unet_steps=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "drawn")


def test_captions_name_class_and_domain_and_the_target_is_left_out(images: Path) -> None:
    corpus, seen = labelled_corpus(str(images), SIZE, "sketch")
    assert seen == Seen({"drawn": ["cartoon", "photo"]})
    assert len(corpus) == 2 * len(CLASSES) * IMAGES_PER_CLASS
    assert corpus.styles == corpus.versatile_styles == ["cartoon", "photo"]
    dataset = load_dataset(str(images), DataConfig(size=SIZE))
    rows = np.flatnonzero(dataset.domain_of != dataset.index_of("sketch"))
    assert np.array_equal(corpus.images, dataset.images[rows])
    assert corpus.category == [CLASSES[label] for label in dataset.labels[rows]]
    assert corpus.style == [dataset.domains[domain] for domain in dataset.domain_of[rows]]


def test_a_trial_leaves_its_validation_images_out(images: Path) -> None:
    corpus, _ = labelled_corpus(str(images), SIZE, "photo", trial=1)
    dataset = load_dataset(str(images), DataConfig(size=SIZE))
    split = build_split(dataset, DataConfig(), "photo", 1)
    trained = np.sort(np.concatenate(list(split.train.values())))
    assert 0 < len(trained) < np.sum(dataset.domain_of != dataset.index_of("photo"))
    assert np.array_equal(corpus.images, dataset.images[trained])
    with pytest.raises(UsageError, match="--trial -1"):
        labelled_corpus(str(images), SIZE, "photo", trial=-1)


def test_without_a_target_all_domains_are_seen(images: Path) -> None:
    corpus, seen = labelled_corpus(str(images), SIZE)
    assert seen == Seen({"drawn": ["cartoon", "photo", "sketch"]})
    assert len(corpus) == 3 * len(CLASSES) * IMAGES_PER_CLASS


def test_an_ldm_says_what_it_has_seen_and_so_does_one_that_goes_on_from_it(images: Path, tmp_path: Path) -> None:
    first = pretrain(str(images), VERY_SHORT, tmp_path / "first", target="sketch")
    assert read_seen(first) == Seen({"drawn": ["cartoon", "photo"]})
    assert LatentDiffusion.load(str(first), precision="float32").styles == ("cartoon", "photo")
    other = write_image_folder(tmp_path / "other", domains=("icon", "logo"))
    options = dataclasses.replace(VERY_SHORT, init=str(first))
    second = pretrain(str(other), options, tmp_path / "second", target="logo")
    assert read_seen(second) == Seen({"drawn": ["cartoon", "photo"], "other": ["icon"]})


def test_a_run_takes_the_ldm_of_its_target_and_refuses_one_that_has_seen_it(images: Path, tmp_path: Path) -> None:
    without_photo = pretrain(str(images), VERY_SHORT, tmp_path / "ldm", target="photo")
    for target in ("sketch", "photo"):
        shutil.copytree(without_photo, tmp_path / f"without-{target}")
    ldm = str(tmp_path / "without-{target}")
    short = {"steps": 1, "evaluations": 1, "ldm": ldm}
    run(images, tmp_path / "fine", target="photo", **short)
    assert 'ldm = "' + ldm in (tmp_path / "fine" / "config.toml").read_text()
    with pytest.raises(UsageError, match=r"without-sketch: it was trained on images of sketch.*pretrain .*--target sk"):
        run(images, tmp_path / "refused", target="sketch", **short)
    assert not (tmp_path / "refused").exists()


def test_a_pipeline_that_is_cut_short_says_what_it_has_seen(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(pretraining, "build_pipeline", full)
    with pytest.raises(OSError, match="no space left"):
        pretrain(str(images), VERY_SHORT, tmp_path / "ldm", target="photo")
    assert read_seen(tmp_path / "ldm" / "pipeline") == Seen({"drawn": ["cartoon", "sketch"]})


def test_a_target_of_a_data_set_with_folds_needs_a_trial(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pictograms has folds: .* give --trial T"):
        labelled_corpus("pictograms", SIZE, "pixel")
    corpus, seen = labelled_corpus("pictograms", SIZE, "pixel", trial=2)
    dataset = load_dataset("pictograms", DataConfig(size=SIZE))
    split = build_split(dataset, DataConfig(), "pixel", 2)
    assert len(corpus) == sum(len(rows) for rows in split.train.values())
    assert "pixel" not in seen.domains["pictograms"]
    assert seen.trials == {"pictograms": [2]}
    write_json(tmp_path / SEEN, dataclasses.asdict(seen))
    refuse_seen_target(str(tmp_path), dataset, ("pixel",), 2)
    for trial in (0, 1, 3, 4):  # each tests drawings that trial 2 trains on, in other styles
        with pytest.raises(UsageError, match=rf"trained for trial 2, on drawings that trial {trial} tests"):
            refuse_seen_target(str(tmp_path), dataset, ("pixel",), trial)
    with pytest.raises(UsageError, match="trained on images of ink"):
        refuse_seen_target(str(tmp_path), dataset, ("ink",), 2)
    without_folds = dataclasses.replace(dataset, folds=None)
    refuse_seen_target(str(tmp_path), without_folds, ("pixel",), 0)  # its validation images at most
    write_json(tmp_path / SEEN, {"pictograms": ["ink"]})  # as a former version wrote it
    assert read_seen(tmp_path) == Seen({"pictograms": ["ink"]}, {})


def test_what_was_seen_is_of_one_data_set(images: Path, tmp_path: Path) -> None:
    folder = pretrain(str(images), VERY_SHORT, tmp_path / "ldm", target="photo")
    other = write_image_folder(tmp_path / "other")
    run(other, tmp_path / "run", target="sketch", steps=1, evaluations=1, ldm=str(folder))
    seen = read_seen(folder)
    assert merge_seen(seen, Seen({"other": ["sketch"]})).domains["drawn"] == seen.domains["drawn"]


def test_a_captioned_corpus_has_no_target(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "a.png")
    with open(folder / "metadata.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([["file_name", "text"], ["a.png", "black"]])
    assert is_captioned(folder)
    with pytest.raises(UsageError, match="has captions and no domains: --target"):
        pretrain(folder, VERY_SHORT, tmp_path / "ldm", target="photo")


def test_a_data_set_with_metadata_is_no_captioned_corpus(images: Path, tmp_path: Path) -> None:
    assert not is_captioned(images)
    (tmp_path / "metadata.csv").write_text("file_name,label,domain\n")
    assert not is_captioned(tmp_path)
    assert is_captioned(tmp_path / "corpus.npz")
