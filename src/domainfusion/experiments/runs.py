"""One run: data, split, algorithm and training, in a folder people can read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainfusion.algorithms.base import Algorithm, Context
from domainfusion.algorithms.classifier import choose_classifier_dtype
from domainfusion.algorithms.zero_shot import ZeroShot
from domainfusion.config import TrainConfig
from domainfusion.config_files import to_toml
from domainfusion.data.batches import steps_per_epoch, with_steps
from domainfusion.data.domains import MultiDomainDataset, load_dataset
from domainfusion.data.likeness import overlap_notes
from domainfusion.data.splits import build_split
from domainfusion.devices import choose_device
from domainfusion.diffusion.labelled_corpus import refuse_seen_target
from domainfusion.errors import UsageError, show_note
from domainfusion.experiments.descriptions import describe_data, describe_environment, describe_result
from domainfusion.experiments.run_folder import (
    finish_run,
    give_up_damaged_model,
    recorded_data,
    refuse_other_options,
    to_be_redone,
)
from domainfusion.experiments.testing import evaluate_test, write_final_record
from domainfusion.experiments.zero_shot import classify_parts, describe_accuracy, write_record
from domainfusion.files import (
    hash_of_file,
    read_json,
    write_json,
    write_text,
)
from domainfusion.interruption import stoppable
from domainfusion.locks import exclusive
from domainfusion.processes import join_processes
from domainfusion.registry import ALGORITHMS
from domainfusion.tracking.following import Tracking
from domainfusion.training.calibration import calibrate
from domainfusion.training.checkpoint import load_model
from domainfusion.training.measuring import validate
from domainfusion.training.trainer import train


def build_context(data: str, config: TrainConfig, folder: Path, progress: bool = True) -> Context:
    """Data, split and device of a run."""
    return context_of(load_dataset(data, config.data), config, folder, progress)


def context_of(dataset: MultiDomainDataset, config: TrainConfig, folder: Path, progress: bool = True) -> Context:
    """Split and device of a run on a data set."""
    split = build_split(dataset, config.data, config.target, config.trial, config.second_target)
    refuse_seen_target(config.ldm_source, dataset, (config.target, config.second_target), config.trial)
    device = choose_device(config.device)
    return Context(
        dataset=dataset, split=split, config=with_steps(config, split), device=device,
        dtype=choose_classifier_dtype(config.precision, device), folder=folder,
        steps_per_epoch=steps_per_epoch(split, config.batch_size), progress=progress,
    )  # fmt: skip


def algorithm_class(name: str) -> Any:
    """The class of an algorithm, built in or the user's own. Raises `UsageError` where it is none."""
    kind = ALGORITHMS.load(name)
    if not (isinstance(kind, type) and issubclass(kind, (Algorithm, ZeroShot))):
        raise UsageError(f"--algorithm {name} is no subclass of domainfusion.Algorithm")
    return kind


def class_of_run(name: str) -> Any:
    """The class behind a finished run's model, where its name is known; else `Algorithm`, a plain classifier's.

    A run may come from somebody else, or from a script that registered its method: a module that it names is not
    imported to use its weights.
    """
    return algorithm_class(name) if ":" not in name and name in ALGORITHMS.names() else Algorithm


def refuse_untrained(folder: Path, algorithm: str) -> None:
    """Raise `UsageError` where the run in `folder` is of a zero-shot classifier: it has no model."""
    if issubclass(class_of_run(algorithm), ZeroShot):
        raise UsageError(
            f"the run in {folder} is of {algorithm}, which is not trained: there is no model in it; its accuracies are "
            f"in result.json, and `domainfusion train DATA --algorithm {algorithm}` gives others"
        )


def build_algorithm(context: Context) -> Algorithm:
    """The algorithm of a context, its initial weights a function of the seed."""
    torch.manual_seed(context.config.seed)
    return algorithm_class(context.config.algorithm)(context)


def train_run(
    data: str, config: TrainConfig, folder: Path, *, progress: bool = True, track: Sequence[str] = ()
) -> dict[str, Any]:
    """Train as `config` says, in `folder`, and return `result.json`; the same call again resumes or just reads it.

    A zero-shot algorithm is not trained, only evaluated on what a trained one is tested on. The trackers named by
    `track` are told what the folder comes to hold; they are no option of the run.

    Raises `UsageError` where the folder holds a run with other options, `FileError` where another process is at work
    in it, `Interrupted` where a signal asks to stop, when everything is saved.
    """
    ALGORITHMS.get(config.algorithm)
    processes = join_processes()
    tracking = Tracking(folder, track if processes.first else ())
    refuse_other_options(folder, data, config)
    context = build_context(data, config, folder, progress and processes.first)
    context = dataclasses.replace(context, processes=processes)
    described = describe_data(data, context)
    if (folder / "data.json").exists() and recorded_data(folder)["fingerprint"] != described["fingerprint"]:
        kept = recorded_data(folder)["data"] == described["data"]
        what = "have changed since" if kept else "are not those with which"
        raise UsageError(f"the images of {data} {what} the run in {folder} began; choose another --output")
    if (folder / "result.json").exists() and not to_be_redone(folder):
        with tracking:
            tracking.follow()
        return read_json(folder / "result.json")
    if not processes.first:
        with stoppable():
            return _assist(context)
    with exclusive(folder), stoppable(), tracking:
        give_up_damaged_model(folder)
        return _run(data, dataclasses.replace(context, recorded=tracking.follow), described)


def _run(data: str, context: Context, described: dict[str, Any]) -> dict[str, Any]:
    """Train, in a folder that is ours alone."""
    config, folder = context.config, context.folder
    split = context.split
    used = np.concatenate([part[domain] for part in (split.train, split.validation) for domain in split.sources])
    described = described | {"notes": [*context.dataset.notes, *overlap_notes(context.dataset, used, split.test)]}
    for note in described["notes"]:
        show_note(note)
    kind = algorithm_class(config.algorithm)
    # Built before anything is written: options that it refuses leave no folder that insists on them.
    if issubclass(kind, ZeroShot) and context.processes.count > 1:
        raise UsageError(
            f"{config.algorithm} is not trained: processes that are started one by one share its images, not these"
        )
    algorithm = None if issubclass(kind, ZeroShot) else build_algorithm(context)
    if draws_images(config) and config.ldm_source == "embedded" and context.dataset.name != "pictograms":
        _note_unfamiliar_images(data)
    write_text(folder / "config.toml", f"# domainfusion train {data!r}\n{to_toml(config)}")
    write_json(folder / "environment.json", describe_environment())
    write_json(folder / "data.json", described | (algorithm.described() if algorithm else {}))
    context.recorded()
    started = time.monotonic()
    result = _classify(kind, context) if algorithm is None else _train(algorithm)
    result["wall_seconds"] = time.monotonic() - started
    finish_run(folder, result)
    context.recorded()
    context.processes.wait()
    return result


def draws_images(config: TrainConfig) -> bool:
    """Whether a run has the LDM redraw images, which is worth what the LDM knows of such images."""
    return config.algorithm in ("cdga", "dsi") or (config.algorithm == "domainfusion" and config.synthetic_weight > 0)


@functools.cache  # once for all runs of a process
def _note_unfamiliar_images(data: str) -> None:
    show_note(
        f"the embedded LDM knows icons and emoji, not photographs: `domainfusion judge {data}` measures what it is "
        f"worth here, `domainfusion pretrain {data} --target TARGET` trains one on your images, --ldm takes another"
    )


def _assist(context: Context) -> dict[str, Any]:
    """The run of a process that is not the first: it trains along, writes nothing, and reads what came out."""
    algorithm = build_algorithm(context)
    with contextlib.closing(algorithm):
        train(algorithm)
    context.processes.wait()
    return read_json(context.folder / "result.json")


def save_calibration(folder: Path, classifier: torch.nn.Module, context: Context) -> dict[str, Any]:
    """Fit the temperature of a run's selected weights on source validation, and write `calibration.json`.

    The file also says which weights it was fitted to: {..., "model": SHA-256 of model.safetensors}.
    """
    found = calibrate(classifier, context.dataset, context.split, device=context.device, dtype=context.dtype)
    found["model"] = hash_of_file(folder / "model.safetensors")
    write_json(folder / "calibration.json", found)
    return found


def _train(algorithm: Algorithm) -> dict[str, Any]:
    """Train, and what the selected weights came to."""
    context = algorithm.context
    with contextlib.closing(algorithm):
        done = train(algorithm)
    model = load_model(context.folder, algorithm.classifier)
    calibration = save_calibration(context.folder, algorithm.classifier, context)
    kind = type(algorithm)
    alone = kind.tester is Algorithm.tester and kind.predict is Algorithm.predict  # the temperature is the classifier's
    temperature = calibration["temperature"] if alone else None
    result = summarize(algorithm, context.folder / "predictions.csv", temperature)
    if not algorithm.tests_by_classifier:
        write_final_record(algorithm, result, done)
    seconds = done.seconds + algorithm.seconds_after_training()
    result.update(selected_step=done.best_step, steps=done.step, seconds=seconds, costs=algorithm.costs())
    result.update(algorithm.findings())
    if algorithm.classifier.portion:  # memory ran out
        result["images_at_once"] = algorithm.classifier.portion
    if "average" in model:
        result["average"] = model["average"]
    algorithm.finish()
    return result


def _classify(kind: type[ZeroShot], context: Context) -> dict[str, Any]:
    """What a zero-shot classifier came to, in the same form; `validation_accuracy` is None where none was asked for."""
    found = classify_parts(kind, context)
    result = describe_result(context, found.validation, found.test, context.folder / "predictions.csv")
    parts = dict(found.validation) | ({str(context.config.target): found.test} if found.test is not None else {})
    result.update(
        selected_step=0, steps=0, seconds=found.costs["classification_seconds"], costs=found.costs,
        domains={domain: describe_accuracy(value) for domain, value in parts.items()}, zero_shot=found.options,
    )  # fmt: skip
    write_record(context, found)
    return result


def summarize(
    algorithm: Algorithm, predictions: Path | None = None, temperature: float | None = None
) -> dict[str, Any]:
    """Accuracy of the present weights: source validation by domain, and the target by class, with its confusion.

    What was said of every test image goes to the CSV file `predictions`, so that runs can be compared image by image;
    with the temperature of the classifier, calibrated too.
    """
    context = algorithm.context
    found, test = validate(algorithm), None
    if len(context.split.test):
        test = evaluate_test(algorithm, context.split.test)
    return describe_result(context, found, test, predictions, temperature=temperature)
