"""What verification says of the form of a folder: what lies elsewhere, other forms, and metadata."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from domainfusion.config import DataConfig
from domainfusion.data.benchmarks import BENCHMARKS
from domainfusion.data.domains import load_folder
from domainfusion.errors import DataError
from verifying import check, kinds, only

PACS = BENCHMARKS["PACS"]


def test_what_lies_elsewhere_is_noted(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine")
    shutil.copy(root / "photo" / "dog" / "00.png", root / "photo" / "loose.png")
    (root / "photo" / "dog" / "Thumbs.db").write_bytes(b"x")
    (root / ".hidden").mkdir()
    (root / "photo" / "dog" / "._00.png").write_bytes(b"x")
    state = check(root)
    assert state.ok
    assert only(state, "misplaced").where == ("photo/loose.png",)
    assert only(state, "other").where == ("photo/dog/Thumbs.db",)
    (root / "image_list").mkdir()
    assert only(check(root, quick=True), "domain-empty").where == ("image_list",)


def test_pictures_in_other_forms_are_to_be_converted(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine")
    for name in ("photo/dog/1.heic", "photo/dog/2.HEIC", "sketch/3.avif"):
        (root / name).write_bytes(b"x")
    state = check(root)
    assert [finding.kind for finding in state.notes] == ["unread"]
    assert only(state, "unread").message == (
        "pictures in a form that is not read, not used (2 .heic, 1 .avif); convert to .jpg or .png"
    )
    assert only(state, "unread").where == ("photo/dog/1.heic", "photo/dog/2.HEIC", "sketch/3.avif")
    for path in root.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds no images .*\(2 \.heic, 1 \.avif\); convert to \.jpg or \.png"):
        check(root)


def test_a_folder_around_the_data_set_is_told(make_image_folder: Callable[..., Path]) -> None:
    state = check(make_image_folder("archive/photos").parent, quick=True)
    found = next(finding for finding in state.problems if finding.kind == "domains")
    assert "archive/photos holds DOMAIN/CLASS/IMAGE too" in found.effect


def test_folders_of_another_form_say_which(make_image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = make_image_folder("data/PACS", domains=PACS.domains, classes=PACS.class_names, count=1)
    with pytest.raises(DataError, match=r"data/PACS does: give that path"):
        check(root.parent)
    with pytest.raises(DataError, match=r"holds no images in the form DOMAIN/CLASS/IMAGE"):
        check(root / "photo" / "dog")
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "PACS.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds archives \(PACS.zip\): unpack them first \(.*five benchmarks only"):
        check(tmp_path / "archives")


@pytest.mark.parametrize(
    ("domains", "classes", "advice"),
    [
        (
            ("CALTECH", "SUN"),
            ("0", "1", "2", "3", "4"),
            r"merge the splits with `domainfusion data prepare VLCS ",
        ),
        (("photo", "sketch"), PACS.class_names, r"merge the splits with `domainfusion data prepare PACS "),
        (("photo", "sketch"), ("circle", "square"), r"move the images of each class together, .* a metadata\.csv \("),
    ],
)
def test_splits_are_merged_as_the_data_set_wants_it(
    make_image_folder: Callable[..., Path],
    tmp_path: Path,
    domains: tuple[str, ...],
    classes: tuple[str, ...],
    advice: str,
) -> None:
    root = make_image_folder("one", domains=("photo",), classes=classes, count=1)
    for name in domains:
        for part in ("train", "test"):
            shutil.copytree(root / "photo", tmp_path / "split" / name / part)
    with pytest.raises(DataError, match=rf"DOMAIN/SPLIT/CLASS \(splits: test, train\): {advice}"):
        check(tmp_path / "split")


def test_a_folder_with_metadata_is_verified_by_it(tmp_path: Path, image_folder: Path) -> None:
    rows = ["file_name,label,domain"]
    for number, path in enumerate(sorted(image_folder.rglob("*.png"))):
        shutil.copy(path, tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{path.parent.name},{path.parent.parent.name}")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(flat / path.name)
    (flat / "metadata.csv").write_text("\n".join(rows))
    state = check(flat)
    assert state.ok
    assert state.form == "metadata"
    assert state.counts == check(image_folder).counts
    (flat / "metadata.csv").write_text("\n".join([*rows[:-1], rows[-1].replace("house", "cat")]))
    assert check(flat).ok  # a wrong label of a picture that occurs once cannot be seen
    shutil.copy(flat / "107.png", flat / "108.png")
    (flat / "metadata.csv").write_text("\n".join([*rows, "108.png,cat,sketch"]))
    assert kinds(check(flat)) == {"two-labels"}


def test_rows_without_an_image_images_without_a_row_and_domains_with_a_blank(image_folder: Path) -> None:
    names = [path.relative_to(image_folder).as_posix() for path in sorted(image_folder.rglob("*.png"))]
    rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in names]
    for name in (*names[2:4], names[40]):
        (image_folder / name).unlink()
    (image_folder / "photo" / "1.heic").write_bytes(b"x")
    rows[10] += " "  # of cartoon
    table = ["file_name,label,domain", *rows[:6], *rows[8:]]  # the seventh and eighth are in no row
    (image_folder / "metadata.csv").write_text("\n".join(table))
    state = check(image_folder)
    assert state.counts["cartoon"] == {"cat": 12 - 2 - 2 - 1, "dog": 12, "house": 12}
    assert kinds(state) == {"missing", "domain-spelling", "class-missing-in-domain"}
    missing = only(state, "missing")
    assert missing.message.startswith("3 images that the metadata names are missing")
    assert missing.where == (
        f"metadata.csv, line 4: {names[2]}", f"metadata.csv, line 5: {names[3]}", f"metadata.csv, line 40: {names[40]}",
    )  # fmt: skip
    spelled = only(state, "domain-spelling")
    assert spelled.where == ("cartoon", "cartoon ")
    assert "'cartoon', 'cartoon '" in spelled.message
    assert spelled.effect.endswith("correct the metadata")
    assert only(state, "unlisted").where == (names[6], names[7], "photo/1.heic")
    assert "3 pictures that the metadata does not list, not used" in only(state, "unlisted").message
    for path in image_folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"none of the images that the metadata of .* names is there: .* \(106 in all\)"
    ):
        check(image_folder)


def test_links_to_folders_that_are_gone_are_a_problem_and_a_note(image_folder: Path) -> None:
    (image_folder / "art").symlink_to("/unmounted/art")
    (image_folder / "photo" / "fish").symlink_to("/unmounted/fish")
    (image_folder / ".hidden").symlink_to("/unmounted/hidden")
    state = check(image_folder)
    assert kinds(state) == {"dead-link"}
    assert only(state, "dead-link").where == (
        "art: a link to /unmounted/art", "photo/fish: a link to /unmounted/fish",
    )  # fmt: skip
    assert check(image_folder, quick=True).problems == state.problems
    notes = load_folder(image_folder, DataConfig(size=20)).notes
    assert notes == (
        "art is a link to /unmounted/art, which does not exist: it was left out",
        "photo/fish is a link to /unmounted/fish, which does not exist: it was left out",
    )
