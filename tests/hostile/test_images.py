"""Image files that are broken, strange or dangerous, and names that are."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from children import start
from file_names import BYTE_NAMES

RNG = np.random.default_rng(0)


def picture(side: int = 24, channels: int = 3) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (side, side, channels), dtype=np.uint8))


def png_of(side: int) -> bytes:
    """A PNG of side x side black pixels, one bit each, in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + (side + 7) // 8) * 1000) for _ in range(side // 1000)]
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(rows) + packer.flush())
            + chunk(b"IEND", b""))  # fmt: skip


def encoded(form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture().save(file, form, **options)
    return file.getvalue()


BROKEN = {
    "truncated.png": (lambda: encoded("PNG")[:-200], "truncated"),
    "truncated.jpg": (lambda: encoded("JPEG")[:-200], "truncated"),
    "header-only.webp": (lambda: encoded("WEBP")[:20], "cannot be read as an image"),
    "zero-byte.png": (lambda: b"", "cannot identify image file"),
    "text.jpg": (lambda: b"not an image\n", "cannot identify image file"),
    "bomb.png": (lambda: png_of(30_000), "900000000 pixels"),
    "smaller-bomb.png": (lambda: png_of(10_000), "100000000 pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_image_is_named_by_every_command(
    image_folder: Path, trained_run: Path, tmp_path: Path, command: Any, train: Any, untouched: Any, name: str
) -> None:
    content, reason = BROKEN[name]
    path = image_folder / "photo" / "cat" / name
    path.write_bytes(content())
    before = untouched(image_folder)
    said = train(image_folder)
    assert said.code == 1
    assert f"{path} cannot be read as an image" in said.err
    assert reason in said.err
    assert "--data.bad-images skip" in said.err
    assert not (tmp_path / "run").exists()
    verified = command("data", "verify", image_folder)
    assert verified.code == 1
    assert f"photo/cat/{name}" in verified.out
    predicted = command("predict", trained_run, path, image_folder / "photo" / "cat" / "00.png")
    assert predicted.code == 0  # one of two could be read
    rows = list(csv.DictReader(io.StringIO(predicted.out)))
    assert reason in rows[0]["error"]
    assert rows[1]["label"] in ("cat", "dog", "house")
    assert command("predict", trained_run, path).code == 1
    skipped = train(image_folder, "--data.bad-images", "skip")
    assert skipped.code == 0
    assert f"left out 1 unreadable images: photo/cat/{name}" in skipped.err
    assert untouched(image_folder) == before


def strange(folder: Path) -> dict[str, tuple[int, int, int] | None]:
    """Files that are odd and whole, with the colour that each shows throughout, if it is one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.full((8, 8), 0.5, np.float32)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "cmyk.tif")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(folder / "deep.png")
    Image.fromarray(grey).save(folder / "float.tif")
    Image.fromarray(np.full((8, 8), -7, np.int32)).save(folder / "negative.tif")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.save(folder / "palette.png", transparency=bytes([255, 0]))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (8, 4), "blue").save(folder / "rotated.jpg", exif=exif, quality=100)
    Image.new("RGB", (1, 1), "lime").save(folder / "one-pixel.png")
    Image.new("RGB", (8, 8), "red").save(folder / "png-named.jpg", "PNG")
    return {
        "cmyk.tif": (255, 0, 0), "deep.png": (255, 255, 255), "float.tif": (128, 128, 128), "negative.tif": (0, 0, 0),
        "palette.png": (255, 255, 255), "animated.gif": (255, 0, 0), "rotated.jpg": (0, 0, 255),
        "one-pixel.png": (0, 255, 0), "png-named.jpg": (255, 0, 0),
    }  # fmt: skip


def test_strange_images_are_what_they_show(
    image_folder: Path, trained_run: Path, tmp_path: Path, cache: Path, command: Any, train: Any
) -> None:
    colours = strange(image_folder / "photo" / "cat")
    assert train(image_folder).code == 0
    (index,) = cache.glob("images/*/index.json")
    keys = json.loads(index.read_text())["keys"]
    images = np.load(index.with_name("images.npy"))
    for name, colour in colours.items():
        found = images[keys.index(f"photo/cat/{name}")].astype(int)
        assert np.abs(found - colour).max() <= 2, name
    rows = list(csv.DictReader(io.StringIO(command("predict", trained_run, image_folder / "photo" / "cat").out)))
    assert len(rows) == 12 + len(colours)
    assert not any(row["error"] for row in rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(
    image_folder: Path, trained_run: Path, command: Any, train: Any, value: float
) -> None:
    pixels = np.full((8, 8), 0.5, np.float32)
    pixels[3, 3] = value
    path = image_folder / "photo" / "cat" / "not-finite.tif"
    Image.fromarray(pixels).save(path)
    said = train(image_folder)
    assert said.code == 1
    assert "not-finite.tif cannot be read as an image (ValueError: it holds values that are not finite)" in said.err
    assert command("predict", trained_run, path).code == 1
    verified = command("data", "verify", image_folder)
    assert verified.code == 1
    assert "not-finite.tif" in verified.out


NAMES = ("with space.png", "quo'te\".png", "new\nline.png", "emoji \N{GRINNING FACE}.png", "\u202eright-to-left.png",
         "\N{HEBREW LETTER ALEF}.png", "<script>alert(1)<.png", "semi;colon,.png", "-dash.png", "per%cent{}.png",
         "\x1b[2J.png")  # fmt: skip


def test_names_do_no_harm_anywhere(
    image_folder: Path, trained_run: Path, tmp_path: Path, command: Any, train: Any
) -> None:
    label = "<script>alert('x')<\n\"&b>"
    for domain in ("cartoon", "photo", "sketch"):
        (image_folder / domain / "house").rename(image_folder / domain / label)
    folder = image_folder / "photo" / label
    for name in NAMES:
        picture().save(folder / "x.png")
        (folder / "x.png").rename(folder / name)
    (folder / "broken\n\x1b[31m.png").write_bytes(b"x")
    if BYTE_NAMES:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    said = train(image_folder, "--data.bad-images", "skip")
    assert said.code == 0, said.err
    assert "\x1b" not in said.err
    for line in said.err.splitlines():
        assert line.startswith("note: ")
    assert command("report", tmp_path / "run", "--output", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert command("evaluate", tmp_path / "run").code == 0
    verified = command("data", "verify", image_folder)
    assert verified.code == 1
    assert "\x1b" not in verified.out
    predicted = command("predict", trained_run, folder)
    rows = list(csv.DictReader(io.StringIO(predicted.out, newline="")))
    assert {Path(row["file"]).name for row in rows} >= set(NAMES)
    assert "\x1b" not in predicted.err
    assert json.loads(command("predict", trained_run, folder, "--json").out)[0]["file"]


def test_links_that_lead_in_circles(image_folder: Path, trained_run: Path, command: Any, train: Any) -> None:
    (image_folder / "photo" / "cat" / "around").symlink_to(image_folder / "photo")
    (image_folder / "photo" / "cat" / "self.png").symlink_to("self.png")
    (image_folder / "photo" / "cat" / "gone.png").symlink_to("nowhere.png")
    assert "gone.png cannot be read as an image (a link to nowhere.png, which does not" in train(image_folder).err
    said = train(image_folder, "--data.bad-images", "skip")
    assert said.code == 0
    assert "left out 2 unreadable images: photo/cat/gone.png, photo/cat/self.png" in said.err
    verified = command("data", "verify", image_folder)
    assert verified.code == 1
    assert "2 images cannot be decoded" in verified.out
    predicted = command("predict", trained_run, image_folder)
    rows = {Path(row["file"]).name: row for row in csv.DictReader(io.StringIO(predicted.out))}
    assert rows["self.png"]["error"].endswith("does not exist")
    assert rows["00.png"]["error"] == ""
    # A domain that holds itself would have the other domains as its classes.
    (image_folder / "zzz").symlink_to(image_folder)
    for said in (train(image_folder, output="again"), command("data", "verify", image_folder)):
        assert said.code == 1
        assert "zzz is a link that leads back to" in said.err
    (image_folder / "a").symlink_to(image_folder / "b")
    (image_folder / "b").symlink_to(image_folder / "a")
    assert train(image_folder / "a", output="loop").code == 2


def as_nobody(work: Callable[[], None]) -> int:
    """The exit status of `work` in a child without root's rights."""

    def without_rights() -> None:
        os.setgid(65534)
        os.setuid(65534)
        work()

    return os.waitstatus_to_exitcode(os.waitpid(start(without_rights), 0)[1])


@pytest.mark.skipif(os.name != "posix", reason="rights are POSIX's")
@pytest.mark.parametrize("kind", ["file", "class", "domain", "root"])
def test_what_may_not_be_read_is_named(image_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As another user where the tests run as root, whom no rights stop."""
    from domainfusion.config import DataConfig
    from domainfusion.data.domains import load_folder
    from domainfusion.data.verification import verify_folder
    from domainfusion.errors import DataError

    path = {"file": image_folder / "photo/dog/00.png", "class": image_folder / "photo/dog",
            "domain": image_folder / "photo", "root": image_folder}[kind]  # fmt: skip
    name = path if kind != "root" else image_folder
    checks = {"train": lambda: load_folder(image_folder, DataConfig(size=16))}
    if kind != "file":  # a file that may not be read is one of the problems that are found
        checks["verify"] = lambda: verify_folder(image_folder, progress=False)

    def work() -> None:
        for check in checks.values():
            with pytest.raises(DataError) as caught:
                check()
            assert str(name) in str(caught.value)
            assert "ermission denied" in str(caught.value)

    monkeypatch.setenv("DOMAINFUSION_CACHE", str(image_folder.parent / "open"))
    (image_folder.parent / "open").mkdir(mode=0o777)
    (image_folder.parent / "open").chmod(0o777)
    parents = [p for p in image_folder.parents if p != Path("/") and os.stat(p).st_uid == os.getuid()]
    modes = {p: p.stat().st_mode for p in parents if not p.stat().st_mode & 0o001}
    try:
        if os.getuid() == 0:
            for parent in modes:
                parent.chmod(modes[parent] | 0o011)
        path.chmod(0)
        if os.getuid() == 0:
            assert as_nobody(work) == 0
        else:
            work()
    finally:
        path.chmod(0o755)
        for parent, mode in modes.items():
            parent.chmod(mode)


def test_a_folder_that_is_called_like_an_image(image_folder: Path, command: Any, train: Any) -> None:
    (image_folder / "photo" / "cat" / "folder.png").mkdir()
    assert train(image_folder).code == 0
    shutil.rmtree(image_folder / "photo" / "cat")
    (image_folder / "photo" / "cat").write_bytes(b"a file where a class was")
    assert train(image_folder, output="other").code == 0
