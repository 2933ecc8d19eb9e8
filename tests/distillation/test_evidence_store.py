"""The store of evidence for labels: what is known is not computed again, whatever rounds, labels and folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counting import count_passes
from domainfusion.config import AuditConfig, DataConfig
from domainfusion.data.content import image_keys
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation.evidence import Evidence, EvidenceStore

CONFIG = AuditConfig(
    confidences=(0.4, 1.0), pairs=2, rounds=2, keep=1, min_timestep=0.2, max_timestep=0.8, batch_size=7
)


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


def test_other_settings_have_another_table(dataset: MultiDomainDataset) -> None:
    def key(fingerprint: str = "ldm", **options: object) -> str:
        return EvidenceStore(dataset, fingerprint, dataclasses.replace(CONFIG, **options)).key

    labels = dataclasses.replace(dataset, labels=np.roll(dataset.labels, 1))
    assert EvidenceStore(labels, "ldm", CONFIG).key == key()
    assert key(rounds=5, keep=2, ranking="losses", batch_size=3) == key()
    others = [key("other"), key(template="a {label}"), key(pairs=3), key(seed=1), key(max_timestep=0.7),
              key(confidences=(1.0,)), key(image_size=32)]  # fmt: skip
    assert len({key(), *others}) == 8
