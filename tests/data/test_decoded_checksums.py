"""Checksums of decoded images: what is damaged in the cache is named and decoded again, never used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from domainfusion.config import DataConfig
from domainfusion.data import decoded as decoded_module
from domainfusion.data.domains import load_dataset, load_folder
from domainfusion.errors import FileError

CONFIG = DataConfig(size=20)


def forbid_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays on disk can be read from here on, and not be opened to be written to."""
    original = np.load

    def refuse(file: Path, mmap_mode: str | None = None, **options: object) -> np.ndarray:
        if mmap_mode == "r+":
            raise PermissionError(13, "Permission denied")
        return original(file, mmap_mode=mmap_mode, **options)

    monkeypatch.setattr(np, "load", refuse)


def flip_a_bit(path: Path, row: int, side: int = 20) -> None:
    """In the file, where every process that maps it sees it."""
    array = np.load(path, mmap_mode="r+")
    array[row, side // 2, side // 3, 1] ^= 64
    array.flush()


@pytest.mark.parametrize("key", [40, slice(30, 50), [3, 40], np.arange(108) == 40, (40, 2), (Ellipsis, 1), None])
def test_a_damaged_image_is_named_and_decoded_again(
    image_folder: Path, cache: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str], key: object
) -> None:
    sound = np.array(load_folder(image_folder, CONFIG).images)
    path = next(cache.glob("images/*/images.npy"))
    flip_a_bit(path, 40)
    assert (np.load(path) != sound).sum() == 1
    del decoded[:]
    images = load_folder(image_folder, CONFIG).images
    assert np.array_equal(images[key], sound[key])
    assert decoded == [image_folder / "photo" / "cat" / "04.png"]
    assert capsys.readouterr().err == (
        f"note: {path}: image 40 (photo/cat/04.png) is damaged in the cache; decoded again\n"
    )
    assert np.array_equal(np.load(path), sound)  # for all others too
    assert np.array_equal(load_folder(image_folder, CONFIG).images[:], sound)
    assert len(decoded) == 1


def test_an_image_is_compared_once(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_folder(image_folder, CONFIG)
    images = load_folder(image_folder, CONFIG).images
    compared: list[int] = []
    original = decoded_module.checksum

    def counting(pixels: np.ndarray) -> int:
        compared.append(1)
        return original(pixels)

    monkeypatch.setattr(decoded_module, "checksum", counting)
    for _ in range(3):
        batch = images[np.array([5, 7, 5])]
        assert type(batch) is np.ndarray
        assert sum(compared) == 2
    for _ in images:  # one by one
        pass
    assert sum(compared) == 108
    assert images[3:5].base is not None  # a view, of what has been compared
    assert not images[3:5].flags.writeable
    with pytest.raises(IndexError):
        images[108]
    assert not capsys.readouterr().err


def test_a_cache_of_an_older_version_gets_its_checksums(
    image_folder: Path, cache: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sound = np.array(load_folder(image_folder, CONFIG).images)
    path = next(cache.glob("images/*/images.npy"))
    sums = np.load(path.with_name("sums.npy"))
    path.with_name("sums.npy").unlink()
    images = load_folder(image_folder, CONFIG).images
    assert np.array_equal(images[:60], sound[:60])
    assert np.array_equal(np.load(path.with_name("sums.npy")), np.where(np.arange(108) < 60, sums, 0))
    flip_a_bit(path, 40)
    assert np.array_equal(load_folder(image_folder, CONFIG).images[:], sound)
    assert np.array_equal(np.load(path.with_name("sums.npy")), sums)
    assert len(decoded) == 109
    assert capsys.readouterr().err.count("decoded again") == 1


def test_damaged_checksums_cost_a_decoding_or_begin_anew(
    image_folder: Path, cache: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sound = np.array(load_folder(image_folder, CONFIG).images)
    path = next(cache.glob("images/*/sums.npy"))
    sums = np.load(path, mmap_mode="r+")
    right = np.array(sums)
    sums[9] ^= np.uint64(1)
    sums.flush()
    assert np.array_equal(load_folder(image_folder, CONFIG).images[:], sound)
    assert len(decoded) == 109
    assert np.array_equal(np.load(path), right)
    for content in (b"", b"no array", path.read_bytes()[:-8]):
        path.unlink()
        path.write_bytes(content)
        assert np.array_equal(load_folder(image_folder, CONFIG).images[:], sound)
        assert np.array_equal(np.load(path), right)
        # numpy opens a short one by adding zeros, which stand for no checksum yet.
        assert (f"{path} is damaged" in capsys.readouterr().err) == (len(content) < 100)
    assert len(decoded) == 109


def test_a_damaged_image_that_cannot_be_mended_is_an_error(
    image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_folder(image_folder, CONFIG)
    path = next(cache.glob("images/*/images.npy"))
    flip_a_bit(path, 40)
    images = load_folder(image_folder, CONFIG).images
    forbid_writing(monkeypatch)
    with pytest.raises(FileError, match=r"image 40 \(photo/cat/04.png\) is damaged and cannot be written.* delete"):
        images[38:41]


def test_a_cache_that_others_own_is_checked_too(
    image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checksums are read; where it has none, none are kept."""
    load_folder(image_folder, CONFIG)
    path = next(cache.glob("images/*/images.npy"))
    forbid_writing(monkeypatch)
    images = load_folder(image_folder, CONFIG).images
    assert images[:].sum() == np.load(path).sum()
    flip_bytes(path)
    with pytest.raises(FileError, match="image 107"):
        load_folder(image_folder, CONFIG).images[107]
    path.with_name("sums.npy").unlink()
    assert type(load_folder(image_folder, CONFIG).images) is np.memmap
    assert not capsys.readouterr().err.count("sums.npy")


def flip_bytes(path: Path) -> None:
    """The last byte, without a memory map."""
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def test_pictograms_are_checked_too(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    config = DataConfig(size=16)
    sound = np.array(load_dataset("pictograms", config).images)
    path = next(cache.glob("images/*/images.npy"))
    flip_a_bit(path, 1234, 16)
    assert np.array_equal(load_dataset("pictograms", config).images[1200:1300], sound[1200:1300])
    assert "image 1234 (" in capsys.readouterr().err
