"""Evaluates a finished run's model, on its own target or on another data set's domains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from domainfusion.algorithms.classifier import build_classifier
from domainfusion.algorithms.zero_shot import ZeroShot
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.data.domains import load_dataset
from domainfusion.data.splits import build_split
from domainfusion.diffusion.ldm import choose_dtype
from domainfusion.errors import DataError, FileError, UsageError
from domainfusion.experiments.runs import algorithm_class, choose_device
from domainfusion.files import read_json
from domainfusion.training.checkpoint import load_model
from domainfusion.training.evaluation import evaluate


def evaluate_run(folder: Path, data: str | None = None, device_name: str = "auto") -> dict[str, dict[str, Any]]:
    """{domain: {"images", "accuracy", "class_accuracy"}} of the run's model.

    Without `data`: the run's own target test images, or where it has none its source validation images. With `data`:
    all images of each domain, their classes matched by name. Raises `DataError` where a class is unknown to the model.
    """
    if not (folder / "config.toml").exists():
        raise FileError(f"{folder} is no run folder (config.toml is missing)")
    config: TrainConfig = build_config(TrainConfig, load_toml(folder / "config.toml"), str(folder / "config.toml"))
    # A run may come from somebody else: a module that it names is not imported.
    if ":" not in config.algorithm and issubclass(algorithm_class(config.algorithm), ZeroShot):
        raise UsageError(
            f"the run in {folder} is of {config.algorithm}, which is not trained: there is no model to evaluate; its "
            f"accuracies are in result.json, and `domainfusion train DATA --algorithm {config.algorithm}` gives others"
        )
    described = read_json(folder / "model.json")
    # The weights are about to be loaded: the published ones need not be fetched for a pretrained backbone.
    classifier = build_classifier(dataclasses.replace(config, pretrained=False), len(described["classes"]))
    load_model(folder, classifier)
    device = choose_device(device_name)
    classifier.to(device).eval()
    recorded = read_json(folder / "data.json")
    dataset = load_dataset(data or recorded["data"], config.data)
    if data is None and dataset.fingerprint != recorded["fingerprint"]:
        raise DataError(
            f"the images of {recorded['data']} have changed since the run in {folder}, and its split with them; give "
            "the data set to evaluate on as a second argument"
        )
    strangers = sorted(set(dataset.classes) - set(described["classes"]))
    if strangers:
        raise DataError(f"the model knows no class {strangers[0]!r}; it knows {', '.join(described['classes'])}")
    if data is None:
        split = build_split(dataset, config.data, config.target, config.trial)
        parts = {config.target: split.test} if config.target else dict(split.validation)
    else:
        parts = {domain: dataset.rows(i) for i, domain in enumerate(dataset.domains)}
    position = np.array([described["classes"].index(name) for name in dataset.classes])
    found = {}
    for domain, rows in parts.items():
        result = evaluate(classifier, dataset, rows, device=device, dtype=choose_dtype(config.precision, device))
        labels, predictions = position[result.labels], result.probabilities.argmax(1)
        by_class = {
            name: float((predictions[labels == i] == i).mean())
            for i, name in enumerate(described["classes"])
            if (labels == i).any()
        }
        accuracy = float((predictions == labels).mean())
        found[str(domain)] = {"images": len(rows), "accuracy": accuracy, "class_accuracy": by_class}
    return found
