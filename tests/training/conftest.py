"""Images and a finished run that the tests of training share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from short_runs import run


@pytest.fixture(scope="session")
def images(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image folder for all tests here, which only read it."""
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def original(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of eight steps, for `whole` to copy."""
    folder = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOMAINFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        run(images, folder / "run")
    return folder / "run"


@pytest.fixture
def whole(original: Path, tmp_path: Path) -> Path:
    """The folder of an uninterrupted run."""
    return Path(shutil.copytree(original, tmp_path / "whole"))
