"""What the present weights of a run are worth: on source validation, on held-out domains, on the images trained on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from domainfusion.algorithms.base import Algorithm
from domainfusion.data.transforms import augment
from domainfusion.errors import TrainingError
from domainfusion.seeding import seed_hash
from domainfusion.training.evaluation import Evaluation, evaluate


def validate(algorithm: Algorithm, *, between: Callable[[], None] | None = None) -> dict[str, Evaluation]:
    """The evaluation of each source domain's validation part, augmented where the options say so."""
    algorithm.eval()
    augmented = algorithm.config.data.augment_validation
    return {
        domain: evaluate_rows(algorithm, rows, augmented=augmented, between=between)
        for domain, rows in algorithm.context.split.validation.items()
    }


def evaluate_rows(
    algorithm: Algorithm, rows: np.ndarray, *, augmented: bool = False, between: Callable[[], None] | None = None
) -> Evaluation:
    """The evaluation of the present weights on rows (n,) of the data set.

    Args:
        augmented: on augmented views, the same ones whenever the same rows are evaluated, so that steps compare.
        between: called before each batch; it may raise to end the evaluation.
    """
    context, config = algorithm.context, algorithm.config
    view = None
    if augmented:
        generator = torch.Generator().manual_seed(seed_hash("validation views", config.seed, len(rows), int(rows[0])))
        view = functools.partial(augment, config=config.data, generator=generator)
    return evaluate(
        algorithm.predict, context.dataset, rows, device=context.device, dtype=context.dtype, view=view, between=between
    )


def accuracy_on(
    algorithm: Algorithm, rows: np.ndarray, *, augmented: bool = False, between: Callable[[], None] | None = None
) -> float:
    """The share of rows (n,) that the present weights get right."""
    return evaluate_rows(algorithm, rows, augmented=augmented, between=between).accuracy


def measure(
    algorithm: Algorithm, done: int, kept: int, between: Callable[[], None] | None = None
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """What the present weights are worth: fields of a record, and {domain: {"in", "out"}: accuracy}.

    Raises `TrainingError` naming the steps `done` and the checkpoint `kept` where the outputs are not finite, and what
    `between`, called before each batch, raises.
    """
    context, config = algorithm.context, algorithm.config
    found = validate(algorithm, between=between)
    if not all(math.isfinite(value.loss) for value in found.values()):
        raise TrainingError(
            f"the model's outputs are not finite after step {done - 1}; the checkpoint of step {kept} is "
            f"kept. Lower --lr (now {config.lr:g}), or use --precision float32, with another --output"
        )
    measured: dict[str, Any] = {
        "validation_accuracy": float(np.mean([value.accuracy for value in found.values()])),
        "validation_loss": float(np.mean([value.loss for value in found.values()])),
        "validation": {domain: value.accuracy for domain, value in found.items()},
    }
    shares = {domain: {"out": value.accuracy} for domain, value in found.items()}
    # Held-out domains are written down for curves and records; within a run they never choose anything.
    for domain, parts in context.split.held_out.items():
        shares[domain] = {part: accuracy_on(algorithm, rows, between=between) for part, rows in parts.items()}
    if config.target is not None:
        recorded = context.split.held_out[config.target]["in"] is context.split.test
        measured["target_accuracy"] = (
            shares[config.target]["in"] if recorded else accuracy_on(algorithm, context.split.test, between=between)
        )
    if config.evaluate_training:
        augmented = config.data.augment_validation
        for domain, rows in context.split.train.items():
            shares[domain]["in"] = accuracy_on(algorithm, rows, augmented=augmented, between=between)
    context.processes.meet(context.device)  # each measures everything; none goes on before all could
    return measured, shares
