from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainfusion import cli
from domainfusion.config import DataConfig
from domainfusion.data.domains import load_dataset, load_folder
from domainfusion.data.listing import NUMBERS
from domainfusion.data.splits import build_split
from domainfusion.errors import DataError, UsageError
from file_names import byte_names
from pictures import pixels

CONFIG = DataConfig(size=20)


def test_a_folder_is_read_domain_by_domain_in_sorted_order(image_folder: Path) -> None:
    dataset = load_dataset(str(image_folder), CONFIG)
    assert dataset.name == "images"
    assert dataset.domains == ("cartoon", "photo", "sketch")
    assert dataset.classes == ("cat", "dog", "house")
    assert len(dataset) == 108
    assert dataset.size == 20
    assert dataset.folds is None
    assert dataset.notes == ()
    for row in range(len(dataset)):
        domain, name, _ = dataset.keys[row].split("/")
        assert dataset.domains[dataset.domain_of[row]] == domain
        assert dataset.classes[dataset.labels[row]] == name
        assert np.array_equal(dataset.images[row], pixels(image_folder / dataset.keys[row]))
    assert dataset.rows(1).tolist() == list(range(36, 72))


def test_the_order_in_a_domain_is_that_of_torchvisions_image_folder(make_image_folder: Callable[..., Path]) -> None:
    from torchvision.datasets import ImageFolder

    root = make_image_folder("order", count=2)
    folder = root / "photo" / "dog"
    for name in (
        "2.png",
        "10.png",
        "A.PNG",
        "b/0.png",
        "b/a.jpg",
        "b-c/1.png",
        "b.png",
        "a/z/1.png",
        "ä.png",
        "notes.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((folder / "00.png").read_bytes())
    dataset = load_folder(root, CONFIG)
    expected = [Path(path).relative_to(root).as_posix() for path, _ in ImageFolder(str(root / "photo")).samples]
    assert [dataset.keys[row] for row in dataset.rows(1)] == expected
    assert len(expected) == 6 + 9


def test_a_missing_class_is_reported_and_labels_do_not_shift(image_folder_lacking_class: Path) -> None:
    dataset = load_folder(image_folder_lacking_class, CONFIG)
    assert dataset.classes == ("cat", "dog", "house")
    photo = dataset.rows(dataset.index_of("photo"))
    # torchvision's ImageFolder would call a house of this domain 1, which is a dog elsewhere.
    assert set(dataset.labels[photo].tolist()) == {0, 2}
    assert all(dataset.keys[row].split("/")[1] == dataset.classes[dataset.labels[row]] for row in range(len(dataset)))
    assert len(dataset.notes) == 1
    assert dataset.notes[0].startswith("domain photo has no images of 1 of 3 classes: dog")


def test_a_class_folder_without_images_counts_as_missing(image_folder_lacking_class: Path) -> None:
    (image_folder_lacking_class / "photo" / "dog").mkdir()
    dataset = load_folder(image_folder_lacking_class, CONFIG)
    assert dataset.classes == ("cat", "dog", "house")
    assert any("photo" in note and "dog" in note for note in dataset.notes)


def test_a_class_that_one_domain_alone_has_joins_the_union(make_image_folder: Callable[..., Path]) -> None:
    missing = (("cartoon", "cat"), ("photo", "cat"))
    dataset = load_folder(make_image_folder("union", missing=missing), CONFIG)
    assert dataset.classes == ("cat", "dog", "house")
    assert set(dataset.labels[dataset.rows(0)].tolist()) == {1, 2}
    assert set(dataset.labels[dataset.rows(2)].tolist()) == {0, 1, 2}


def test_hidden_folders_and_loose_files_are_no_part_of_the_data(image_folder: Path) -> None:
    (image_folder / ".git" / "objects").mkdir(parents=True)
    (image_folder / "photo" / ".cache").mkdir()
    (image_folder / "README.txt").write_text("about")
    (image_folder / "photo" / "cat" / "Thumbs.db").write_text("")
    (image_folder / "photo" / "cat" / "._00.png").write_bytes(b"a Mac's notes on 00.png")
    copies = image_folder / "photo" / "cat" / ".ipynb_checkpoints"
    copies.mkdir()
    shutil.copy(image_folder / "photo" / "cat" / "00.png", copies / "00-checkpoint.png")
    dataset = load_folder(image_folder, CONFIG)
    assert len(dataset) == 108
    assert not any("/." in key for key in dataset.keys)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], r"holds no folders; it should be laid out as .*/DOMAIN/CLASS/IMAGE"),
        (["photo"], r"domain photo of .* holds no class folders: .*/CLASS/IMAGE is expected"),
        (["photo/cat", "sketch/cat"], r"domain photo of .* is empty: none of its class folders holds an image"),
    ],
)
def test_a_folder_of_another_form_is_explained(tmp_path: Path, folders: list[str], message: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for folder in folders:
        (root / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        load_folder(root, CONFIG)


def test_splits_are_no_classes_and_no_domains(
    make_image_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make_image_folder("splits", domains=("hospital", "clinic"), classes=("train", "test"))
    with pytest.raises(DataError, match=r"laid out as DOMAIN/SPLIT/CLASS \(splits: test, train\).*data verify"):
        load_folder(layout, CONFIG)
    usual = make_image_folder("usual", domains=("train", "Val", "test"))
    assert "splits of one data set are no domains" in " ".join(load_folder(usual, CONFIG).notes)
    assert cli.run(["data", "verify", str(usual)]) == 1
    assert "the domains are called Val, test, train: splits of one data set" in capsys.readouterr().out


def test_images_behind_links_to_folders_count_as_in_image_folder(
    make_image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from torchvision.datasets import ImageFolder

    root = make_image_folder("linked")
    more = tmp_path / "elsewhere" / "deeper"
    more.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(more / f"{number}.png")
    place = root / "photo" / "cat"
    (place / "part").symlink_to(more.parent)
    (more / "back").symlink_to(more.parent)  # in a circle
    (place / "round").symlink_to(place)
    found = load_folder(root, CONFIG)
    assert len(found) == 111
    assert {key for key in found.keys if "/part/" in key} == {f"photo/cat/part/deeper/{n}.png" for n in range(3)}
    (place / "round").unlink()  # torchvision goes in circles
    (more / "back").unlink()
    assert len(found.rows(found.index_of("photo"))) == len(ImageFolder(str(root / "photo")))


def test_one_name_in_two_forms_of_unicode_is_told(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("forms", domains=("Caf\u00e9", "Cafe\u0301", "photo"))
    (note,) = load_folder(root, CONFIG).notes
    assert r"domains 'Cafe\u0301', 'Caf\xe9' look like one in 2 spellings" in note


def test_one_domain_can_be_read_but_not_trained_on(make_image_folder: Callable[..., Path]) -> None:
    dataset = load_folder(make_image_folder("one", domains=("photo",)), CONFIG)
    assert dataset.domains == ("photo",)
    with pytest.raises(DataError, match=r"holds one domain \(photo\); at least two"):
        build_split(dataset, CONFIG, None, 0)


def test_one_class_can_be_read_but_not_trained_on(make_image_folder: Callable[..., Path]) -> None:
    dataset = load_folder(make_image_folder("one", classes=("cat",)), CONFIG)
    assert dataset.classes == ("cat",)
    with pytest.raises(DataError, match=r"holds one class \(cat\); at least two"):
        build_split(dataset, CONFIG, None, 0)


def test_a_folder_around_the_data_set_is_told_with_the_one_in_it(make_image_folder: Callable[..., Path]) -> None:
    inner = make_image_folder("archive/photos")
    dataset = load_folder(inner.parent, CONFIG)
    with pytest.raises(DataError, match=r"holds one domain \(photos\).*archive/photos holds DOMAIN/CLASS/IMAGE too"):
        build_split(dataset, CONFIG, None, 0)
    # One domain whose classes have folders of their own in them is no such folder.
    one = make_image_folder("one", domains=("photo",))
    (one / "photo" / "cat" / "more").mkdir()
    shutil.copy(one / "photo" / "cat" / "00.png", one / "photo" / "cat" / "more")
    assert load_folder(one, CONFIG).notes == ()


def test_images_without_domains_are_told_where_they_belong(image_folder: Path) -> None:
    with pytest.raises(DataError, match=r"images lie right in .*photo/cat: where cat is a class.*photo/DOMAIN/cat"):
        load_folder(image_folder / "photo", CONFIG)
    with pytest.raises(DataError, match=r"images lie right in it: sort them into .*cat/DOMAIN/CLASS"):
        load_folder(image_folder / "photo" / "cat", CONFIG)


def test_pictures_in_a_form_that_is_not_read_are_told(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("phone", domains=("old", "photo"))
    (root / "photo" / "cat" / "IMG_1.HEIC").write_bytes(b"x")
    (root / "photo" / "dog" / "IMG_2.heic").write_bytes(b"x")
    (root / "photo" / "dog" / "notes.txt").write_text("about")
    (note,) = load_folder(root, CONFIG).notes
    assert note == "domain photo: pictures in a form that is not read (2 .heic); convert to .jpg or .png"
    for path in (root / "photo").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"is empty.*\(2 .heic\); convert them to .jpg or .png"):
        load_folder(root, CONFIG)


@pytest.mark.parametrize("heading", ["file_name,label", "file_name;label"])
def test_metadata_that_tells_no_domains_is_told(tmp_path: Path, heading: str) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text(f"{heading}\n1.png,cat\n")
    with pytest.raises(DataError, match=r"metadata\.csv is not used: it needs the columns") as caught:
        load_folder(tmp_path, CONFIG)
    assert f"has {heading.replace(',', ', ')}" in str(caught.value)


def test_classes_that_are_numbers_are_noted(make_image_folder: Callable[..., Path]) -> None:
    assert load_folder(make_image_folder("numbers", classes=("0", "1")), CONFIG).notes == (NUMBERS,)
    assert load_folder(make_image_folder("mixed", classes=("0", "one")), CONFIG).notes == ()


def test_what_is_no_data_set_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*absent"):
        load_dataset(str(tmp_path / "absent"), CONFIG)
    with pytest.raises(UsageError, match="unknown data set 'pictogrmas'; did you mean 'pictograms'"):
        load_dataset("pictogrmas", CONFIG)
    with pytest.raises(UsageError, match=r"there is no folder photso here, and no embedded data set of that name"):
        load_dataset("photso", CONFIG)


def test_another_decoder_reads_again_and_equal_pixels_stay_the_same_data_set(
    image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_folder(image_folder, CONFIG)
    monkeypatch.setattr("domainfusion.data.folders.DECODER", 99)
    assert load_folder(image_folder, CONFIG).fingerprint == first.fingerprint
    assert len(list((cache / "images").glob("*/images.npy"))) == 2


def test_the_fingerprint_is_of_what_a_folder_holds_and_not_of_where_or_when(image_folder: Path, tmp_path: Path) -> None:
    first = load_folder(image_folder, DataConfig(size=16)).fingerprint
    copied = shutil.copytree(image_folder, tmp_path / "elsewhere", copy_function=shutil.copy)  # with new times
    assert load_folder(copied, DataConfig(size=16)).fingerprint == first
    assert load_folder(copied, DataConfig(size=8)).fingerprint != first
    path = copied / "cartoon" / "cat" / "00.png"
    Image.new("RGB", (16, 16), "red").save(path)
    changed = load_folder(copied, DataConfig(size=16)).fingerprint
    assert changed != first
    path.rename(path.with_name("0.png"))
    assert load_folder(copied, DataConfig(size=16)).fingerprint not in (first, changed)
    (copied / "cartoon").rename(copied / "comic")
    assert load_folder(copied, DataConfig(size=16)).fingerprint not in (first, changed)


def test_unknown_domains_are_refused_with_the_nearest(image_folder: Path) -> None:
    dataset = load_folder(image_folder, CONFIG)
    assert dataset.index_of("sketch") == 2
    with pytest.raises(UsageError, match="unknown domain 'scetch'; did you mean 'sketch'"):
        dataset.index_of("scetch")


def test_prompts_name_classes_in_words(image_folder: Path) -> None:
    dataset = dataclasses.replace(load_folder(image_folder, CONFIG), classes=("Alarm_Clock", "T-shirt", "dog"))
    assert dataset.words() == ("alarm clock", "t shirt", "dog")
    assert dataclasses.replace(dataset, class_words=("a", "b", "c")).words() == ("a", "b", "c")


class TestNames:
    STRANGE = ("two words", "quo\"te's", "emoji 🐱", "new\nline", "Ünïcode", "-dash", "per%cent", "comma,tab\t")

    def test_strange_names_are_read_as_they_are(self, make_image_folder: Callable[..., Path]) -> None:
        root = make_image_folder("strange\nname 🐶", domains=self.STRANGE, classes=("a b", "c\nd"), count=1)
        for dataset in (load_folder(root, CONFIG), load_folder(root, CONFIG)):  # decoded, and from the cache
            assert dataset.domains == tuple(sorted(self.STRANGE))
            assert dataset.classes == ("a b", "c\nd")
            assert dataset.name == "strange\nname 🐶"
            for row, key in enumerate(dataset.keys):
                assert np.array_equal(dataset.images[row], pixels(root / key))

    @byte_names
    def test_file_names_that_are_not_utf8_are_read(self, image_folder: Path) -> None:
        old = image_folder / "photo" / "cat" / "05.png"
        odd = os.fsdecode(os.fsencode(old.parent) + b"/caf\xe9.png")
        os.rename(old, odd)
        for _ in range(2):
            dataset = load_folder(image_folder, CONFIG)
            assert os.fsencode(dataset.keys[36 + 11]) == b"photo/cat/caf\xe9.png"
