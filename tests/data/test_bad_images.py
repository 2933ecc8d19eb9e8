"""Images of a folder that cannot be decoded: named, or left out and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainfusion.config import DataConfig
from domainfusion.data.domains import load_folder
from domainfusion.errors import DataError
from pictures import pixels

CONFIG = DataConfig(size=20)


class TestBadImages:
    @pytest.fixture
    def damaged(self, image_folder: Path) -> Path:
        path = image_folder / "photo" / "dog" / "03.png"
        path.write_bytes(path.read_bytes()[:200])
        return image_folder

    def test_the_image_is_named_with_a_remedy(self, damaged: Path) -> None:
        with pytest.raises(DataError, match=r"photo/dog/03\.png cannot be read as an image .*--data\.bad-images skip"):
            load_folder(damaged, CONFIG)

    def test_nothing_of_it_is_cached(self, damaged: Path, cache: Path) -> None:
        with pytest.raises(DataError):
            load_folder(damaged, CONFIG)
        assert [path for path in (cache / "images").iterdir() if path.is_dir()] == []

    @pytest.mark.parametrize("time", ["built", "cached"])
    def test_skip_leaves_it_out_and_says_so(self, damaged: Path, time: str) -> None:
        config = DataConfig(size=20, bad_images="skip")
        dataset = load_folder(damaged, config)
        if time == "cached":
            dataset = load_folder(damaged, config)
        assert len(dataset) == len(dataset.images) == len(dataset.keys) == len(dataset.domain_of) == 107
        assert "photo/dog/03.png" not in dataset.keys
        for row in range(len(dataset)):  # the rows after it moved up together
            assert np.array_equal(dataset.images[row], pixels(damaged / dataset.keys[row]))
            assert dataset.classes[dataset.labels[row]] == dataset.keys[row].split("/")[1]
        assert dataset.notes == ("left out 1 unreadable images: photo/dog/03.png",)

    @pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "I/O"), MemoryError()])
    def test_what_may_pass_is_not_left_out_for_good(
        self, image_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        """Left out once, the image would be missing from then on, and splits be others."""
        opened = Image.open

        def fail(path: Path, *rest: Any) -> Any:
            if Path(path).name == "03.png":
                raise error
            return opened(path, *rest)

        skip = DataConfig(size=20, bad_images="skip")
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", fail)
            with pytest.raises(DataError, match=r"03\.png cannot be read .*see to it, and run the same command again"):
                load_folder(image_folder, skip)
        found = load_folder(image_folder, skip)
        assert (len(found), found.notes) == (108, ())

    def test_a_link_to_nothing_is_an_image_that_cannot_be_read(self, image_folder: Path, tmp_path: Path) -> None:
        link = image_folder / "photo" / "dog" / "03.png"
        link.rename(tmp_path / "elsewhere.png")
        link.symlink_to(tmp_path / "gone.png")
        (image_folder / "photo" / "dog" / ".hidden.png").symlink_to("gone.png")
        (image_folder / "photo" / "dog" / "notes.txt").symlink_to("gone.txt")
        with pytest.raises(DataError, match=r"03\.png cannot be read .*\(a link to .*gone\.png, which does not"):
            load_folder(image_folder, CONFIG)
        skip = DataConfig(size=20, bad_images="skip")
        assert load_folder(image_folder, skip).notes == ("left out 1 unreadable images: photo/dog/03.png",)
        (tmp_path / "elsewhere.png").rename(tmp_path / "gone.png")  # the disk is there again
        assert len(load_folder(image_folder, skip)) == 108

    def test_metadata_may_name_a_link_to_nothing(self, image_folder: Path) -> None:
        paths = sorted(image_folder.rglob("*.png"))
        names = [path.relative_to(image_folder).as_posix() for path in paths]
        rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}\n" for name in names]
        (image_folder / "metadata.csv").write_text("file_name,label,domain\n" + "".join(rows))
        paths[5].unlink()
        paths[5].symlink_to("gone.png")
        assert load_folder(image_folder, DataConfig(size=20, bad_images="skip")).notes == (
            f"left out 1 unreadable images: {names[5]}",
        )

    def test_a_domain_of_bad_images_alone_is_named(self, make_image_folder: Callable[..., Path]) -> None:
        root = make_image_folder("bad", count=1)
        for path in (root / "photo").rglob("*.png"):
            path.write_bytes(b"no image")
        with pytest.raises(DataError, match=r"domain photo of .* has no readable image"):
            load_folder(root, DataConfig(size=20, bad_images="skip"))

    def test_a_class_of_bad_images_alone_keeps_its_number(self, make_image_folder: Callable[..., Path]) -> None:
        root = make_image_folder("bad", count=1)
        for domain in ("cartoon", "photo", "sketch"):
            (root / domain / "dog" / "00.png").write_bytes(b"no image")
        dataset = load_folder(root, DataConfig(size=20, bad_images="skip"))
        assert dataset.classes == ("cat", "dog", "house")
        assert set(dataset.labels.tolist()) == {0, 2}
