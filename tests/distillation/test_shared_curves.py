"""Processes that tabulate the same curves at the same time: each file by one of them, and equal to the last bit."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from children import start, wait_until
from domainfusion import claims
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.distillation import curves as curves_module
from domainfusion.distillation.curve_rounds import KNOTS, curves_of
from domainfusion.distillation.curves import Curves, CurveStore
from domainfusion.json_lines import append_whole_lines, read_json_lines
from domainfusion.tensors import load_state
from draws import FEW_ROUNDS

ROWS = np.arange(10)
TWO = 2 * len(KNOTS)  # latents of two images, what is computed together


@pytest.fixture
def store(dataset: MultiDomainDataset, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> CurveStore:
    """Of ten images in three files."""
    monkeypatch.setattr(curves_module, "SHARD", 4)
    monkeypatch.setattr(curves_module, "SAVE_SECONDS", -1)  # each two images are written
    monkeypatch.setattr(claims, "PAUSE", 0.02)
    config = dataclasses.replace(FEW_ROUNDS, curve_rounds=2)
    return CurveStore(dataset, source_fingerprint(str(tiny_pipeline)), config, "{label}", 0)


def computed_alone(store: CurveStore, ldm: LatentDiffusion) -> tuple[Curves, list[dict[str, torch.Tensor]]]:
    """The table and its files, which are gone again."""
    whole = store.tabulate(ldm, ROWS, batch=TWO, progress=False)
    paths = sorted(store.folder.glob("shard-*.safetensors"))
    assert len(paths) == 3
    files = [load_state(path) for path in paths]
    for path in paths:
        path.unlink()
    return whole, files


def assert_equal(store: CurveStore, expected: tuple[Curves, list[dict[str, torch.Tensor]]]) -> None:
    found, (whole, files) = store.load(), expected
    assert all(torch.equal(getattr(found, name), getattr(whole, name)) for name in ("slopes", "errors", "rounds"))
    for number, file in enumerate(files):
        again = load_state(store.table.path(number))
        assert file.keys() == again.keys()
        assert all(torch.equal(again[name], file[name]) for name in file)


def note_work(log: Path, before: Callable[[list[dict[str, Any]]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on what is computed is written to `log`, by process; `before` is told what its process has done."""

    def noted(estimator: Any, data: Any, part: np.ndarray, *rest: Any, **options: Any) -> dict[str, torch.Tensor]:
        before([line for line in read_json_lines(log) if line["process"] == os.getpid()])
        append_whole_lines(log, [{"process": os.getpid(), "rows": part.tolist()}])
        return curves_of(estimator, data, part, *rest, **options)

    monkeypatch.setattr(curves_module, "curves_of", noted)


def rows_in(log: Path, process: int) -> list[int]:
    return [row for line in read_json_lines(log) if line["process"] == process for row in line["rows"]]


def test_no_two_processes_compute_the_same_file(
    ldm: LatentDiffusion, store: CurveStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = computed_alone(store, ldm)
    log = tmp_path / "log"

    def meet(done: list[dict[str, Any]]) -> None:
        if not done:  # both are within a file before one of them goes on
            (tmp_path / f"begun-{os.getpid()}").touch()
            wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)

    note_work(log, meet, monkeypatch)
    children = [start(lambda: store.tabulate(ldm, ROWS, batch=TWO, progress=False)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    by_process = [rows_in(log, child) for child in children]
    assert sorted(row for rows in by_process for row in rows) == ROWS.tolist()
    files = [{row // 4 for row in rows} for rows in by_process]
    assert all(files)
    assert sum(map(len, files)) == 3
    assert_equal(store, expected)


@pytest.mark.parametrize("killed", [False, True])
def test_what_another_has_begun_is_waited_for_and_taken_over_where_it_is_killed(
    ldm: LatentDiffusion, store: CurveStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    expected = computed_alone(store, ldm)
    log, parent, computed = tmp_path / "log", os.getpid(), store.computed

    def linger(done: list[dict[str, Any]]) -> None:
        if os.getpid() != parent and len(done) == 1:  # half of the first file is written
            (tmp_path / "begun").touch()
            wait_until(lambda: len(rows_in(log, parent)) == 6)
            time.sleep(0.1)
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)

    note_work(log, linger, monkeypatch)
    child = start(lambda: store.tabulate(ldm, ROWS[:4], batch=TWO, progress=False))
    wait_until((tmp_path / "begun").exists)
    found = store.tabulate(ldm, ROWS, batch=TWO, progress=False)
    status = os.waitpid(child, 0)[1]
    assert (os.WTERMSIG(status) if killed else status) == (signal.SIGKILL if killed else 0)
    assert rows_in(log, child) == ([0, 1] if killed else [0, 1, 2, 3])
    assert rows_in(log, parent) == [*range(4, 10), *([2, 3] if killed else [])]
    assert store.computed - computed == (8 if killed else 6)
    assert torch.equal(found.slopes, expected[0].slopes)
    assert_equal(store, expected)


def test_a_damaged_file_is_set_aside_by_one_process(
    ldm: LatentDiffusion, store: CurveStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others, which saw the damage too, leave what has been made since where it is."""
    made = store.tabulate(ldm, ROWS[:4], batch=TWO, progress=False)
    first, load = store.table.path(0), store.table._load
    whole = first.read_bytes()
    first.write_bytes(whole[:-9])

    def late(path: Path) -> Any:
        try:
            return load(path)
        finally:
            first.write_bytes(whole)  # another process is quicker

    with monkeypatch.context() as patch:
        patch.setattr(store.table, "_load", late)
        assert len(store.table.read(first)[0]) == 4
    assert first.read_bytes() == whole
    assert not first.with_suffix(".damaged").exists()
    assert torch.equal(store.load().slopes, made.slopes)
