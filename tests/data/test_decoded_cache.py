"""The cache of decoded images: each image once, whoever reads it, and again when it or the size has changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainfusion.config import DataConfig
from domainfusion.data import decoded as decoded_module
from domainfusion.data import domains
from domainfusion.data.domains import MultiDomainDataset, load_dataset, load_folder
from domainfusion.data.images import read_image
from domainfusion.errors import FileError

CONFIG = DataConfig(size=20)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def forbid_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays on disk can be read from here on, and not be opened to be written to."""
    original = np.load

    def refuse(file: Path, mmap_mode: str | None = None, **options: object) -> np.ndarray:
        if mmap_mode == "r+":
            raise PermissionError(13, "Permission denied")
        return original(file, mmap_mode=mmap_mode, **options)

    monkeypatch.setattr(np, "load", refuse)


def folder_of(cache: Path) -> Path:
    """Where the one data set that was decoded is."""
    (found,) = (path for path in (cache / "images").iterdir() if path.is_dir())
    return found


class TestCache:
    @pytest.fixture
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The paths of the images decoded so far."""
        paths: list[Path] = []

        def recording(path: Path, size: int) -> np.ndarray:
            paths.append(path)
            return read_image(path, size)

        monkeypatch.setattr(domains, "read_image", recording)
        return paths

    def same(self, first: MultiDomainDataset, second: MultiDomainDataset) -> bool:
        arrays = all(
            np.array_equal(getattr(first, name), getattr(second, name)) for name in ("images", "labels", "domain_of")
        )
        names = all(
            getattr(first, name) == getattr(second, name) for name in ("domains", "classes", "keys", "fingerprint")
        )
        return arrays and names

    def test_nothing_is_decoded_twice(self, image_folder: Path, decoded: list[Path], cache: Path) -> None:
        first = load_folder(image_folder, CONFIG)
        assert len(decoded) == 108
        second = load_folder(image_folder, CONFIG)
        assert len(decoded) == 108
        assert self.same(first, second)
        assert isinstance(second.images, np.memmap)
        assert not second.images.flags.writeable
        assert (folder_of(cache) / "images.npy").exists()

    def test_a_changed_image_is_decoded_again(self, image_folder: Path, decoded: list[Path]) -> None:
        first = load_folder(image_folder, CONFIG)
        path = image_folder / "photo" / "cat" / "00.png"
        Image.new("RGB", (20, 20), (1, 2, 3)).save(path)
        second = load_folder(image_folder, CONFIG)
        assert len(decoded) == 216
        assert second.fingerprint != first.fingerprint
        assert second.images[36].tolist() == [[[1, 2, 3]] * 20] * 20

    def test_a_changed_image_of_the_same_length_is_decoded_again(self, image_folder: Path) -> None:
        path = image_folder / "photo" / "cat" / "00.bmp"
        Image.new("RGB", (20, 20), (1, 2, 3)).save(path)
        load_folder(image_folder, CONFIG)
        before = path.stat()
        Image.new("RGB", (20, 20), (3, 2, 1)).save(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        assert path.stat().st_size == before.st_size
        assert load_folder(image_folder, CONFIG).images[36][0, 0].tolist() == [3, 2, 1]

    def test_each_size_has_its_own(self, image_folder: Path, decoded: list[Path]) -> None:
        assert load_folder(image_folder, CONFIG).size == 20
        assert load_folder(image_folder, DataConfig(size=8)).size == 8
        assert len(decoded) == 216

    def test_what_augmentation_needs_does_not_matter(self, image_folder: Path, decoded: list[Path]) -> None:
        load_folder(image_folder, CONFIG)
        load_folder(image_folder, DataConfig(size=20, jitter=0.1, holdout_fraction=0.3))
        assert len(decoded) == 108

    def test_a_half_built_cache_is_built_anew(self, image_folder: Path, decoded: list[Path], cache: Path) -> None:
        first = load_folder(image_folder, CONFIG)
        folder = folder_of(cache)
        (folder / "index.json").unlink()
        (folder / "images.npy").unlink()  # not overwritten: `first` still reads it
        (folder / "images.npy").write_bytes(b"half")
        assert self.same(load_folder(image_folder, CONFIG), first)
        assert len(decoded) == 216

    def test_a_damaged_cache_is_named_with_a_remedy(self, image_folder: Path, cache: Path) -> None:
        load_folder(image_folder, CONFIG)
        path = folder_of(cache) / "images.npy"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1])
        with pytest.raises(FileError, match=rf"{path.parent}.* delete"):
            load_folder(image_folder, CONFIG)

    def flip_a_bit(self, path: Path, row: int, side: int = 20) -> None:
        """In the file, where every process that maps it sees it."""
        array = np.load(path, mmap_mode="r+")
        array[row, side // 2, side // 3, 1] ^= 64
        array.flush()

    @pytest.mark.parametrize("key", [40, slice(30, 50), [3, 40], np.arange(108) == 40, (40, 2), (Ellipsis, 1), None])
    def test_a_damaged_image_is_named_and_decoded_again(
        self, image_folder: Path, cache: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str], key: object
    ) -> None:
        sound = np.array(load_folder(image_folder, CONFIG).images)
        path = next(cache.glob("images/*/images.npy"))
        self.flip_a_bit(path, 40)
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
        self, image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
        self, image_folder: Path, cache: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        sound = np.array(load_folder(image_folder, CONFIG).images)
        path = next(cache.glob("images/*/images.npy"))
        sums = np.load(path.with_name("sums.npy"))
        path.with_name("sums.npy").unlink()
        images = load_folder(image_folder, CONFIG).images
        assert np.array_equal(images[:60], sound[:60])
        assert np.array_equal(np.load(path.with_name("sums.npy")), np.where(np.arange(108) < 60, sums, 0))
        self.flip_a_bit(path, 40)
        assert np.array_equal(load_folder(image_folder, CONFIG).images[:], sound)
        assert np.array_equal(np.load(path.with_name("sums.npy")), sums)
        assert len(decoded) == 109
        assert capsys.readouterr().err.count("decoded again") == 1

    def test_damaged_checksums_cost_a_decoding_or_begin_anew(
        self, image_folder: Path, cache: Path, decoded: list[Path], capsys: pytest.CaptureFixture[str]
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
        self, image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load_folder(image_folder, CONFIG)
        path = next(cache.glob("images/*/images.npy"))
        self.flip_a_bit(path, 40)
        images = load_folder(image_folder, CONFIG).images
        forbid_writing(monkeypatch)
        with pytest.raises(FileError, match=r"image 40 \(photo/cat/04.png\) is damaged and cannot be written.* delete"):
            images[38:41]

    def test_a_cache_that_others_own_is_checked_too(
        self, image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Its checksums are read; where it has none, none are kept."""
        load_folder(image_folder, CONFIG)
        path = next(cache.glob("images/*/images.npy"))
        forbid_writing(monkeypatch)
        images = load_folder(image_folder, CONFIG).images
        assert images[:].sum() == np.load(path).sum()
        self.flip_bytes(path)
        with pytest.raises(FileError, match="image 107"):
            load_folder(image_folder, CONFIG).images[107]
        path.with_name("sums.npy").unlink()
        assert type(load_folder(image_folder, CONFIG).images) is np.memmap
        assert not capsys.readouterr().err.count("sums.npy")

    def flip_bytes(self, path: Path) -> None:
        """The last byte, without a memory map."""
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            (last,) = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))

    def test_pictograms_are_checked_too(self, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
        config = DataConfig(size=16)
        sound = np.array(load_dataset("pictograms", config).images)
        path = next(cache.glob("images/*/images.npy"))
        self.flip_a_bit(path, 1234, 16)
        assert np.array_equal(load_dataset("pictograms", config).images[1200:1300], sound[1200:1300])
        assert "image 1234 (" in capsys.readouterr().err

    def test_two_processes_build_it_once(self, image_folder: Path, tmp_path: Path, cache: Path) -> None:
        program = """
import hashlib, sys, time
from pathlib import Path
from domainfusion.config import DataConfig
from domainfusion.data import domains

root, log = Path(sys.argv[1]), sys.argv[2]
original = domains.read_image

def recording(path, size):
    time.sleep(0.002)
    with open(log, "a") as file:
        file.write(path.name + "\\n")
    return original(path, size)

domains.read_image = recording
print("ready", flush=True)
sys.stdin.readline()
dataset = domains.load_folder(root, DataConfig(size=20))
print(hashlib.sha256(dataset.images.tobytes()).hexdigest(), len(dataset), flush=True)
"""
        log = tmp_path / "decoded.log"
        command = [sys.executable, "-c", program, str(image_folder), str(log)]
        both = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy())
            for _ in range(2)
        ]
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in both:  # both wait here, and start together
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=60)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        expected = np.stack([pixels(path) for path in sorted(image_folder.rglob("*.png"))])
        assert printed == [f"{hashlib.sha256(expected.tobytes()).hexdigest()} 108\n"] * 2
        assert len(log.read_text().splitlines()) == 108
        # One finished folder, and nothing half done beside it.
        assert len([path for path in (cache / "images").iterdir() if path.is_dir()]) == 1

    def test_the_index_can_be_read_by_people(self, image_folder: Path, cache: Path) -> None:
        dataset = load_folder(image_folder, CONFIG)
        index = json.loads((folder_of(cache) / "index.json").read_text(encoding="utf-8"))
        assert index["keys"] == list(dataset.keys)
        assert index["bad"] == []
