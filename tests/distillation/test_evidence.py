"""Evidence for labels on a real tiny LDM: against losses and slopes written out pass by pass, and its store."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from children import start, wait_until
from counting import count_passes, run_out_above
from domainfusion import claims
from domainfusion.config import AuditConfig, DataConfig, DistillConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation import evidence as evidence_module
from domainfusion.distillation.content import image_keys
from domainfusion.distillation.evidence import Evidence, EvidenceStore, evidence_of, shortlist, spread
from domainfusion.distillation.slopes import draw
from domainfusion.errors import Interrupted
from domainfusion.json_lines import append_whole_lines, read_json_lines
from domainfusion.seeding import seed_hash

CONFIG = AuditConfig(
    confidences=(0.4, 1.0), pairs=2, rounds=2, keep=1, min_timestep=0.2, max_timestep=0.8, batch_size=7
)


@torch.no_grad()
def one_value(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, row: int, turn: int, label: int, pair: int, p: float
) -> tuple[float, float]:
    """Loss and slope of one image, label, pair and confidence, one pass at a time."""
    settings = DistillConfig(samples=CONFIG.pairs, min_timestep=0.2, max_timestep=0.8)
    key = int(image_keys(dataset.images[[row]])[0])
    draws = draw(ldm, 1, 16, settings, torch.Generator().manual_seed(seed_hash("audit", CONFIG.seed, key, turn)))
    image = resize(from_uint8(dataset.images[[row]]), 16).double()
    embed = ldm.prompt_embeds([dataset.words()[label]])
    tangent = (ldm.encode((p + 1e-5) * image) - ldm.encode((p - 1e-5) * image)) / 2e-5
    alpha = ldm.alphas_cumprod[draws.timesteps[pair]]
    losses, slopes = [], []
    for sign in (1, -1):
        noise = sign * draws.noise[pair].double()
        noisy = alpha.sqrt() * ldm.encode(p * image) + (1 - alpha).sqrt() * noise
        residual = ldm.unet(noisy, draws.timesteps[pair], embed).sample - noise
        losses.append(float(residual.square().mean()))
        slopes.append(float(alpha.sqrt() * (residual * tangent).mean()))
    return sum(losses) / 2, sum(slopes) / 2


def test_evidence_is_losses_and_slopes_written_out(exact_ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    rows = np.array([3, 11])
    tasks = np.array([[0, 0, 2], [1, 1, 0], [1, 0, 1]])
    found = evidence_of(exact_ldm, dataset, rows, tasks, list(dataset.words()), CONFIG)
    assert found.shape == (3, 2, 2, 2)
    for (i, turn, label), values in zip(tasks.tolist(), found, strict=True):
        for pair in range(2):
            for level, p in enumerate(CONFIG.confidences):
                loss, slope = one_value(exact_ldm, dataset, int(rows[i]), turn, label, pair, p)
                assert values[pair, level, 0] == pytest.approx(loss, rel=2e-3)
                assert values[pair, level, 1] == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_only_what_is_lacking_is_computed(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every label gets one round, the given one and its best rival both; other labels need only their own rounds."""
    spent = count_passes(ldm, monkeypatch)
    store = EvidenceStore(dataset, "tiny", CONFIG)
    rows = np.array([0, 4, 9, 17])
    each = 2 * CONFIG.pairs * len(CONFIG.confidences)
    found = store.collect(lambda: ldm, rows, dataset.labels[rows], progress=False)
    assert sum(spent) == each * (4 * 3 + 4 * 2) == found.passes
    tried = np.isfinite(found.losses).all((-1, -2))  # (n, K, R)
    assert tried[:, :, 0].all()
    assert tried[:, :, 1].sum(1).tolist() == [2] * 4
    assert tried[np.arange(4), dataset.labels[rows], 1].all()

    def not_needed() -> LatentDiffusion:
        raise AssertionError("the LDM was loaded for what is there")

    again = EvidenceStore(dataset, "tiny", CONFIG).collect(not_needed, rows, dataset.labels[rows], progress=False)
    np.testing.assert_array_equal(again.losses, found.losses)
    spent.clear()
    changed = dataset.labels[rows].copy()
    untried = int(np.flatnonzero(~tried[2, :, 1])[0])
    changed[2] = untried
    more = store.collect(lambda: ldm, rows, changed, progress=False)
    assert sum(spent) == each  # the new label's second round
    known = np.isfinite(found.slopes) & np.isfinite(more.slopes)
    np.testing.assert_array_equal(more.slopes[known], found.slopes[known])
    # What was computed for the other label changes nothing for the first.
    again = store.collect(not_needed, rows, dataset.labels[rows], progress=False)
    np.testing.assert_array_equal(again.losses, found.losses)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_another_number_of_rounds_keeps_those_there_are(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    """In one file of the table: rows with other numbers of rounds, some of them computed for both."""

    def collect(rounds: int, rows: np.ndarray, labels: np.ndarray = dataset.labels) -> Evidence:
        store = EvidenceStore(dataset, "tiny", dataclasses.replace(CONFIG, rounds=rounds))
        return store.collect(lambda: ldm, rows, labels[rows], progress=False)

    spent = count_passes(ldm, monkeypatch)
    first = collect(before, np.array([0, 4, 9]))
    untried = int(np.flatnonzero(~np.isfinite(first.losses[2]).all((-1, -2))[:, 1])[0])
    changed = dataset.labels.copy()
    changed[9] = untried
    spent.clear()
    collect(after, np.array([4, 9, 17]), changed)
    each = 2 * CONFIG.pairs * len(CONFIG.confidences)
    new_image, new_label, new_round = 3 + 2 * (after - 1), after - 1, max(0, after - before)
    assert sum(spent) == each * (new_image + new_label + 2 * new_round + new_round)
    spent.clear()
    again = collect(before, np.array([0, 4, 9]))
    np.testing.assert_array_equal(again.losses, first.losses)
    np.testing.assert_array_equal(again.slopes, first.slopes)
    assert not spent
    assert collect(after, np.array([4, 9, 17]), changed).losses.shape[2] == after
    assert not spent


def test_of_a_folder_with_other_labels_or_more_images_only_what_is_new_is_computed(
    ldm: LatentDiffusion, few_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = count_passes(ldm, monkeypatch)

    def collect() -> tuple[MultiDomainDataset, Evidence]:
        spent.clear()
        dataset = load_dataset(str(few_images), DataConfig(size=32))
        store = EvidenceStore(dataset, "tiny", CONFIG)
        return dataset, store.collect(lambda: ldm, np.arange(len(dataset)), dataset.labels, progress=False)

    def assert_same(one: tuple[MultiDomainDataset, Evidence], other: tuple[MultiDomainDataset, Evidence]) -> None:
        """What both know of an image is equal, wherever it is in the folder."""
        keys = [image_keys(np.asarray(dataset.images)).tolist() for dataset, _ in (one, other)]
        rows = [keys[1].index(key) for key in keys[0]]
        for name in ("losses", "slopes"):
            first, second = getattr(one[1], name), getattr(other[1], name)[rows]
            known = np.isfinite(first) & np.isfinite(second)
            assert known[:, :, 0].all()
            np.testing.assert_array_equal(first[known], second[known])

    each = 2 * CONFIG.pairs * len(CONFIG.confidences)
    before = collect()
    assert sum(spent) == each * 18 * (3 + 2)
    image = few_images / "photo" / "cat" / "01.png"
    image.rename(few_images / "photo" / "dog" / "00a.png")
    relabelled = collect()
    assert relabelled[0].fingerprint != before[0].fingerprint
    assert sum(spent) <= each  # the second round of the new label, or of its best rival
    assert_same(before, relabelled)
    Image.new("RGB", (20, 20), (9, 99, 200)).save(few_images / "cartoon" / "cat" / "000.png")
    grown = collect()
    assert len(grown[0]) == 19
    assert sum(spent) == each * (3 + 2)
    assert_same(relabelled, grown)


def test_what_several_tables_know_of_an_image_comes_together(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second knows of it what the first does not, and of another image; a third data set has it twice."""

    def store(name: str, rows: list[int]) -> EvidenceStore:
        part = dataclasses.replace(dataset, images=dataset.images[rows], fingerprint=name)
        return EvidenceStore(part, "tiny", CONFIG)

    whole = store("first", [4, 9]).collect(lambda: ldm, np.array([0]), dataset.labels[[4]], progress=False)
    untried = np.isnan(whole.losses[0])
    assert untried.any()
    other = store("second", [9, 4])
    values = np.full((2, *other._shape()), np.nan, dtype=np.float32)
    values[0, :, 0] = values[1][untried] = -1  # what nothing computes
    found = {"values": torch.from_numpy(values), "key": torch.from_numpy(image_keys(dataset.images[[9, 4]]))}
    other.table.folder.mkdir(parents=True)
    other.table.write(0, torch.arange(2), found)
    third = store("third", [9, 4, 4])
    assert third.take_over(np.arange(3)) == 3
    losses = third.load(np.arange(3)).losses
    np.testing.assert_array_equal(losses[0], values[0, ..., 0])
    np.testing.assert_array_equal(losses[[1, 2]], np.where(untried, -1, whole.losses[[0, 0]]))
    assert third.take_over(np.zeros(0, dtype=np.int64)) == 0


def test_a_signal_within_a_file_of_the_table_keeps_what_is_known(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_module, "MOST_ROWS", 2)
    spent = count_passes(ldm, monkeypatch)
    rows = np.array([0, 4, 9, 17])
    first_round = 2 * CONFIG.pairs * len(CONFIG.confidences) * 3  # passes of an image under its three labels

    def stop() -> None:
        if sum(spent) > 3 * first_round:  # in the second pair of images
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(evidence_module, "check", stop)
    store = EvidenceStore(dataset, "tiny", CONFIG)
    with pytest.raises(Interrupted):
        store.collect(lambda: ldm, rows, dataset.labels[rows], progress=False)
    tried = np.isfinite(store.load(rows).losses).all((-1, -2))[:, :, 0].all(1)
    assert tried.tolist() == [True, True, False, False]
    spent.clear()
    monkeypatch.setattr(evidence_module, "check", lambda: None)
    found = store.collect(lambda: ldm, rows, dataset.labels[rows], progress=False)
    assert sum(spent) == found.passes - 2 * first_round


def test_an_audit_goes_on_in_halves_where_memory_runs_out(
    exact_ldm: LatentDiffusion, dataset: MultiDomainDataset, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = np.array([2, 13])
    expected = EvidenceStore(dataset, "whole", CONFIG).collect(
        lambda: exact_ldm, rows, dataset.labels[rows], progress=False
    )
    run_out_above(exact_ldm, 3, monkeypatch)
    store = EvidenceStore(dataset, "halves", CONFIG)
    found = store.collect(lambda: exact_ldm, rows, dataset.labels[rows], progress=False)
    assert capsys.readouterr().err.count("out of memory in the audit (--batch-size): 3 at once") == 1
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)


def test_neither_company_nor_batch_size_matters(ldm: LatentDiffusion, dataset: MultiDomainDataset) -> None:
    whole = EvidenceStore(dataset, "a", CONFIG).collect(lambda: ldm, np.arange(18), dataset.labels, progress=False)
    config = dataclasses.replace(CONFIG, batch_size=64, keep=2)
    alone = EvidenceStore(dataset, "b", config).collect(lambda: ldm, np.array([5]), dataset.labels[[5]], progress=False)
    known = np.isfinite(whole.losses[5])
    np.testing.assert_allclose(alone.losses[0][known], whole.losses[5][known], rtol=1e-4)
    np.testing.assert_allclose(alone.slopes[0][known], whole.slopes[5][known], rtol=1e-3, atol=1e-6)


def test_other_settings_have_another_table(dataset: MultiDomainDataset) -> None:
    def key(fingerprint: str = "ldm", **options: object) -> str:
        return EvidenceStore(dataset, fingerprint, dataclasses.replace(CONFIG, **options)).key

    labels = dataclasses.replace(dataset, labels=np.roll(dataset.labels, 1))
    assert EvidenceStore(labels, "ldm", CONFIG).key == key()
    assert key(rounds=5, keep=2, ranking="losses", batch_size=3) == key()
    others = [key("other"), key(template="a {label}"), key(pairs=3), key(seed=1), key(max_timestep=0.7),
              key(confidences=(1.0,)), key(image_size=32)]  # fmt: skip
    assert len({key(), *others}) == 8


def test_misfit_takes_slopes_below_one_and_losses_at_the_top() -> None:
    rng = np.random.default_rng(0)
    losses, slopes = rng.normal(size=(2, 5, 3, 2, 4, 3)).astype(np.float32)
    evidence = Evidence(np.arange(5), losses, slopes, (0.2, 1.0, 0.6))
    np.testing.assert_allclose(evidence.misfit("losses"), losses[..., 1], rtol=1e-6)
    np.testing.assert_allclose(evidence.misfit("slopes"), (slopes[..., 0] + slopes[..., 2]) / 2, rtol=1e-5, atol=1e-7)
    first, second = evidence.misfit("losses"), evidence.misfit("slopes")
    np.testing.assert_allclose(evidence.misfit("both"), first / spread(first) + second / spread(second))
    per_label = first[:, :, 0].mean(-1)
    assert spread(first) == pytest.approx(float(np.std(per_label - per_label.mean(1, keepdims=True))))


def test_the_given_label_is_always_on_the_shortlist() -> None:
    misfit = np.array([[5.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    stay = shortlist(misfit, np.array([0, 0]), 2)
    assert stay.tolist() == [[True, True, True, False], [True, True, True, False]]
    assert shortlist(misfit, np.array([0, 3]), 9).all()


def test_processes_share_the_files_of_a_table(
    ldm: LatentDiffusion, dataset: MultiDomainDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass is made twice, and what comes out is what one process makes."""
    monkeypatch.setattr(evidence_module, "SHARD", 4)
    monkeypatch.setattr(claims, "PAUSE", 0.02)
    rows = np.arange(18)
    expected = EvidenceStore(dataset, "alone", CONFIG).collect(lambda: ldm, rows, dataset.labels, progress=False)
    log = tmp_path / "log"

    def noted(model: Any, data: Any, some: np.ndarray, tasks: np.ndarray, *rest: Any) -> np.ndarray:
        done = [line for line in read_json_lines(log) if line["process"] == os.getpid()]
        made = [[int(some[i]), int(turn), int(label)] for i, turn, label in tasks]
        append_whole_lines(log, [{"process": os.getpid(), "tasks": made}])
        if not done:  # both are within a file before one of them goes on
            (tmp_path / f"begun-{os.getpid()}").touch()
            wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
        return evidence_of(model, data, some, tasks, *rest)

    monkeypatch.setattr(evidence_module, "evidence_of", noted)
    store = EvidenceStore(dataset, "shared", CONFIG)
    children = [start(lambda: store.collect(lambda: ldm, rows, dataset.labels, progress=False)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    tasks = [tuple(task) for line in read_json_lines(log) for task in line["tasks"]]
    assert len(tasks) == len(set(tasks)) == 18 * 3 + 18 * 2
    found = store.collect(lambda: ldm, rows, dataset.labels, progress=False)
    np.testing.assert_array_equal(found.losses, expected.losses)
    np.testing.assert_array_equal(found.slopes, expected.slopes)
