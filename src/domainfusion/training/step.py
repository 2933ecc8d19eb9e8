"""One step of training: its batch, a function of (seed, step), its losses, its gradients."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from domainfusion.algorithms.base import Algorithm, Batch
from domainfusion.data.batches import draw_rows
from domainfusion.errors import TrainingError
from domainfusion.processes import ALONE, Processes
from domainfusion.seeding import seed_hash
from domainfusion.training.accumulation import Portions, move_weights
from domainfusion.training.checkpoint import Progress


def make_batch(algorithm: Algorithm, step: int) -> Batch:
    """The raw images of a step: rows and augmentation are functions of (seed, step).

    Where several processes train together, each draws and augments all of it, and takes its share.
    """
    context, config, processes = algorithm.context, algorithm.config, algorithm.context.processes
    rows = draw_rows(context.split, config.batch_size, config.seed, step)
    generator = torch.Generator().manual_seed(seed_hash("views", config.seed, step))
    images = algorithm.augmented(context.dataset.images[rows], generator)
    labels = torch.from_numpy(context.dataset.labels[rows]).to(context.device)
    batch = algorithm.compose(Batch(step, step // context.steps_per_epoch, rows, images, labels))
    if processes.count == 1:
        return batch
    mine = processes.share(len(rows))
    return dataclasses.replace(
        batch, rows=batch.rows[mine], images=batch.images[mine], labels=batch.labels[mine], shared_rows=batch.rows
    )


def compute_losses(algorithm: Algorithm, batch: Batch) -> dict[str, torch.Tensor]:
    """The named, weighted terms of a batch's loss, in the context's autocast type."""
    context = algorithm.context
    with torch.autocast(context.device.type, context.dtype, enabled=context.dtype != torch.float32):
        terms = algorithm.losses(batch)
    check_terms(terms, type(algorithm).__name__)
    return terms


def check_terms(terms: Any, name: str) -> None:
    """Raise `TrainingError` where what the class `name` gives as its losses are no named scalars."""
    if not isinstance(terms, dict) or not terms:
        got = f"a {type(terms).__name__}" if terms or not isinstance(terms, dict) else "an empty dict"
        raise TrainingError(f'{name}.losses() returns {got}; it should return {{"NAME_loss": a scalar tensor, ...}}')
    for term, value in terms.items():
        if not isinstance(value, torch.Tensor) or value.ndim:
            got = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise TrainingError(f"{name}.losses(): {term!r} is {got}, not a scalar tensor; take its mean, say")


def compute_gradients(optimizer: torch.optim.Optimizer, loss: torch.Tensor, processes: Processes = ALONE) -> None:
    """The gradients of the mean of the processes' `loss`, for the optimizer's parameters."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    processes.average(parameter for group in optimizer.param_groups for parameter in group["params"])


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One optimizer step down `loss`."""
    compute_gradients(optimizer, loss)
    optimizer.step()


def prepare_step(
    algorithm: Algorithm, optimizer: torch.optim.Optimizer, step: int, progress: Progress
) -> dict[str, torch.Tensor]:
    """The gradients of step `step`; returns the terms of its loss. Raises `TrainingError` where that is not finite."""
    config, context = algorithm.config, algorithm.context
    own = () if context.processes.first else (context.processes.rank,)  # no two processes drop out alike
    torch.manual_seed(seed_hash("step", config.seed, step, *own))
    terms = compute_losses(algorithm, make_batch(algorithm, step))
    loss = torch.stack(list(terms.values())).sum()
    compute_gradients(optimizer, loss, context.processes)
    # Looked at when the way back is under way: a device would have nothing to do while it is waited for.
    if context.processes.any(not bool(torch.isfinite(loss)), context.device):
        values = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
        raise TrainingError(
            f"the loss is not finite at step {step} ({values}); the checkpoint of step {progress.step} is kept. "
            f"Lower --lr (now {config.lr:g}), or use --precision float32, with another --output"
        )
    return {name: value.detach() for name, value in terms.items()}


def take_step(
    algorithm: Algorithm, optimizer: torch.optim.Optimizer, step: int, progress: Progress, portions: Portions
) -> dict[str, torch.Tensor]:
    """Step `step`, its gradients in smaller portions where memory runs out; returns the terms of its loss.

    Raises `TrainingError` where the loss is not finite, and where memory does not suffice in any portions.
    """
    terms = portions.attempt(functools.partial(prepare_step, algorithm, optimizer, step, progress), step)
    move_weights(optimizer, step)
    return terms
