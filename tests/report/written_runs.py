"""Run folders written by hand, as a finished run leaves them: for reports of any number of runs at no cost."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainfusion.config import DataConfig, TrainConfig
from domainfusion.config_files import to_toml
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.splits import build_split
from domainfusion.fusion.generation import sheet_positions
from domainfusion.fusion.synthetic import Generation, SyntheticDataset

CLASSES = ("<b>x", "a & b", "plain")
SIZE = 16


def write_pictures(folder: Path) -> Path:
    """A folder data set of three domains, three classes and 90 images."""
    rng = np.random.default_rng(0)
    for domain in ("ink", "photo", "pixel"):
        for name in CLASSES:
            place = folder / domain / name
            place.mkdir(parents=True)
            for k in range(10):
                Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(place / f"{k}.png")
    return folder


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_run(
    folder: Path, root: Path, algorithm: str, accuracy: float, *, target: str | None = "pixel", trial: int = 0,
    **options: Any,
) -> Path:  # fmt: skip
    """A finished run; `accuracy` is the share of the target's 24 images that are right."""
    folder.mkdir(parents=True)
    config = TrainConfig(
        algorithm=algorithm, target=target, trial=trial, seed=trial, data=DataConfig(size=SIZE), **options
    )
    dataset = load_dataset(str(root), config.data)
    split = build_split(dataset, config.data, target, trial)
    (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
    versions = {"torch": "2.14.1"}
    dump(folder / "environment.json", {"python": "3.11", "processor": "abacus", "gpu": None, "versions": versions})
    data = {
        "data": str(root), "name": dataset.name, "fingerprint": dataset.fingerprint, "images": len(dataset),
        "domains": list(dataset.domains), "classes": list(dataset.classes), "size": SIZE, "protocol": split.protocol,
        "sources": list(split.sources), "target": target, "test": len(split.test), "steps_per_epoch": 1,
        "train": {domain: len(rows) for domain, rows in split.train.items()},
        "validation": {domain: len(rows) for domain, rows in split.validation.items()}, "notes": ["odd <i>thing</i>"],
    }  # fmt: skip
    dump(folder / "data.json", data)
    records = [
        {"step": step, "raw_loss": 2 / step, "extra_loss": 1.0, "validation_accuracy": 0.5, "validation_loss": 1.0}
        | ({"target_accuracy": accuracy} if target else {})
        for step in (10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    result = {
        "algorithm": algorithm, "target": target, "trial": trial, "seed": trial, "protocol": split.protocol,
        "dataset": dataset.name, "classes": list(dataset.classes), "validation_accuracy": 0.5, "validation": {},
        "selected_step": 10, "steps": 20, "seconds": 30.0, "wall_seconds": 31.0,
        "costs": {} if algorithm == "erm" else {"generated_images": 144, "generation_seconds": 9.0},
    }  # fmt: skip
    if target:
        labels = dataset.labels[split.test]
        right = round(accuracy * len(labels))
        predictions = np.where(np.arange(len(labels)) < right, labels, (labels + 1) % 3)
        confusion = np.bincount(labels * 3 + predictions, minlength=9).reshape(3, 3)
        add_predictions(folder, dataset, split.test, predictions, calibrated=algorithm != "diffusion_classifier")
        result |= {"target_accuracy": right / len(labels), "test_images": len(labels), "confusion": confusion.tolist()}
    dump(folder / "result.json", result)
    return folder


def write_run_on_all(
    folder: Path, root: Path, algorithm: str, accuracy: dict[str, float], *, trial: int = 0, **options: Any
) -> Path:
    """A finished run on all domains, with the runs that left one out each and are right on a share of it, within."""
    write_run(folder, root, algorithm, 0.0, target=None, trial=trial, **options)
    found = {}
    for target, share in accuracy.items():
        place = folder / "held-out" / algorithm / target / f"trial-{trial}"
        write_run(place, root, algorithm, share, target=target, trial=trial, **options)
        found[target] = round(100 * json.loads((place / "result.json").read_text())["target_accuracy"], 3)
    dump(folder / "expectation.json", {"domains": found, "mean": 0.0, "standard_error": None})
    return folder


def add_predictions(
    folder: Path, dataset: MultiDomainDataset, rows: np.ndarray, predictions: np.ndarray, *, calibrated: bool = True
) -> None:
    """`predictions.csv` with confidences of their own for each folder, and a `calibration.json` where `calibrated`."""
    p = np.random.default_rng([ord(letter) for letter in folder.name]).uniform(0.34, 1, len(rows)).round(4)
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "source", "class", "prediction", "probability", "calibrated"][: 5 + calibrated])
        for row, predicted, value in zip(rows, predictions, p, strict=True):
            names = dataset.classes[dataset.labels[row]], dataset.classes[predicted]
            values = [f"{value:.4f}", f"{value**1.5:.4f}"][: 1 + calibrated]
            writer.writerow([int(row), dataset.keys[row], *names, *values])
    if calibrated:
        dump(
            folder / "calibration.json",
            {
                "temperature": 1.5, "images": 12, "domains": [], "model": "0", "accuracy": 0.5, "nll": [1.0, 0.9],
                "confidence": [0.75, 0.53125], "calibration_error": [0.25, 0.0625],
            },
        )  # fmt: skip


def add_generations(folder: Path, root: Path, count: int = 2, sheet: bool = True) -> None:
    """Generations of noise, as `fusion.generation` lays them out (3 candidates)."""
    dataset = load_dataset(str(root), DataConfig(size=SIZE))
    rows = np.flatnonzero(dataset.domain_of != dataset.index_of("pixel"))
    store = SyntheticDataset(folder / "synthetic")
    for number in range(count):
        images = np.random.default_rng(number).integers(0, 256, (len(rows), SIZE, SIZE, 3), dtype=np.uint8)
        lineage = [lineage_record(dataset, int(row), number) for row in rows]
        strips = [
            np.concatenate([dataset.images[rows[i]]] * 4 + [images[i]], axis=1) for i in sheet_positions(len(rows))
        ]
        columns = [np.concatenate(strips[i : i + 6], axis=0) for i in (0, 6)]
        store.add(
            Generation(number, rows, images, lineage, np.concatenate(columns, axis=1) if sheet else None), dataset
        )


def lineage_record(dataset: MultiDomainDataset, row: int, number: int) -> dict[str, Any]:
    name = dataset.classes[dataset.labels[row]]
    return {
        "row": row, "source": dataset.keys[row], "domain": dataset.domains[dataset.domain_of[row]], "class": name,
        "generation": number, "content_candidate": 0, "style_candidate": 2, "content_score": 0.5, "style_score": 0.1,
        "content_prompt": f"{name}, noto mono", "style_prompt": f"{name}, flat color", "content_strength": 0.6125,
        "style_strength": 0.7, "seed": 1, "sha256": "0",
    }  # fmt: skip
