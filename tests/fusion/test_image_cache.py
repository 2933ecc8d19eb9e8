"""The array of made images: what counts as there, and sharing what is missing with other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from domainfusion import claims
from domainfusion.errors import Interrupted
from domainfusion.fusion.image_cache import BLOCK, ImageCache
from domainfusion.interruption import stoppable

COUNT = 3 * BLOCK + 5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "key.npy"


def test_what_is_stored_is_there_for_the_next(path: Path) -> None:
    cache = ImageCache(path, COUNT, 2, 4)
    places = np.array([70, 3, 131])
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3), dtype=np.uint8)
    assert cache.missing(places).tolist() == places.tolist()
    cache.store(places, images, 6.0)
    again = ImageCache(path, COUNT, 2, 4)
    assert np.array_equal(again.images[places], images)
    assert again.seconds[places].tolist() == [2, 2, 2]
    assert again.missing(np.array([3, 4, 70, 71])).tolist() == [4, 71]
    path.unlink()  # to free space
    assert len(ImageCache(path, COUNT, 2, 4).missing(places)) == 3


def test_the_space_is_taken_when_the_array_is_made(path: Path) -> None:
    """A mapped file with holes ends the process with a bus error where the disk fills up."""
    images = ImageCache(path, COUNT, 1, 32).images
    assert path.stat().st_blocks * 512 >= images.nbytes > 500_000


def test_claims_are_blocks_of_what_is_missing(path: Path) -> None:
    cache = ImageCache(path, COUNT, 1, 4)
    cache.store(np.array([1, 65]), np.zeros((2, 1, 4, 4, 3), dtype=np.uint8), 0.0)
    parts = []
    for part in cache.claim(np.array([0, 1, 2, 64, 65, 66, COUNT - 1])):
        parts.append(part.tolist())
        cache.store(part, np.ones((len(part), 1, 4, 4, 3), dtype=np.uint8), 1.0)
    assert parts == [[0, 2], [64, 66], [COUNT - 1]]
    assert list(cache.claim(np.array([0, 66]))) == []


HOLD = """
import sys
from pathlib import Path
import numpy as np
from domainfusion.fusion.image_cache import ImageCache
cache = ImageCache(Path(sys.argv[1]), int(sys.argv[2]), 1, 4)
for part in cache.claim(np.array([0, 64])):
    print(part.tolist(), flush=True)
    if sys.stdin.readline() == "store\\n":
        cache.store(part, np.full((len(part), 1, 4, 4, 3), 9, dtype=np.uint8), 1.0)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_block_that_another_process_is_at_comes_last_or_not_at_all(
    path: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PAUSE", 0.05)
    command = [sys.executable, "-c", HOLD, str(path), str(COUNT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "[0]\n"
        cache = ImageCache(path, COUNT, 1, 4)
        parts = []
        for part in cache.claim(np.array([0, 1, 64, 130])):
            parts.append(part.tolist())
            cache.store(part, np.full((len(part), 1, 4, 4, 3), 5, dtype=np.uint8), 1.0)
            if parts[-1] == [130]:
                if killed:
                    other.kill()
                else:
                    other.stdin.write("store\n")
                    other.stdin.close()
                other.wait()
    assert parts == [[64], [130], [0, 1]] if killed else parts == [[64], [130], [1]]
    assert cache.images[0].max() == (5 if killed else 9)


def test_a_signal_is_honoured_between_blocks(path: Path) -> None:
    cache = ImageCache(path, COUNT, 1, 4)

    def fill() -> None:
        with stoppable():
            for part in cache.claim(np.arange(COUNT)):
                cache.store(part, np.ones((len(part), 1, 4, 4, 3), dtype=np.uint8), 1.0)
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        fill()
    assert (cache.seconds > 0).sum() == BLOCK
