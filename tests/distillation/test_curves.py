"""Curves on a real tiny LDM: read between the points of their grid, and kept on disk."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from children import answers
from counting import count_passes, run_out_above
from distillation.stores import make_store
from domainfusion.config import TrainConfig
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation import curves as curves_module
from domainfusion.distillation.curve_choice import reads_curves
from domainfusion.distillation.curve_rounds import GRID, KNOTS, curves_of
from domainfusion.distillation.curves import Curves
from domainfusion.distillation.shards import ShardedTable
from domainfusion.distillation.slopes import SlopeEstimator
from domainfusion.errors import Interrupted, UsageError
from domainfusion.experiments import tabulating
from domainfusion.experiments.tabulating import curve_store, tabulate_curves, tabulate_part, tabulation_text
from domainfusion.tensors import load_state
from draws import FEW_ROUNDS


def test_slopes_between_grid_points_are_interpolated() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, len(GRID), generator=generator)
    curves = Curves(torch.tensor(GRID), table, torch.zeros_like(table), torch.ones(5, dtype=torch.int64))
    p = torch.tensor([0.0, 0.02, 0.021, 0.3, 0.8, 0.93, 1.0])
    rows = np.array([4, 0, 1, 1, 3, 2, 4])
    expected = [np.interp(float(q), GRID, table[row].numpy()) for q, row in zip(p, rows, strict=True)]
    torch.testing.assert_close(curves.slopes_at(rows, p), torch.tensor(expected, dtype=torch.float32))


def test_a_table_grows_and_is_shared(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domainfusion.distillation.curves.SHARD", 4)
    store = make_store(dataset, tiny_pipeline)
    first = store.tabulate(ldm, np.array([0, 1, 5]), progress=False)
    assert (first.rounds > 0).nonzero().flatten().tolist() == [0, 1, 5]
    whole = make_store(dataset, tiny_pipeline).tabulate(ldm, np.arange(18), batch=16, progress=False)
    assert (whole.rounds == 3).all()
    assert torch.equal(whole.slopes[[0, 1, 5]], first.slopes[[0, 1, 5]])
    alone = curves_of(SlopeEstimator(ldm, FEW_ROUNDS), dataset, np.array([7]), list(dataset.words()), 16)
    torch.testing.assert_close(whole.slopes[7:8], alone["slopes"], rtol=1e-4, atol=1e-6)
    assert len(list(store.folder.glob("shard-*.safetensors"))) == 5


def test_a_damaged_shard_is_computed_again(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(dataset, tiny_pipeline)
    whole = store.tabulate(ldm, np.arange(18), progress=False)
    path = store.table.path(0)
    content = bytearray(path.read_bytes())
    content[-7] ^= 0x10
    path.write_bytes(content)
    again = store.tabulate(ldm, np.arange(18), progress=False)
    assert torch.equal(again.slopes, whole.slopes)
    assert "its curves are computed again" in capsys.readouterr().err


def test_curves_that_a_former_version_kept_without_numbers_are_computed_again(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tiny_pipeline: Path
) -> None:
    store = make_store(dataset, tiny_pipeline)
    rows = np.array([0, 1, 5])
    whole = store.tabulate(ldm, rows, progress=False)
    nothing = {name: getattr(whole, name)[[1]].clone() for name in ("slopes", "errors", "rounds")}
    nothing["slopes"][:] = torch.nan
    store.table.path(0).unlink()
    keys = torch.from_numpy(store.row_keys(rows))
    kept = {name: getattr(whole, name)[[0, 5]] for name in ("slopes", "errors", "rounds")}
    store.table.write(0, torch.tensor([0, 5]), kept | {"key": keys[[0, 2]]})
    store.table.write(0, torch.tensor([1]), nothing | {"key": keys[[1]]})
    assert store.missing(rows).tolist() == [1]
    other = make_store(dataclasses.replace(dataset, fingerprint="other"), tiny_pipeline)
    assert other.elsewhere(rows)[0].tolist() == [0, 5]
    again = store.tabulate(ldm, rows, progress=False)
    torch.testing.assert_close(again.slopes[rows], whole.slopes[rows], rtol=1e-3, atol=1e-6)


def test_other_settings_have_another_table(dataset: MultiDomainDataset, tiny_pipeline: Path) -> None:
    key = make_store(dataset, tiny_pipeline).key
    assert make_store(dataset, tiny_pipeline).key == key
    assert make_store(dataset, tiny_pipeline, samples=7, images_per_step=1, confidence_floor=0.1).key == key
    others: list[dict[str, object]] = [
        {"residual": "contrast"}, {"corruption": "blur"}, {"curve_samples": 4}, {"curve_of": "autograd"},
        {"max_timestep": 0.9}, {"weighting": "sigma"}, {"curve_detail": 2},
    ]  # fmt: skip
    assert len({key, *(make_store(dataset, tiny_pipeline, **options).key for options in others)}) == 8


def test_export_is_a_table_that_can_be_shipped(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tiny_pipeline: Path, tmp_path: Path
) -> None:
    store = make_store(dataset, tiny_pipeline)
    whole = store.tabulate(ldm, np.arange(18), progress=False)
    store.export(tmp_path / "table.safetensors")
    for path in store.folder.glob("shard-*"):
        path.unlink()
    fresh = make_store(dataset, tiny_pipeline)
    assert len(fresh.missing(np.arange(18))) == 18
    fresh.shipped = tmp_path / "table.safetensors"
    assert len(fresh.missing(np.arange(18))) == 0
    torch.testing.assert_close(fresh.load().slopes, whole.slopes, rtol=1e-3, atol=1e-6)
    assert set(load_state(tmp_path / "table.safetensors")) == {"slopes", "errors", "rounds", "key"}


def test_a_table_goes_on_in_halves_where_memory_runs_out(
    exact_ldm: LatentDiffusion, dataset: MultiDomainDataset, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = np.array([0, 5, 9])
    store = make_store(dataset, tiny_pipeline)
    expected = store.tabulate(exact_ldm, rows, progress=False).slopes[rows]
    for path in store.folder.glob("shard-*"):
        path.unlink()
    run_out_above(exact_ldm, 20, monkeypatch)
    sizes = count_passes(exact_ldm, monkeypatch)
    found = store.tabulate(exact_ldm, rows, progress=False)
    assert sizes[0] > 20
    assert sizes.count(16) > 1
    assert "out of memory in tabulating curves: 16 at once" in capsys.readouterr().err
    torch.testing.assert_close(found.slopes[rows], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_signal_within_a_file_of_the_table_keeps_what_is_known(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(12)
    seen: list[np.ndarray] = []
    store = make_store(dataset, tiny_pipeline)

    def slow(estimator: Any, data: Any, part: np.ndarray, *args: Any, **options: Any) -> dict[str, torch.Tensor]:
        if len(seen) == 2:
            raise Interrupted(signal.SIGTERM)
        seen.append(part)
        return curves_of(estimator, data, part, *args, **options)

    monkeypatch.setattr(curves_module, "curves_of", slow)
    with pytest.raises(Interrupted) as ended:
        store.tabulate(ldm, rows, batch=2 * len(KNOTS), progress=False)
    assert ended.tb is not None  # what was under way is still there, but its claim is not
    assert answers(lambda: [number == 0 for number in store.table.claim([0])]) == [True]
    np.testing.assert_array_equal(store.missing(rows), np.setdiff1d(rows, np.concatenate(seen)))
    assert len(np.concatenate(seen)) == 4
    monkeypatch.setattr(curves_module, "curves_of", curves_of)
    store.tabulate(ldm, rows, progress=False)
    assert not len(store.missing(rows))


def test_a_part_of_a_table_reads_no_other_files(
    few_images: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (curves_module, tabulating):
        monkeypatch.setattr(module, "SHARD", 8)  # 18 images in three files
    assert tabulate_part(str(few_images), config, np.arange(16)) == 16
    read, load = set(), ShardedTable._load

    def noted(self: ShardedTable, path: Path) -> Any:
        read.add(path.name)
        return load(self, path)

    monkeypatch.setattr(ShardedTable, "_load", noted)
    assert tabulate_part(str(few_images), config, np.arange(15, 18)) == 2
    assert read == {"shard-00001.safetensors", "shard-00002.safetensors"}
    assert not len(curve_store(str(few_images), config).missing(np.arange(18)))


def test_processes_share_a_table_by_its_files(
    few_images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (curves_module, tabulating):
        monkeypatch.setattr(module, "SHARD", 8)  # 18 images in three files
    second = tabulate_curves(str(few_images), config, shard=(1, 2))
    assert (second["computed"], second["tabulated"]) == (8, 8)
    assert "8 of 18 images tabulated" in tabulation_text(second)
    with pytest.raises(UsageError, match=r"--export: the table has 8 of 18 images"):
        tabulate_curves(str(few_images), config, shard=(1, 2), export=tmp_path / "table.safetensors")
    first = tabulate_curves(str(few_images), config, shard=(0, 2), export=tmp_path / "table.safetensors")
    assert (first["computed"], first["tabulated"]) == (10, 18)
    store = curve_store(str(few_images), config)
    assert not len(store.missing(np.arange(18)))
    shared = store.load()
    for path in store.folder.glob("shard-*"):
        path.unlink()
    tabulate_curves(str(few_images), config)
    torch.testing.assert_close(store.load().slopes, shared.slopes)
    for wrong in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UsageError, match="--shard"):
            tabulate_curves(str(few_images), config, shard=wrong)


def test_the_table_of_pictograms_comes_with_the_package_and_is_what_the_embedded_ldm_says() -> None:
    config = TrainConfig(target="ink")
    store = curve_store("pictograms", config)
    assert reads_curves(config, store.dataset, np.arange(1700), 64)
    assert not list(store.folder.glob("shard-*"))  # nothing but what is shipped
    shipped = store.load()
    assert (shipped.rounds > 0).all()
    rows = np.array([123, 3210])
    ldm = LatentDiffusion.load("embedded")
    found = curves_of(SlopeEstimator(ldm, store.config), store.dataset, rows, store.prompts, ldm.image_size)
    # The same draws; half precision and the processor's arithmetic are what is left.
    for name in ("slopes", "errors"):
        kept, made = getattr(shipped, name)[rows], found[name]
        assert float((kept - made).square().mean().sqrt()) < 0.1 * float(made.square().mean().sqrt())
