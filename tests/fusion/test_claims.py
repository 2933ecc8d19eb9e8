"""Processes that make the same candidates: what one has begun the others leave to it, unless it dies."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from domainfusion.claims import claimed
from domainfusion.config import GenerateConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.fusion.candidate_cache import CandidateCache, cache_path
from domainfusion.fusion.candidates import Making
from domainfusion.locks import open_lock

CONFIG = GenerateConfig(candidates=2, steps=2, batch_size=4)


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
            cache.store(stored, expected[:8], plain.keys_of(np.arange(8)))
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
