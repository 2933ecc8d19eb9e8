"""`domainfusion audit`: which labels of a data set are suspicious, and how well that is told.

The score of a label is how far it is behind the best of its rivals in what the LDM says (`distillation.evidence`), with
a standard error over the draws. The best of many rivals is chosen by the same draws, so the score of a right label is
less negative than it should be, and may be positive: the order is what counts, and the standard error does not hold
what the choice adds.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.config import AuditConfig
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.devices import choose_device
from domainfusion.diffusion.ldm import LatentDiffusion
from domainfusion.diffusion.ldm_source import source_fingerprint
from domainfusion.distillation.evidence import Evidence, EvidenceStore
from domainfusion.errors import UsageError, show_note
from domainfusion.experiments.label_losses import LabelLosses, find_runs, losses_by_trials, losses_of_runs
from domainfusion.experiments.planting import plant_labels, ranking_figures
from domainfusion.files import write_json, write_text
from domainfusion.interruption import stoppable
from domainfusion.report.audit import write_audit_page
from domainfusion.results.rankings import order_of
from domainfusion.results.tables import csv_table, text_table
from domainfusion.seeding import derive_numpy_rng

RANKINGS = ("both", "slopes", "losses")


@dataclasses.dataclass(frozen=True)
class Scores:
    """How far each of n given labels is behind its best rival."""

    score: np.ndarray  # (n,) positive where a rival fits better
    error: np.ndarray  # (n,) standard error of the difference over the draws
    rival: np.ndarray  # (n,) the label that fits best, the given one left out


def score_labels(misfit: np.ndarray, given: np.ndarray) -> Scores:
    """Scores of labels given (n,) by misfit (n, K, R, S), NaN where a label was not tried.

    Compared are the labels that had every round. The error is that of a stratified mean, the S pairs of a round being
    the strata: √(Σ_s var_s / R) / S with var_s over the R rounds of the differences between the two labels.
    """
    means = misfit.mean((-1, -2))  # NaN unless every round is there
    count = np.arange(len(given))
    rivals = np.where(np.isfinite(means), means, np.inf)
    rivals[count, given] = np.inf
    best = rivals.argmin(1)
    difference = misfit[count, given] - misfit[count, best]  # (n, R, S)
    rounds, strata = difference.shape[1:]
    error = np.sqrt(difference.var(1, ddof=1).sum(-1) / rounds) / strata
    return Scores(difference.mean((-1, -2)), error, best)


def choose_rows(dataset: MultiDomainDataset, config: AuditConfig) -> np.ndarray:
    """(n,) the rows to audit, ascending: all, or `images` of them drawn at random by the seed."""
    if not config.images or config.images >= len(dataset):
        return np.arange(len(dataset))
    return np.sort(derive_numpy_rng("audit images", config.seed).permutation(len(dataset))[: config.images])


@dataclasses.dataclass(frozen=True)
class Audit:
    """A data set under audit: its rows, and where its evidence is."""

    data: str
    dataset: MultiDomainDataset
    config: AuditConfig
    rows: np.ndarray
    store: EvidenceStore
    progress: bool = True

    def evidence(self, labels: np.ndarray) -> Evidence:
        """What the LDM says of the rows under their labels of labels (N,), computed where missing."""
        with stoppable():
            return self.store.collect(self._ldm, self.rows, labels[self.rows], progress=self.progress)

    def _ldm(self) -> LatentDiffusion:
        config = self.config
        return LatentDiffusion.load(config.ldm, device=choose_device(config.device), precision=config.precision)


def open_audit(data: str, config: AuditConfig, progress: bool = True) -> Audit:
    """The audit of `data`. Raises `UsageError` where it has fewer than two classes."""
    dataset = load_dataset(data, config.data)
    if len(dataset.classes) < 2:
        raise UsageError(f"{data} has one class only: no label has a rival")
    store = EvidenceStore(dataset, source_fingerprint(config.ldm), config)
    return Audit(data, dataset, config, choose_rows(dataset, config), store, progress)


def audit_labels(
    data: str, config: AuditConfig, output: Path, *, runs: tuple[Path, ...] = (), top: int = 20, progress: bool = True
) -> dict[str, Any]:
    """Rank the labels of `data`, write audit.csv, audit.json and audit.html to `output`, and return a summary.

    Args:
        runs: finished runs on the same images (or folders of them), whose classifiers rank the labels too.
        top: how many labels the summary and the page show.
    """
    audit = open_audit(data, config, progress)
    dataset, rows = audit.dataset, audit.rows
    losses = losses_of_runs(find_runs(runs), data, dataset, choose_device(config.device)) if runs else None
    started = time.monotonic()
    evidence = audit.evidence(dataset.labels)
    entries = describe_labels(
        dataset, rows, score_labels(evidence.misfit(config.ranking), dataset.labels[rows]), losses
    )
    for note in dataset.notes:
        show_note(note)
    found: dict[str, Any] = {
        "data": data, "name": dataset.name, "fingerprint": dataset.fingerprint, "size": dataset.size,
        "ldm": config.ldm, "ranking": config.ranking, "images": len(rows), "of": len(dataset),
        "passes": evidence.passes, "seconds": round(time.monotonic() - started, 1), "key": audit.store.key,
        "rivals": len(dataset.classes) - 1,
        "behind": sum(entry["score"] > 0 for entry in entries),
        "clearly_behind": sum(entry["score"] > 2 * entry["standard_error"] for entry in entries),
        "models": 0 if losses is None else losses.models,
        "trained_on": 0 if losses is None else int(losses.trained_on[rows].sum()),
        "labels": entries,
    }  # fmt: skip
    write_text(output / "audit.csv", csv_table(entries, list(entries[0]) if entries else ["rank"]))
    write_json(output / "audit.json", found)
    write_audit_page(output / "audit.html", found, dataset, top)
    return {**found, "labels": entries[:top], "output": str(output)}


def describe_labels(
    dataset: MultiDomainDataset, rows: np.ndarray, scores: Scores, losses: LabelLosses | None = None
) -> list[dict[str, Any]]:
    """An entry for each of rows (n,), the most suspicious first; with `losses` what the classifiers say beside it."""
    entries = []
    by_loss, suggested = None, None
    if losses is not None:
        by_loss, suggested = losses.losses(dataset.labels), losses.suggestions(dataset.labels)
        place = {int(rows[i]): rank for rank, i in enumerate(order_of(by_loss[rows]), start=1)}
    for rank, i in enumerate(order_of(scores.score).tolist(), start=1):
        row = int(rows[i])
        entry: dict[str, Any] = {
            "rank": rank, "row": row, "image": dataset.keys[row], "domain": dataset.domains[dataset.domain_of[row]],
            "given": dataset.classes[dataset.labels[row]], "suggested": dataset.classes[scores.rival[i]],
            "score": round(float(scores.score[i]), 6), "standard_error": round(float(scores.error[i]), 6),
        }  # fmt: skip
        if losses is not None and by_loss is not None and suggested is not None:
            entry |= {
                "classifier_rank": place[row], "classifier_loss": round(float(by_loss[row]), 4),
                "classifier_suggested": dataset.classes[suggested[row]], "trained_on": bool(losses.trained_on[row]),
            }  # fmt: skip
        entries.append(entry)
    return entries


def audit_text(found: dict[str, Any]) -> str:
    """The most suspicious labels as a table, and what was done."""
    heads = ["image", "given", "suggested", "score", "± s.e."]
    classified = bool(found["models"])
    rows = [heads + (["classifier", "rank", "trained on"] if classified else [])]
    for entry in found["labels"]:
        image = entry["image"] if entry["domain"] in entry["image"] else f"{entry['domain']}/{entry['image']}"
        cells = [image, entry["given"], entry["suggested"]]
        cells += [f"{entry['score']:+.3g}", f"{entry['standard_error']:.2g}"]
        if classified:
            cells += [
                entry["classifier_suggested"],
                str(entry["classifier_rank"]),
                "yes" if entry["trained_on"] else "no",
            ]
        rows.append(cells)
    lines = [
        f"{found['images']:,} of {found['of']:,} labels ranked by {found['ranking']}; behind a rival: "
        f"{found['behind']:,}, by more than two standard errors: {found['clearly_behind']:,}",
    ]
    if classified:
        lines.append(
            f"classifier: mean loss by {found['models']} model(s), of each image those not trained on it; "
            f"{found['trained_on']:,} images were trained on by all"
        )
    lines.append(f"all of them, and the pictures, are in {found['output']} (audit.csv, audit.json, audit.html)")
    return f"{text_table(rows)}\n\n" + "\n".join(lines)


def audit_planted(
    data: str, config: AuditConfig, output: Path, *, share: float, repeats: int = 1, runs: tuple[Path, ...] = (),
    trials: tuple[int, ...] = (0, 2, 4), steps: int = 400, backbone: str = "resnet10t", progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Plant wrong labels, and measure how well each ranking finds them; also written to `output`/planted.json.

    The labels that the data set has count as right, whatever they are: mistakes that were there before count against a
    ranking that finds them.

    Args:
        share: of the labels that become wrong.
        repeats: plantings that the LDM's rankings are measured on; classifiers, which learn from the labels, are
            trained for the first alone, and so is the comparison image by image.
        runs: classifiers of finished runs, trained on the labels as they are.
        trials: splits that classifiers are trained on here (none: no such classifier).
    """
    if not 0 < share < 1:
        raise UsageError(f"--plant {share:g} is not a share between 0 and 1")
    audit = open_audit(data, config, progress)
    dataset, rows = audit.dataset, audit.rows
    figures: dict[str, list[dict[str, float]]] = {}
    passes = 0
    for number in range(repeats):
        labels, planted = plant_labels(dataset.labels, len(dataset.classes), share, config.seed + number, rows)
        evidence = audit.evidence(labels)
        passes = evidence.passes
        for name in RANKINGS:
            scores = score_labels(evidence.misfit(name), labels[rows])
            figures.setdefault(name, []).append(ranking_figures(scores.score, planted[rows]))
            if number == 0:
                right = planted[rows] & (scores.rival == dataset.labels[rows])
                figures[name][0]["suggestion_right"] = float(right.sum() / planted[rows].sum())
    labels, planted = plant_labels(dataset.labels, len(dataset.classes), share, config.seed, rows)
    if trials:
        noisy = dataclasses.replace(dataset, labels=labels)
        own = losses_by_trials(noisy, config, trials, output, steps=steps, backbone=backbone, progress=progress)
        figures["classifier"] = [classifier_figures(own, labels, planted, dataset.labels, rows)]
    if runs:
        given = losses_of_runs(find_runs(runs), data, dataset, choose_device(config.device))
        figures["classifier of the runs"] = [classifier_figures(given, labels, planted, dataset.labels, rows)]
    found = {
        "data": data, "ldm": config.ldm, "images": len(rows), "share": share, "planted": int(planted[rows].sum()),
        "repeats": repeats, "seed": config.seed, "passes": passes, "trials": list(trials), "rankings": figures,
    }  # fmt: skip
    write_json(output / "planted.json", found)
    return found


def classifier_figures(
    losses: LabelLosses, labels: np.ndarray, planted: np.ndarray, true: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
    """`ranking_figures` of a classifier's losses on rows (n,), and the share of the images that it was trained on."""
    found = ranking_figures(losses.losses(labels)[rows], planted[rows])
    right = (planted & (losses.suggestions(labels) == true))[rows]
    return {
        **found, "suggestion_right": float(right.sum() / planted[rows].sum()),
        "trained_on": float(losses.trained_on[rows].mean()),
    }  # fmt: skip


def planted_text(found: dict[str, Any]) -> str:
    """The figures as a table, in per cent, with the standard deviation over plantings where there are several."""
    names = {"precision": f"precision at {found['planted']}", "recall_twice": f"recall at {2 * found['planted']}",
             "average_precision": "average precision", "suggestion_right": "suggestion right"}  # fmt: skip
    rows = [["ranking", "plantings", *names.values()]]
    for ranking, figures in found["rankings"].items():
        cells = [ranking, str(len(figures))]
        for name in names:
            values = 100 * np.array([entry[name] for entry in figures if name in entry])
            cells.append(f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""))
        rows.append(cells)
    return (
        f"{text_table(rows)}\n\n"
        f"{found['planted']} of {found['images']} labels planted wrong ({100 * found['share']:g} %: what "
        f"precision and average precision are by chance); in per cent, ± is the standard deviation over plantings\n"
        f"{found['passes']:,} passes of the U-Net, {found['passes'] / found['images']:,.0f} an image"
    )
