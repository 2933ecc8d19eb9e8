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

from children import start, wait_until
from counting import count_passes, run_out_above
from domainfusion import claims
from domainfusion.config import AuditConfig, DistillConfig
from domainfusion.data.content import image_keys
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.data.transforms import from_uint8, resize
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.distillation import evidence as evidence_module
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
