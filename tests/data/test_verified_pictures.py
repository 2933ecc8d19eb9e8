"""What verification finds by decoding: images that cannot be, and pictures that stand twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from domainfusion.data.duplicates import hash_of_image
from verifying import check, kinds, only


def test_images_that_cannot_be_decoded(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine")
    whole = root / "photo" / "dog" / "00.png"
    (root / "photo" / "dog" / "01.png").write_bytes(whole.read_bytes()[:-40])  # cut short: only a full decode tells
    (root / "photo" / "dog" / "02.png").write_bytes(b"")
    Image.open(whole).save(root / "photo" / "dog" / "99.jpg", quality=95)
    jpeg = (root / "photo" / "dog" / "99.jpg").read_bytes()
    (root / "photo" / "dog" / "99.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    found = only(check(root), "unreadable")
    assert [line.split(": ")[0] for line in found.where] == [
        f"photo/dog/{name}" for name in ("01.png", "02.png", "99.jpg")
    ]
    assert check(root, quick=True).ok


def test_a_link_to_nothing_cannot_be_decoded(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine")
    (root / "photo" / "dog" / "99.png").symlink_to("/unmounted/99.png")
    (root / "photo" / "dog" / ".98.png").symlink_to("/unmounted/98.png")
    (root / "photo" / "97.png").symlink_to("/unmounted/97.png")
    state = check(root)
    assert only(state, "unreadable").where == ("photo/dog/99.png: a link to /unmounted/99.png, which does not exist",)
    assert only(state, "misplaced").where == ("photo/97.png",)


def test_equal_pictures_leak_or_contradict(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder("mine")
    source = root / "photo" / "dog" / "00.png"
    # Another file format, the same pixels: a hash of the file would not see it.
    Image.open(source).save(root / "sketch" / "dog" / "copy.bmp")
    shutil.copy(root / "photo" / "cat" / "03.png", root / "photo" / "house" / "again.png")
    shutil.copy(root / "cartoon" / "cat" / "01.png", root / "cartoon" / "cat" / "twice.png")
    state = check(root)
    assert kinds(state) == {"leak", "two-labels"}
    assert only(state, "leak").where == ("photo/dog/00.png = sketch/dog/copy.bmp",)
    assert "1 in photo and sketch" in only(state, "leak").message
    assert only(state, "two-labels").where == ("photo/cat/03.png = photo/house/again.png",)
    assert only(state, "repeated").where == ("cartoon/cat/01.png = cartoon/cat/twice.png",)
    assert only(state, "repeated").message == "1 image more of the same picture, domain and class"
    assert check(root, quick=True).ok


def test_the_hash_is_of_the_picture(tmp_path: Path) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.tiff")
    Image.fromarray(pixels.reshape(6, 4, 3)).save(tmp_path / "other_shape.png")
    changed = pixels.copy()
    changed[3, 5, 2] ^= 1
    Image.fromarray(changed).save(tmp_path / "changed.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half a circle
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    reference = hash_of_image(tmp_path / "a.png")
    assert hash_of_image(tmp_path / "b.tiff") == reference
    assert hash_of_image(tmp_path / "turned.png") == reference
    assert hash_of_image(tmp_path / "other_shape.png") != reference
    assert hash_of_image(tmp_path / "changed.png") != reference
    grey = np.arange(16, dtype=np.uint16).reshape(4, 4) * 1000
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey + 1).save(tmp_path / "grey1.png")  # 8 bits would not tell them apart
    assert hash_of_image(tmp_path / "grey.png") != hash_of_image(tmp_path / "grey1.png")
