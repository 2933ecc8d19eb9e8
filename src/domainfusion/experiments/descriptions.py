"""What a run writes down about itself: its data, the machine, and what it came to."""

from __future__ import annotations

import csv
import io
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainfusion.algorithms.base import Context
from domainfusion.data.domains import MultiDomainDataset
from domainfusion.files import write_text
from domainfusion.training.calibration import confidences_at
from domainfusion.training.evaluation import Evaluation

MOST_CONFUSED = 1000  # classes, of which `result.json` has the confusion matrix


def describe_data(data: str, context: Context) -> dict[str, Any]:
    """What the run read, and how it was split."""
    dataset: MultiDomainDataset = context.dataset
    return {
        "data": str(Path(data).resolve()) if Path(data).is_dir() else data, "name": dataset.name,
        "fingerprint": dataset.fingerprint, "images": len(dataset),
        "domains": list(dataset.domains), "classes": list(dataset.classes), "size": dataset.size,
        "protocol": context.split.protocol, "sources": list(context.split.sources), "target": context.split.target,
        **({"second_target": context.split.second_target} if context.split.second_target is not None else {}),
        "train": {domain: len(rows) for domain, rows in context.split.train.items()},
        "validation": {domain: len(rows) for domain, rows in context.split.validation.items()},
        "test": len(context.split.test), "steps_per_epoch": context.steps_per_epoch, "notes": list(dataset.notes),
    }  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Versions and machine, for reproduction."""
    versions = {}
    for name in ("domainfusion", "torch", "torchvision", "timm", "diffusers", "transformers", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(), "platform": platform.platform(), "processor": _processor(),
        "cpus": os.cpu_count(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None, "versions": versions,
    }  # fmt: skip


def describe_making(command: str) -> dict[str, Any]:
    """What a committed result says of how it was made: {"command", "versions", "processor"}."""
    environment = describe_environment()
    return {"command": command, "versions": environment["versions"], "processor": environment["processor"]}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def describe_result(
    context: Context, validation: dict[str, Evaluation], test: Evaluation | None, predictions: Path | None = None,
    *, temperature: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The result of evaluations on source validation (by domain, or none) and on the target.

    Args:
        predictions: where to write what was said of each image of the target, `temperature` as `write_predictions`
            takes it.
    """
    result: dict[str, Any] = {
        "algorithm": context.config.algorithm, "target": context.config.target, "trial": context.config.trial,
        "seed": context.config.seed, "protocol": context.split.protocol, "dataset": context.dataset.name,
        "classes": list(context.dataset.classes),
        "validation_accuracy": (
            sum(value.accuracy for value in validation.values()) / len(validation) if validation else None
        ),
        "validation": {domain: value.accuracy for domain, value in validation.items()},
    }  # fmt: skip
    if context.config.second_target is not None:
        result["second_target"] = context.config.second_target
    if test is not None:
        if predictions is not None:
            write_predictions(predictions, test, context.dataset, temperature)
        classes = len(context.dataset.classes)
        counts = np.bincount(test.labels, minlength=classes)
        right = np.bincount(test.labels[test.labels == test.predictions], minlength=classes)
        result.update(
            target_accuracy=test.accuracy, test_images=len(test.labels),
            target_images=len(context.dataset.rows(context.dataset.index_of(str(context.config.target)))),
            class_accuracy={
                name: (float(right[i] / counts[i]) if counts[i] else None)
                for i, name in enumerate(context.dataset.classes)
            },
        )  # fmt: skip
        if len(counts) <= MOST_CONFUSED:  # the square of more classes is a file that nobody reads
            result["confusion"] = test.confusion().tolist()
    return result


def write_predictions(
    path: Path, found: Evaluation, dataset: MultiDomainDataset, temperature: float | None = None
) -> None:
    """Write row, source, class, prediction and its probability of each evaluated image, as CSV.

    With a temperature T a column `calibrated` has the prediction's probability at it too, softmax(log p / T). Without
    one there is no such column: a temperature belongs to the outputs that it was fitted to, and a zero-shot classifier,
    or a method that is tested by more than its classifier (DSI), has none for what was tested.
    """
    lines = io.StringIO()
    writer = csv.writer(lines)
    columns = [found.probabilities.max(1)]
    if temperature is not None:
        columns.append(confidences_at(found.probabilities, temperature))
    writer.writerow(["row", "source", "class", "prediction", *["probability", "calibrated"][: len(columns)]])
    for row, label, prediction, *values in zip(found.rows, found.labels, found.predictions, *columns, strict=True):
        names = dataset.classes[label], dataset.classes[prediction]
        writer.writerow([int(row), dataset.keys[row], *names, *(f"{value:.4f}" for value in values)])
    write_text(path, lines.getvalue())
