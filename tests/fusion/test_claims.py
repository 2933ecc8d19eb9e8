"""Processes that make the same candidates: what one has begun the others leave to it, unless it dies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.files import open_lock
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path
from domainfusion.fusion.candidates import Making
from domainfusion.fusion.image_cache import claimed

CONFIG = GenerateConfig(candidates=2, steps=2, batch_size=4)


def test_a_claim_holds_against_other_processes_and_ends_with_its_own(tmp_path: Path) -> None:
    numbers = np.array([3, 7, 8, 900_000_000_000])
    with open_lock(tmp_path / "claims") as descriptor:
        with claimed(descriptor, numbers[:3]) as ours:
            assert ours.all()
            assert in_child(lambda: claims_of(tmp_path, numbers)) == [False, False, False, True]
        assert in_child(lambda: claims_of(tmp_path, numbers)) == [True] * 4


def claims_of(folder: Path, numbers: np.ndarray) -> list[bool]:
    with open_lock(folder / "claims") as descriptor, claimed(descriptor, numbers) as ours:
        return ours.tolist()


def in_child(work: Callable[[], list[bool]]) -> list[bool]:
    """What `work` returns in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, bytes(work()))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = list(map(bool, pipe.read()))
    assert os.waitpid(child, 0)[1] == 0
    return found


def test_what_another_process_has_begun_is_waited_for_and_made_where_that_dies(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(0, 40, 2)
    plain = Making(ldm, dataset, rows, CONFIG, number=0, styles=ldm.styles)
    expected = np.concatenate([plain.make(np.arange(part.start, part.stop)) for part in plain.parts()])
    cache = CandidateCache(cache_path(ldm, dataset, CONFIG, 0, ldm.styles), dataset, CONFIG)
    stored, dead = rows[:8], rows[8:16]  # a part that the other process finishes, and one that it does not
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        with open_lock(cache.path.with_suffix(".claims")) as descriptor, claimed(descriptor, rows[:16]):
            os.write(begun, b".")
            time.sleep(0.5)
            cache.store(stored, expected[:8])
            time.sleep(0.2)
            os._exit(0)
    assert os.read(ready, 1) == b"."
    made: list[int] = []
    make = Making.make

    def noting(self: Making, positions: np.ndarray) -> np.ndarray:
        made.extend(self.rows[positions].tolist())
        return make(self, positions)

    monkeypatch.setattr(Making, "make", noting)
    plain.fill(cache, wait=False, progress=False)
    assert sorted(made) == rows[16:].tolist()  # at once, without the other's
    plain.fill(cache, progress=False)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(made) == sorted([*rows[16:].tolist(), *dead.tolist()])
    assert np.array_equal(cache.images[rows], expected)
