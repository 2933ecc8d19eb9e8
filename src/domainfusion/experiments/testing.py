"""A run's selected weights on test images, by its method's own way to predict."""

from __future__ import annotations

from typing import Any

import numpy as np

from domainfusion.algorithms.base import Algorithm
from domainfusion.json_lines import append_json_line, read_json_lines
from domainfusion.training.checkpoint import Progress
from domainfusion.training.evaluation import Evaluation, evaluate, evaluation_of_logits
from domainfusion.training.records import build_record


def evaluate_test(algorithm: Algorithm, rows: np.ndarray) -> Evaluation:
    """The evaluation of test images, rows (n,): by the algorithm's `tester` where it has one."""
    context = algorithm.context
    tester = algorithm.tester()
    if tester is None:
        return evaluate(algorithm.predict, context.dataset, rows, device=context.device, dtype=context.dtype)
    return evaluation_of_logits(tester.logits(context.dataset, rows), context.dataset, rows)


def write_final_record(algorithm: Algorithm, result: dict[str, Any], done: Progress) -> None:
    """Write DomainBed's one record of a method that is tested after training alone.

    It is of the selected weights, on a second target too where there is one. None is written without a target, or where
    held-out images are not to be tested, which the record needs.
    """
    context, config = algorithm.context, algorithm.config
    path = context.folder / "results.jsonl"
    path.unlink(missing_ok=True)  # an interrupted run's
    if config.target is None or not algorithm.tests_held_out:
        return
    shares = {domain: {"out": value} for domain, value in result["validation"].items()}
    known = [(context.split.test, result["target_accuracy"])]  # a part may be another's rows too: it is tested once
    for domain, parts in context.split.held_out.items():
        shares[domain] = {}
        for part, rows in parts.items():
            if not any(rows is there for there, _ in known):
                known.append((rows, evaluate_test(algorithm, rows).accuracy))
            shares[domain][part] = next(accuracy for there, accuracy in known if rows is there)
    measured = next(r for r in read_json_lines(context.folder / "metrics.jsonl") if r["step"] == done.best_step)
    record = build_record(
        config, context.dataset.name, context.dataset.domains, shares, output=context.folder, step=done.best_step,
        epoch=done.best_step / context.steps_per_epoch, loss=measured["raw_loss"],
        step_time=done.seconds / max(1, done.step),
        frequency=config.evaluate_every or max(1, config.steps // config.evaluations), device=context.device,
    )  # fmt: skip
    append_json_line(path, record)
