"""Evaluates a finished run's model, on its own target or on another data set's domains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from domainfusion.algorithms.classifier import build_classifier, choose_classifier_dtype
from domainfusion.config import TrainConfig
from domainfusion.config_files import build_config, load_toml
from domainfusion.data.domains import MultiDomainDataset, load_dataset, load_recorded
from domainfusion.data.splits import build_split
from domainfusion.devices import choose_device
from domainfusion.errors import DataError, FileError, NoModel, UsageError, show_note
from domainfusion.experiments.runs import class_of_run, refuse_untrained
from domainfusion.files import read_json_object
from domainfusion.interruption import stoppable
from domainfusion.training.checkpoint import load_model
from domainfusion.training.evaluation import evaluate, evaluation_of_logits


def load_run(folder: Path) -> tuple[TrainConfig, list[str], nn.Module]:
    """Options, classes and classifier (its selected weights, on the CPU) of a finished run.

    Raises `FileError` where the folder holds no run, `UsageError` where its algorithm is not trained.
    """
    if not (folder / "config.toml").exists():
        raise NoModel(f"{folder} is no run folder (config.toml is missing)")
    config: TrainConfig = build_config(TrainConfig, load_toml(folder / "config.toml"), str(folder / "config.toml"))
    refuse_untrained(folder, config.algorithm)
    if not (folder / "model.json").exists() and not (folder / "result.json").exists():
        raise FileError(f"{folder} holds no trained model yet (model.json is missing); finish the run first")
    classes = list(read_json_object(folder / "model.json", classes=list)["classes"])
    # The run's own weights are about to be loaded: the published ones need not be fetched.
    classifier = build_classifier(config, len(classes), initialize=False)
    load_model(folder, classifier)
    return config, classes, classifier


def load_images(
    folder: Path, data: str | None, recorded: dict[str, Any], config: TrainConfig,
    bad_images: Literal["error", "skip"] | None,
) -> MultiDomainDataset:  # fmt: skip
    """The data set to evaluate on: `data`, or without it the run's own, which is to be what it was."""
    if data is not None:
        reading = config.data if bad_images is None else dataclasses.replace(config.data, bad_images=bad_images)
        return load_dataset(data, reading)
    if bad_images is not None:
        raise UsageError(
            "--data.bad-images is about DATA, a data set to evaluate on instead: the run's own images are read as it "
            "read them"
        )
    other = "or give the data set to evaluate on as a second argument"
    try:
        dataset = load_recorded(recorded["data"], config.data, folder)
    except DataError as error:
        raise DataError(f"{error}, {other}") from error
    if dataset.fingerprint != recorded["fingerprint"]:
        raise DataError(
            f"the images of {recorded['data']} have changed since the run in {folder} began, and its split with them: "
            f"put them back, {other}"
        )
    return dataset


def evaluate_run(
    folder: Path, data: str | None = None, device_name: str = "auto", *,
    bad_images: Literal["error", "skip"] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """{domain: {"images", "accuracy", "class_accuracy"}} of the run's model, by its method's own way to predict.

    Without `data`: the run's own target test images, or where it has none its source validation images. With `data`:
    all images of each domain, their classes matched by name.

    Args:
        bad_images: what to do with an image of `data` that cannot be read: stop at it, or leave it out; none: as the
            run did.

    Raises `DataError` where a class is unknown to the model, and where the run's own images are not what they were.
    """
    config, classes, classifier = load_run(folder)
    device = choose_device(device_name)
    classifier.to(device).eval()
    recorded = read_json_object(folder / "data.json", data=str, fingerprint=str)
    dataset = load_images(folder, data, recorded, config, bad_images)
    if data is not None:
        for note in dataset.notes:
            show_note(note)
    strangers = sorted(set(dataset.classes) - set(classes))
    if strangers:
        raise DataError(f"the model knows no class {strangers[0]!r}; it knows {', '.join(classes)}")
    if data is None:
        split = build_split(dataset, config.data, config.target, config.trial, config.second_target)
        parts = {config.target: split.test} if config.target else dict(split.validation)
    else:
        parts = {domain: dataset.rows(i) for i, domain in enumerate(dataset.domains)}
        if dataset.fingerprint == recorded["fingerprint"]:
            target = f"; of {config.target} alone none was trained on" if config.target else ""
            show_note(f"these are the images that the run was trained on, which flatters it{target}")
    numbers = {name: number for number, name in enumerate(classes)}
    position = np.array([numbers[name] for name in dataset.classes])
    dtype = choose_classifier_dtype(config.precision, device)
    found = {}
    tester = class_of_run(config.algorithm).load_tester(folder, classifier, config, device)
    for domain, rows in parts.items():
        if tester is None:
            result = evaluate(classifier, dataset, rows, device=device, dtype=dtype)
        else:
            with stoppable():
                result = evaluation_of_logits(tester.logits(dataset, rows), dataset, rows)
        labels, predictions = position[result.labels], result.probabilities.argmax(1)
        by_class = {classes[i]: float((predictions[labels == i] == i).mean()) for i in np.unique(labels).tolist()}
        accuracy = float((predictions == labels).mean())
        found[str(domain)] = {"images": len(rows), "accuracy": accuracy, "class_accuracy": by_class}
    return found
