"""Curves on a real tiny LDM: against slopes taken one by one, their errors, their store, and training by them."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counting import count_passes, run_out_above
from domainfusion.algorithms.domainfusion import DomainFusion
from domainfusion.config import DataConfig, DistillConfig, GenerateConfig, TrainConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion import ldm as ldm_module
from domainfusion.diffusion.ldm import LatentDiffusion, source_fingerprint
from domainfusion.distillation import curve_rounds
from domainfusion.distillation import curves as curves_module
from domainfusion.distillation.corruption import degrade
from domainfusion.distillation.curve_rounds import GRID, curves_of
from domainfusion.distillation.curves import Curves, CurveStore, reads_curves
from domainfusion.distillation.slopes import SlopeEstimator, draw
from domainfusion.errors import Interrupted, UsageError
from domainfusion.experiments import tabulating
from domainfusion.experiments.runs import build_algorithm, build_context, train_run
from domainfusion.experiments.tabulating import curve_store, tabulate_curves, tabulation_text
from domainfusion.seeding import seed_hash
from domainfusion.tensors import load_state
from domainfusion.training.trainer import make_batch


@pytest.fixture(scope="module")
def ldm(tiny_pipeline: Path) -> LatentDiffusion:
    return LatentDiffusion.load(str(tiny_pipeline), precision="float32")


@pytest.fixture
def few_images(make_image_folder: Callable[..., Path]) -> Path:
    """3 domains x 3 classes x 2 images."""
    return make_image_folder("few", count=2)


@pytest.fixture
def dataset(few_images: Path) -> MultiDomainDataset:
    return load_dataset(str(few_images), DataConfig(size=32))


CONFIG = DistillConfig(estimator="curve", curve_samples=2, curve_rounds=3, curve_tolerance=0.0)


def rounds_one_by_one(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, row: int, p: float, config: DistillConfig
) -> np.ndarray:
    """(rounds,) estimates of one image's slope at one confidence, straight from the estimator."""
    single = dataclasses.replace(config, estimator=config.curve_of, samples=config.curve_samples // 2)
    image = resize(from_uint8(dataset.images[[row]]), 16)
    prompt = dataset.words()[dataset.labels[row]]
    values = []
    for number in range(config.curve_rounds):
        generator = torch.Generator().manual_seed(seed_hash("curve", row, number))
        draws = draw(ldm, 1, 16, single, generator)
        degraded = degrade(image, config.corruption, generator)
        estimator, at = SlopeEstimator(ldm, single), torch.tensor([p])
        mirrored = dataclasses.replace(draws, noise=-draws.noise)
        pair = [estimator.slopes(image, [prompt], at, one, degraded=degraded).item() for one in (draws, mirrored)]
        values.append(sum(pair) / 2)
    return np.array(values)


@pytest.mark.parametrize(
    ("of", "corruption", "residual"),
    [("score", "contrast", "plain"), ("score", "mask", "guided"), ("score", "blur", "contrast"),
     ("autograd", "contrast", "plain"), ("autograd", "pepper", "plain")],
)  # fmt: skip
def test_a_curve_is_its_slopes_taken_one_by_one(
    exact_ldm: LatentDiffusion, dataset: MultiDomainDataset, of: str, corruption: str, residual: str
) -> None:
    config = dataclasses.replace(CONFIG, curve_of=of, corruption=corruption, residual=residual)
    rows = np.array([1, 7, 16])
    found = curves_of(SlopeEstimator(exact_ldm, config), dataset, rows, list(dataset.words()), 16)
    assert found["rounds"].tolist() == [3, 3, 3]
    for i, row in enumerate(rows.tolist()):
        for g in (0, 4, len(GRID) - 1):
            values = rounds_one_by_one(exact_ldm, dataset, row, GRID[g], config)
            size = float(found["slopes"].abs().max())
            assert float(found["slopes"][i, g]) == pytest.approx(values.mean(), rel=1e-3, abs=1e-4 * size)
            error = values.std(ddof=1) / 3**0.5
            assert float(found["errors"][i, g]) == pytest.approx(error, rel=2e-2, abs=1e-3 * size)


def test_the_error_is_honest(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a reference of many more draws, curves are off by as much as their standard errors say."""
    monkeypatch.setattr(curve_rounds, "GRID", (0.02, 0.05, 0.1, 0.16, 0.24, 0.35, 0.5, 0.65, 0.8, 1.0))
    rows = np.arange(0, 18, 2)
    words = list(dataset.words())
    config = dataclasses.replace(CONFIG, curve_samples=4, curve_rounds=6)
    found = curves_of(SlopeEstimator(ldm, config), dataset, rows, words, 16)
    many = dataclasses.replace(config, curve_samples=32, curve_rounds=6, min_timestep=0.02)
    reference = curves_of(SlopeEstimator(ldm, many), dataset, rows, words, 16)
    scaled = (found["slopes"] - reference["slopes"]) / found["errors"].clamp_min(1e-12)
    # Student's t with 5 degrees of freedom has a root mean square of 1.29; confidences of an image err alike.
    assert 0.8 < float(scaled.square().mean().sqrt()) < 1.9
    assert float(reference["errors"].mean()) < 0.4 * float(found["errors"].mean())


def test_rounds_stop_where_a_curve_is_known(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    rows = np.arange(6)
    words = list(dataset.words())

    def rounds(tolerance: float) -> list[int]:
        config = dataclasses.replace(CONFIG, curve_tolerance=tolerance, curve_rounds=5)
        return curves_of(SlopeEstimator(ldm, config), dataset, rows, words, 16)["rounds"].tolist()

    assert rounds(1e6) == [2] * 6
    assert rounds(0.0) == [5] * 6
    strict = dataclasses.replace(CONFIG, curve_tolerance=0.5, curve_rounds=5)
    found = curves_of(SlopeEstimator(ldm, strict), dataset, rows, words, 16)
    error = found["errors"].square().mean(1).sqrt()
    size = found["slopes"].square().mean(1).sqrt()
    assert all(count == 5 or e <= 0.5 * s for count, e, s in zip(found["rounds"], error, size, strict=True))


def test_slopes_between_grid_points_are_interpolated() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, len(GRID), generator=generator)
    curves = Curves(torch.tensor(GRID), table, torch.zeros_like(table), torch.ones(5, dtype=torch.int64))
    p = torch.tensor([0.0, 0.02, 0.021, 0.3, 0.8, 0.93, 1.0])
    rows = np.array([4, 0, 1, 1, 3, 2, 4])
    expected = [np.interp(float(q), GRID, table[row].numpy()) for q, row in zip(p, rows, strict=True)]
    torch.testing.assert_close(curves.slopes_at(rows, p), torch.tensor(expected, dtype=torch.float32))


def make_store(dataset: MultiDomainDataset, tiny_pipeline: Path, **options: object) -> CurveStore:
    return CurveStore(
        dataset, source_fingerprint(str(tiny_pipeline)), dataclasses.replace(CONFIG, **options), "{label}", 0
    )


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
    alone = curves_of(SlopeEstimator(ldm, CONFIG), dataset, np.array([7]), list(dataset.words()), 16)
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


def test_other_settings_have_another_table(dataset: MultiDomainDataset, tiny_pipeline: Path) -> None:
    key = make_store(dataset, tiny_pipeline).key
    assert make_store(dataset, tiny_pipeline).key == key
    assert make_store(dataset, tiny_pipeline, samples=7, images_per_step=1, confidence_floor=0.1).key == key
    others: list[dict[str, object]] = [
        {"residual": "contrast"}, {"corruption": "blur"}, {"curve_samples": 4}, {"curve_of": "autograd"},
        {"max_timestep": 0.9}, {"weighting": "sigma"},
    ]  # fmt: skip
    assert len({key, *(make_store(dataset, tiny_pipeline, **options).key for options in others)}) == 7


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
    assert set(load_state(tmp_path / "table.safetensors")) == {"slopes", "errors", "rounds"}


# Training


@pytest.fixture
def config(tiny_pipeline: Path) -> TrainConfig:
    return TrainConfig(
        target="sketch", steps=3, batch_size=4, ldm=str(tiny_pipeline), precision="float32", evaluations=1,
        synthetic_weight=0, data=DataConfig(size=32), generate=GenerateConfig(candidates=2, steps=2), distill=CONFIG,
    )  # fmt: skip


def test_training_reads_the_table_and_loads_no_ldm(
    few_images: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tabulate_curves(str(few_images), config)
    assert found["computed"] == found["images"] == 18
    assert tabulate_curves(str(few_images), config)["computed"] == 0
    assert "18 of 18 images" in tabulation_text(found)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the LDM was loaded")

    monkeypatch.setattr(ldm_module.LatentDiffusion, "load", refuse)
    result = train_run(str(few_images), config, tmp_path / "run", progress=False)
    assert result["steps"] == 3
    algorithm = build_algorithm(build_context(str(few_images), config, tmp_path / "other", progress=False))
    assert isinstance(algorithm, DomainFusion)
    batch = make_batch(algorithm, 0)
    logits = algorithm.predict(batch.images)
    p = logits.softmax(-1)[torch.arange(len(batch.labels)), batch.labels]
    table = algorithm.curves
    assert table is not None
    slopes = [
        np.interp(float(q), GRID, table.slopes[row].numpy()) for q, row in zip(p.detach(), batch.rows, strict=True)
    ]
    expected = (torch.tensor(slopes, dtype=torch.float32) * p).mean()
    loss = algorithm.distill(batch, logits)
    torch.testing.assert_close(loss, expected)
    (by_loss,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (by_hand,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(by_loss, by_hand)
    assert by_loss.abs().max() > 0


@pytest.mark.parametrize(("curve_of", "corruption"), [("score", "contrast"), ("score", "pepper"), ("autograd", "mask")])
def test_curves_are_the_same_in_smaller_passes(
    exact_ldm: LatentDiffusion, dataset: MultiDomainDataset, curve_of: str, corruption: str
) -> None:
    config = dataclasses.replace(CONFIG, curve_of=curve_of, corruption=corruption)
    estimator, prompts = SlopeEstimator(exact_ldm, config), list(dataset.words())
    rows = np.array([1, 4])
    whole = curves_of(estimator, dataset, rows, prompts, 16)
    parts = curves_of(estimator, dataset, rows, prompts, 16, at_once=7)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


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
    with pytest.raises(Interrupted):
        store.tabulate(ldm, rows, batch=2 * len(GRID), progress=False)
    np.testing.assert_array_equal(store.missing(rows), np.setdiff1d(rows, np.concatenate(seen)))
    assert len(np.concatenate(seen)) == 4
    monkeypatch.setattr(curves_module, "curves_of", curves_of)
    store.tabulate(ldm, rows, progress=False)
    assert not len(store.missing(rows))


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


def test_training_tabulates_what_is_missing(few_images: Path, config: TrainConfig, tmp_path: Path) -> None:
    algorithm = build_algorithm(build_context(str(few_images), config, tmp_path / "run", progress=False))
    assert isinstance(algorithm, DomainFusion)
    assert algorithm.curves is not None
    known = set((algorithm.curves.rounds > 0).nonzero().flatten().tolist())
    assert known == set(algorithm.rows.tolist())  # the target's images, and the held-out ones, are left alone


def test_the_fingerprint_of_a_source_is_that_of_its_files(tiny_pipeline: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_pipeline, copy)
    assert source_fingerprint(str(copy)) == source_fingerprint(str(tiny_pipeline))
    (copy / "styles.json").unlink()  # says which words to use, not what is drawn
    assert source_fingerprint(str(copy)) == source_fingerprint(str(tiny_pipeline))
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", "0.013"))
    assert source_fingerprint(str(copy)) != source_fingerprint(str(tiny_pipeline))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 100}, False),  # a short run asks for fewer slopes than a table has
        ({"steps": 10**6}, True),
        ({"distill_weight": 0.0, "steps": 10**6}, False),
        ({"distill": DistillConfig(estimator="curve")}, True),
        ({"distill": DistillConfig(estimator="score"), "steps": 10**6}, False),
        # The table's passes: 6 images x 24 confidences x 2 draws x 2 rounds = 576; training's: 72 steps x 8 images.
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2), "steps": 72}, True),
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2), "steps": 71}, False),
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2, images_per_step=0), "steps": 36}, True),
        ({"distill": DistillConfig(curve_samples=2, curve_rounds=2, images_per_step=0), "steps": 35}, False),
    ],
)
def test_auto_takes_the_way_with_fewer_passes(
    dataset: MultiDomainDataset, tiny_pipeline: Path, changes: dict[str, Any], expected: bool
) -> None:
    config = TrainConfig(**{"ldm": str(tiny_pipeline), **changes})
    assert reads_curves(config, dataset, images=6, batch=16) is expected


def test_auto_reads_a_table_that_comes_with_the_package(
    dataset: MultiDomainDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(steps=1)
    assert not reads_curves(config, dataset, images=6, batch=16)
    monkeypatch.setattr(curves_module, "TABLES", tmp_path)
    store = CurveStore(dataset, source_fingerprint("embedded"), config.distill, config.generate.plain_template, 0)
    store.shipped.write_bytes(b"")
    assert reads_curves(config, dataset, images=6, batch=16)
    assert not reads_curves(dataclasses.replace(config, distill_weight=0.0), dataset, images=6, batch=16)


def test_the_table_of_pictograms_comes_with_the_package_and_is_what_the_embedded_ldm_says() -> None:
    config = TrainConfig(target="ink")
    store = curve_store("pictograms", config)
    assert reads_curves(config, store.dataset, images=1700, batch=64)
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
