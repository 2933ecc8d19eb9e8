"""The cache of decoded images: each image once, whoever reads it, and again when it or the size has changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainfusion.config import DataConfig
from domainfusion.data import folders
from domainfusion.data.decoded import DecodedImages, shorten_array
from domainfusion.data.domains import MultiDomainDataset, load_folder
from domainfusion.errors import FileError, Interrupted

CONFIG = DataConfig(size=20)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def folder_of(cache: Path) -> Path:
    """Where the one data set that was decoded is."""
    (found,) = (path for path in (cache / "images").iterdir() if path.is_dir())
    return found


class TestCache:
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

    def test_a_signal_leaves_nothing_and_what_a_kill_left_goes(
        self, image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The whole array is reserved before the first image: what is left of it fills the disk."""
        read = folders.read_image

        def stop(path: Path, size: int) -> np.ndarray:
            if path.name == "03.png":
                os.kill(os.getpid(), signal.SIGTERM)
            return read(path, size)

        with monkeypatch.context() as patch:
            patch.setattr(folders, "read_image", stop)
            with pytest.raises(Interrupted, match="SIGTERM; what was under way is not kept"):
                load_folder(image_folder, CONFIG)
        assert [path for path in (cache / "images").iterdir() if path.is_dir()] == []
        load_folder(image_folder, CONFIG)
        built = folder_of(cache)
        left, other = built.with_name(f".{built.name}.abc"), built.with_name(".another.abc")
        for folder in (left, other):
            folder.mkdir()
            (folder / "images.npy").write_bytes(b"half")
        shutil.rmtree(built)
        load_folder(image_folder, CONFIG)
        assert not left.exists()
        assert other.exists()

    def test_others_may_read_a_shared_cache(self, image_folder: Path, cache: Path) -> None:
        load_folder(image_folder, CONFIG)
        (cache / "plain").mkdir()
        assert folder_of(cache).stat().st_mode == (cache / "plain").stat().st_mode

    def test_a_cache_on_a_file_system_that_is_read_alone_is_not_damaged(
        self, image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        load_folder(image_folder, CONFIG)
        load = np.load

        def refuse(path: Path, *args: Any, **options: Any) -> Any:
            if options.get("mmap_mode") == "r+":
                raise OSError(errno.EROFS, "Read-only file system")
            return load(path, *args, **options)

        monkeypatch.setattr(np, "load", refuse)
        found = load_folder(image_folder, CONFIG)
        assert isinstance(found.images, DecodedImages)
        assert found.images.checks is not None
        assert "damaged" not in capsys.readouterr().err

    def test_an_array_is_shortened_in_its_place(self, tmp_path: Path) -> None:
        whole = np.random.default_rng(0).integers(0, 256, (1000, 3, 2), dtype=np.uint8)
        for count in (999, 7, 0):
            np.save(tmp_path / "a.npy", whole)
            shorten_array(tmp_path / "a.npy", count)
            np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), whole[:count])

    def test_a_damaged_cache_is_named_with_a_remedy(self, image_folder: Path, cache: Path) -> None:
        load_folder(image_folder, CONFIG)
        path = folder_of(cache) / "images.npy"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1])
        with pytest.raises(FileError, match=rf"{path.parent}.* delete"):
            load_folder(image_folder, CONFIG)

    def test_two_processes_build_it_once(self, image_folder: Path, tmp_path: Path, cache: Path) -> None:
        program = """
import hashlib, sys, time
from pathlib import Path
from domainfusion.config import DataConfig
from domainfusion.data import domains, folders

root, log = Path(sys.argv[1]), sys.argv[2]
original = folders.read_image

def recording(path, size):
    time.sleep(0.002)
    with open(log, "a") as file:
        file.write(path.name + "\\n")
    return original(path, size)

folders.read_image = recording
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
